"""Slurm's hooks on a GPU node: Prolog, Epilog and TaskProlog, and the root check after a job.

This is the reference: what a hook decides is said here once. scripts/prolog, scripts/epilog and
scripts/task_prolog do the ordinary way of the same in shell builtins, because an interpreter's
start is what a job would feel; whatever is not ordinary, the shell prolog leaves to `prolog` here.
One test suite runs against both.

What a hook may believe: the slot map and the marks, which root wrote; of the environment only
numbers. Nothing is ever run with words from a job.

The clean mark of an instance says that no process is on it: set by `check`, by `prolog` and after a
publish, each after a look at the driver; emptied by the epilog. Whoever looks and marks holds one
lock, so a process is only ended while its instance is nobody's.
"""

from __future__ import annotations

import fcntl
import logging
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from slurm_mig.adapters import system
from slurm_mig.adapters.slurmcommands import environment
from slurm_mig.core import slotmap
from slurm_mig.core.model import Gpu
from slurm_mig.core.slotmap import Slot, SlotMap
from slurm_mig.core.slots import instance_devices
from slurm_mig.errors import Exit, SlurmMigError

log = logging.getLogger(__name__)

RUN_DIR = "/run/slurm-mig"
FENCE_S = 5.0
"""How long draining the node may take in a prolog."""
POLL_S = 0.02
REST_S = 1.0
END_S = 2.0
"""How long a process that is told to end may take before it is killed."""


def task_prolog(env: Mapping[str, str], known: SlotMap) -> list[str]:
    """The lines that give a task its UUIDs; none where Slurm's own are right, or nothing is known.

    Where devices are not constrained, Slurm's numbers are the node's own. Where they are, they are
    positions among the devices that the task may open, and tasks that are bound to one device each
    all get "0" (measured, 26.05): the device files tell which. On a step's further nodes
    SLURM_JOB_GPUS is the first one's, which srun brought along: the step's own are asked too. Of a
    job that srun itself brought there is none, and bound tasks have SLURM_STEP_GPUS=0: every
    device's files are asked then.
    """
    if not env.get("CUDA_VISIBLE_DEVICES"):
        return _forget(env)
    seen = slotmap.indexes(env["CUDA_VISIBLE_DEVICES"])
    gpus = _together(env.get("SLURM_JOB_GPUS", ""), env.get("SLURM_STEP_GPUS", ""))
    if seen is None or gpus is None or "-" in env["CUDA_VISIBLE_DEVICES"]:
        return []
    mine: Sequence[int] = seen
    if known.constrained:
        mine = _open(known, gpus & known.slots.keys())
        if len(mine) < len(seen):
            # A task that srun itself brought, bound to one device: told index 0 whatever it has.
            mine = _open(known, known.devices)
            if len(mine) != len(seen):
                # A job without devices of its own, with an environment from elsewhere.
                return []
        if len(mine) > len(seen):
            lists = (slotmap.indexes(env.get(f"SLURM_{of}_GPUS", "")) for of in ("STEP", "JOB"))
            step = next(filter(None, lists), ())
            if any(position >= len(step) for position in seen):
                return []
            mine = [step[position] for position in seen]
    found = [known.slots[i] for i in mine if i in known.devices]
    if len(found) < len(mine) or all(slot.is_whole for slot in found):
        return []
    uuids = ",".join(slot.uuid for slot in found)
    return [f"export CUDA_VISIBLE_DEVICES={uuids}", f"export NVIDIA_VISIBLE_DEVICES={uuids}"]


def _open(known: SlotMap, indexes: Iterable[int]) -> list[int]:
    """Those of the indexes whose files this process may open."""
    slots = known.slots
    return [i for i in sorted(indexes) if all(os.access(f, os.R_OK) for f in slots[i].files)]


def _forget(env: Mapping[str, str]) -> list[str]:
    """A step without the job's devices has what the batch script was told: nothing of it is so."""
    of_gpus = env.get("SLURM_JOB_GPUS") or env.get("SLURM_STEP_GPUS")
    told = env.get("NVIDIA_VISIBLE_DEVICES", "").startswith("MIG-")
    return ["unset NVIDIA_VISIBLE_DEVICES"] if of_gpus and told else []


def _together(*lists: str) -> frozenset[int] | None:
    """The indexes of all lists that are there; None when there is none. What is no list came with
    the user's environment, which Slurm does not clear."""
    known = [indexes for indexes in map(slotmap.indexes, lists) if indexes is not None]
    return frozenset(i for part in known for i in part) if known else None


@dataclass(frozen=True)
class Ended:
    """A job that has ended on this node: who it was, and which slots it had."""

    job: int
    uid: int
    indexes: tuple[int, ...]

    @property
    def line(self) -> str:
        return f"{self.job} {self.uid} {','.join(map(str, self.indexes))}\n"

    @classmethod
    def of(cls, line: str) -> Ended | None:
        words = line.split()
        if len(words) != 3 or not (words[0].isdigit() and words[1].isdigit()):
            return None
        indexes = slotmap.indexes(words[2])
        return cls(int(words[0]), int(words[1]), indexes) if indexes else None


@dataclass
class Node:
    """The node's own side of the hooks: the directory in /run, the driver, the fence.

    `look` asks the driver; it is called only when a mark is missing.
    """

    run: Path
    look: Callable[[], Sequence[Gpu]]
    fence: Callable[[str], None] = lambda _: None
    leftover: str = "end"
    """What becomes of processes that a job left on its instances: `end` or `report`."""

    @property
    def known(self) -> SlotMap | None:
        """The slot map; None where slurm-mig manages nothing."""
        try:
            return slotmap.parse((self.run / "slots").read_text())
        except OSError:
            return None

    def mark(self, slot: Slot) -> Path:
        return self.run / "clean" / slot.uuid

    def is_clean(self, slot: Slot) -> bool:
        try:
            return self.mark(slot).stat().st_size > 0
        except OSError:
            return False

    @contextmanager
    def lock(self) -> Iterator[None]:
        (self.run / "clean").mkdir(mode=0o755, parents=True, exist_ok=True)
        with open(self.run / "hooks.lock", "w", encoding="ascii") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def prolog(self, env: Mapping[str, str]) -> None:
        """Raises SlurmMigError, after the node was drained, when a slot is not the job's to use."""
        if not env.get("SLURM_JOB_GPUS") or self.known is None:
            return
        try:
            with self.lock():
                self._prepare(env, self.known)
            self._say_whose(env, self.known)
        except SlurmMigError as error:
            job = env.get("SLURM_JOB_ID", "")
            why = f"job {job if job.isdigit() else '?'}: {error.args[0]}"
            self.fence(why)
            raise SlurmMigError(why) from error

    def _prepare(self, env: Mapping[str, str], known: SlotMap) -> None:
        indexes = slotmap.indexes(env["SLURM_JOB_GPUS"])
        if indexes is None:
            raise SlurmMigError("SLURM_JOB_GPUS is no list of numbers")
        gpus: Sequence[Gpu] = ()
        for index in indexes:
            slot = known.devices.get(index)
            if slot is None:
                raise SlurmMigError(f"slot {index} is no device")
            there = all(map(_is_device, slot.files))
            there = there and (not slot.proof or os.path.exists(slot.proof))
            if not (there and self.is_clean(slot)):
                gpus = gpus or self.look()
                self._look_at(index, slot, gpus)
                self.mark(slot).write_text("clean\n")
        if known.narrow:
            uid = env.get("SLURM_JOB_UID", "")
            if not uid.isdigit():
                raise SlurmMigError("SLURM_JOB_UID is no number")
            for index in indexes:
                _own(known.slots[index], int(uid), 0o400)

    def _say_whose(self, env: Mapping[str, str], known: SlotMap) -> None:
        """The job map, for dcgm-exporter: no job fails for it."""
        job = env.get("SLURM_JOB_ID", "")
        if not (job.isascii() and job.isdigit()):
            return
        for index in slotmap.indexes(env["SLURM_JOB_GPUS"]) or ():
            if known.job_map and index in known.mapped:
                with suppress(OSError):
                    (Path(known.job_map) / known.mapped[index]).write_text(f"{job}\n")

    def _look_at(self, index: int, slot: Slot, gpus: Sequence[Gpu]) -> None:
        """See in the driver that the slot is there and free; end what an earlier job left."""
        files, pids = _device(index, slot, gpus)
        if files != slot.files:
            raise SlurmMigError(f"slot {index} ({slot.type} {slot.uuid}): other device files now")
        if made := system.ensure_device_files(files):
            log.warning("slot %d: made %s", index, " ".join(made))
        if pids:
            self._end_leftovers(index, slot, pids)
            _, pids = _device(index, slot, self.look())
        if pids:
            raise SlurmMigError(
                f"slot {index} ({slot.type} {slot.uuid}) is held by "
                f"{', '.join(map(system.describe_process, pids))}"
            )

    def epilog(self, env: Mapping[str, str]) -> None:
        """Empty the marks of the job's slots, undo the narrowing, note the job for `check`."""
        known = self.known
        indexes = slotmap.indexes(env.get("SLURM_JOB_GPUS", ""))
        job, uid = env.get("SLURM_JOB_ID", ""), env.get("SLURM_JOB_UID", "")
        numbers = all(text.isascii() and text.isdigit() and len(text) < 12 for text in (job, uid))
        if known is None or indexes is None or not numbers or not (self.run / "clean").is_dir():
            return
        for index in indexes:
            if index in known.devices:
                self.mark(known.slots[index]).write_text("")
                if known.narrow:
                    _own(known.slots[index], 0, 0o444)
                if known.job_map and index in known.mapped:
                    with suppress(OSError):
                        (Path(known.job_map) / known.mapped[index]).unlink()
        with open(self.run / "ended", "a", encoding="ascii") as file:
            file.write(f"{job} {uid} {env['SLURM_JOB_GPUS']}\n")

    def check(self) -> list[str]:
        """Look at every slot without a mark; returns what was found, a line for each."""
        known = self.known
        if known is None:
            return []
        with self.lock():
            self._collect()
            return self._mark_free(known)

    def watch(self, linger_s: float, say: Callable[[str], None], rest: Callable[[], None]) -> None:
        """`check` for each job that ends, until none has for so long.

        An interpreter's start for each would be too slow for a queue of short jobs. `rest` is
        called when nothing has come for a moment: whoever looks at the driver should let go of it.
        """
        last, rested = time.monotonic(), False
        while True:
            idle = time.monotonic() - last
            if (self.run / "ended").exists():
                for line in self.check():
                    say(line)
                last, rested = time.monotonic(), False
            elif idle > linger_s:
                return
            elif idle > REST_S and not rested:
                rest()
                rested = True
            time.sleep(POLL_S)

    def _collect(self) -> None:
        """What the epilogs noted joins what is not yet done. A note that comes meanwhile makes the
        file anew, which wakes the next check."""
        noted = self.run / "ended.taken"
        with suppress(FileNotFoundError):
            os.replace(self.run / "ended", noted)
            with open(self.run / "ended.kept", "a", encoding="ascii") as kept:
                kept.write(noted.read_text())
            noted.unlink()

    def _ended(self) -> list[Ended]:
        """Jobs that ended here; of each slot, those since it was last found clean."""
        text = ""
        for name in ("ended.kept", "ended"):
            with suppress(FileNotFoundError):
                text += (self.run / name).read_text()
        return [ended for line in text.splitlines() if (ended := Ended.of(line))]

    def _mark_free(self, known: SlotMap) -> list[str]:
        said = []
        unclean = {i: slot for i, slot in known.devices.items() if not self.is_clean(slot)}
        gpus = self.look() if unclean else ()
        for index, slot in unclean.items():
            try:
                self._look_at(index, slot, gpus)
            except SlurmMigError as error:
                said.append(str(error.args[0]))
                continue
            if known.narrow:
                _own(slot, 0, 0o444)
            self.mark(slot).write_text("clean\n")
        left = {i for i, slot in unclean.items() if not self.is_clean(slot)}
        kept = [e for e in self._ended() if left & set(e.indexes)]
        (self.run / "ended.kept").write_text("".join(e.line for e in kept))
        return said

    def _end_leftovers(self, index: int, slot: Slot, pids: Sequence[int]) -> None:
        """End what a job that had this slot left on it; never another's process."""
        ended = [e for e in self._ended() if index in e.indexes]
        for pid in pids:
            owner = next((e for e in ended if system.is_of_job(pid, e.job, e.uid)), None)
            if owner is None:
                continue
            what = system.describe_process(pid)
            if self.leftover == "end":
                log.warning("job %d left %s on slot %d (%s): ended",
                            owner.job, what, index, slot.type)  # fmt: skip
                meant = partial(system.is_of_job, job=owner.job, uid=owner.uid)
                system.end_process(pid, END_S, meant)
            else:
                log.warning("job %d left %s on slot %d (%s)", owner.job, what, index, slot.type)


def refresh_marks(run: Path, gpus: Sequence[Gpu]) -> None:
    """After a publish: marks for exactly the slots of the map, set where nothing runs.

    A slot that has its mark keeps it: it may be a running job's.
    """
    node = Node(run, lambda: gpus, leftover="report")
    known = node.known
    if known is None:
        return
    with node.lock():
        uuids = {slot.uuid for slot in known.devices.values()}
        for mark in (run / "clean").iterdir():
            if mark.name not in uuids:
                mark.unlink()
        for slot in known.devices.values():
            pids = [i.pids for g in gpus for i in _all_devices(g) if i.uuid == slot.uuid]
            free = bool(pids) and not any(pids)
            if not node.is_clean(slot):
                node.mark(slot).write_text("clean\n" if free else "")


def refresh_job_map(run: Path) -> None:
    """After a publish: the job map's directory is there, without files of what is gone."""
    known = Node(run, lambda: ()).known
    if known is None or not known.job_map:
        return
    try:
        directory = Path(known.job_map)
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        for file in directory.iterdir():
            if slotmap.IN_JOB_MAP.fullmatch(file.name) and file.name not in known.mapped.values():
                file.unlink()
    except OSError as error:
        log.warning("the job map %s: %s", known.job_map, error.strerror)


def _device(index: int, slot: Slot, gpus: Sequence[Gpu]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Device files and processes of a slot, by the driver's word."""
    for device in (device for gpu in gpus for device in _all_devices(gpu)):
        if device.uuid == slot.uuid:
            return device.files, device.pids
    raise SlurmMigError(f"slot {index} ({slot.type} {slot.uuid}) does not exist")


@dataclass(frozen=True)
class _Device:
    """A device by the driver's word."""

    uuid: str
    files: tuple[str, ...]
    pids: tuple[int, ...]


def _all_devices(gpu: Gpu) -> Iterator[_Device]:
    """What of a GPU can be a slot: itself, its instances, or the parts of a split one."""
    if not gpu.mig:
        yield _Device(gpu.uuid, (gpu.file,), gpu.pids)
    for instance in gpu.instances:
        parts = tuple(instance.parts.values())
        for n, device in enumerate(instance_devices(gpu.index, instance)):
            pids = parts[n].pids if parts else instance.pids
            yield _Device(device.uuid, device.files, pids)


def _is_device(path: str) -> bool:
    try:
        return stat.S_ISCHR(os.stat(path).st_mode)
    except OSError:
        return False


def _own(slot: Slot, uid: int, mode: int) -> None:
    """The slot's capability files are this user's, with this mode. Parts share the file of their
    GPU instance: theirs alone is the compute instance's."""
    for file in slot.files[-1:] if slot.is_part else slot.files:
        if "/nvidia-cap" in file:
            try:
                os.chown(file, uid, -1)
                os.chmod(file, mode)
            except OSError as error:
                raise SlurmMigError(f"{file}: {error.strerror}") from error


def drain(node: str, why: str) -> None:
    """Drain the node with the reason. It is not a fence of ours: only a person lifts it."""
    reason = f"MIG fault (slurm-mig's prolog): {why}"
    try:
        subprocess.run(
            ["scontrol", "update", f"NodeName={node}", "State=DRAIN", f"Reason={reason}"],
            check=True, capture_output=True, timeout=FENCE_S, stdin=subprocess.DEVNULL,
            env=environment(),
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        # Slurm drains the node itself, as its prolog fails, with a reason that says less.
        log.error("draining %s failed: %s", node, error)


def main(words: Sequence[str], env: Mapping[str, str]) -> int:
    """`python -m slurm_mig.hooks NAME DIRECTORY`: one hook as tests and benchmark run it."""
    name, run = words[0], Path(words[1])
    node = Node(run, lambda: ())
    if name == "task_prolog":
        known = node.known
        for line in task_prolog(env, known) if known else []:
            print(line)
        return Exit.OK
    try:
        (node.prolog if name == "prolog" else node.epilog)(env)
    except SlurmMigError as error:
        print(f"slurm-mig: {error}", file=sys.stderr)
        return error.exit_code
    return Exit.OK


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
