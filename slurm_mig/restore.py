"""`slurm-mig restore`: after a boot, the GPUs as they were, before slurmd starts.

Instances never survive a boot; the MIG mode does on Ampere only. Each GPU is brought to what the
node's record says, at the recorded places, so that device files and UUIDs are those that gres.conf
has. Idempotent; waits for the driver for a bounded time; one GPU's trouble does not keep the
others from being restored, but the command fails, so that slurmd is not started on a half truth.
On a node with files of its own our gres.conf is written again where the boot brought another one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from slurm_mig.adapters.atomic import make_directory, write_atomic
from slurm_mig.adapters.bootrecord import Recorded, RecordedGpu
from slurm_mig.core.layouts import Cut, Wanted
from slurm_mig.core.model import Gpu, Slots, is_filler
from slurm_mig.core.publish import is_sealed
from slurm_mig.core.slots import devices_of
from slurm_mig.errors import LeftOverError, SlurmMigError, UnreachableError
from slurm_mig.ports import Clock
from slurm_mig.relayout import Gpus, Relayout

T = TypeVar("T")

POLL_S = 1.0


@dataclass(frozen=True)
class Restorer:
    """Restores from a record. `prepare` makes the device nodes and the slot map of a node in the
    controller's care."""

    gpus: Gpus
    prepare: Callable[[Slots], None] | None = None

    def restore(self, record: Recorded) -> list[str]:
        """One sentence for each GPU. Raises LeftOverError after all was tried."""
        there = {gpu.uuid: gpu for gpu in self.gpus.inventory()}
        there |= _in_the_place_of(record.gpus, there)
        said: list[str] = []
        failed: list[str] = []
        for was in record.gpus:
            try:
                said.append(self._restore_gpu(was, there.get(was.uuid)))
            except SlurmMigError as error:
                # slurmd need not wait for what is not Slurm's.
                (said if was.owner else failed).append(error.args[0])
        if not failed and record.slots and self.prepare:
            self.prepare(record.slots)
            failed += self._moved(record.slots)
        if not failed:
            said += _rewritten(record.files)
        if failed:
            raise LeftOverError(
                "; ".join(failed),
                hint="slurmd should not start before this is mended: `slurm-mig check` says more.",
            )
        return said

    def _restore_gpu(self, was: RecordedGpu, now: Gpu | None) -> str:
        if now is None:
            raise SlurmMigError(
                f"{was.model} {was.uuid} is not there any more",
                hint="If the GPU was taken out or replaced, apply a layout again.",
            )
        if was.owner and (now.instances or now.pids):
            return f"GPU {now.index}: left to {was.owner}, {len(now.instances)} instances"
        cuts = frozenset(Cut(c.placement, c.widths) for c in was.cuts)
        wanted = Wanted(mig=was.mig, cuts=cuts if was.mig else frozenset())
        applied = Relayout(self.gpus).apply({now.index: wanted})
        done = "already as recorded" if all(c.empty for c in applied.changes) else "restored"
        return f"GPU {now.index}: {done}, {len(cuts)} instances"

    def _moved(self, slots: Slots) -> list[str]:
        """Published devices whose files are now another instance's, as when minors have changed."""
        there = (d for gpu in self.gpus.inventory() for d in devices_of(gpu, ""))
        files = {device.key: device.files for device in there}
        return [
            f"slot {n} ({device.type}) is published with {' '.join(device.files)}, which is not "
            "its instance any more"
            for n, device in enumerate(slots)
            if device.placement and not is_filler(device.type)
            and files.get((device.gpu, device.placement)) != device.files
        ]  # fmt: skip


def _rewritten(files: Mapping[str, str]) -> list[str]:
    """Our parts of slurm.conf and gres.conf on a node with files of its own: as last written, where
    the boot brought none or an older one (an image, a backup). A hand edit stays."""
    said = []
    for path, text in sorted(files.items()):
        there = Path(path).read_text(errors="replace") if Path(path).exists() else None
        if there == text:
            continue
        if there is not None and not is_sealed(there):
            said.append(f"{path} was edited by hand and is left as it is")
            continue
        make_directory(Path(path).parent)
        write_atomic(Path(path), text)
        said.append(f"{path} is written again")
    return said


def _in_the_place_of(recorded: Sequence[RecordedGpu], there: Mapping[str, Gpu]) -> dict[str, Gpu]:
    """By the UUID of a GPU that is gone, the new one of its model, where only one can be meant."""
    known = {was.uuid for was in recorded}
    gone = [was for was in recorded if was.uuid not in there]
    new = [gpu for uuid, gpu in there.items() if uuid not in known]
    found = {}
    for was in gone:
        like = [gpu for gpu in new if gpu.model == was.model]
        if len(like) == 1 == sum(other.model == was.model for other in gone):
            found[was.uuid] = like[0]
    return found


def started(start: Callable[[], T], clock: Clock, wait_s: float) -> T:
    """What `start` makes, once the driver answers. Raises UnreachableError after `wait_s` s."""
    deadline = clock.elapsed() + wait_s
    while True:
        try:
            return start()
        except UnreachableError:
            if clock.elapsed() >= deadline:
                raise
        clock.sleep(POLL_S)
