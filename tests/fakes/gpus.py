"""GPUs in memory that keep the driver's rules: what fits, what is in use, one change at a time.

For property tests over thousands of layouts; the simulated NVML says the same through pynvml.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from slurm_mig.core import geometry
from slurm_mig.core.layouts import Cut
from slurm_mig.core.model import ComputeInstance, Gpu, Instance, Placement
from slurm_mig.core.profiles import device_name
from slurm_mig.errors import GpuError


class FakeGpus:
    """The port `relayout.Gpus`. `fail_at` makes the n-th change from now fail, counted from 1."""

    def __init__(self, *gpus: Gpu, fail_at: int = 0) -> None:
        self._gpus = {gpu.index: gpu for gpu in gpus}
        self.fail_at = fail_at
        self.changes = 0
        self.touched: list[Placement] = []

    def inventory(self) -> tuple[Gpu, ...]:
        return tuple(self._gpus.values())

    def gpu(self, index: int) -> Gpu:
        return self._gpus[index]

    def create(self, gpu: int, placement: Placement, split: Sequence[int] = ()) -> None:
        self._step()
        now = self._gpus[gpu]
        if not now.mig or not geometry.fits(now, (*now.layout, placement)):
            raise GpuError(f"creating {placement}: Insufficient Resources", code=23)
        made = made_instance(now, Cut(placement, tuple(split)))
        self._gpus[gpu] = replace(now, instances=tuple(sorted_by_place((*now.instances, made))))

    def split(self, gpu: int, gi: int, split: Sequence[int] = ()) -> None:
        self._step()
        now = self._gpus[gpu]
        old = self._free(now, gi)
        made = made_instance(now, Cut(old.placement, tuple(split)))
        kept = [i for i in now.instances if i.gi != gi]
        self._gpus[gpu] = replace(now, instances=tuple(sorted_by_place((*kept, made))))

    def destroy(self, gpu: int, gi: int) -> None:
        self._step()
        now = self._gpus[gpu]
        self._free(now, gi)
        self._gpus[gpu] = replace(now, instances=tuple(i for i in now.instances if i.gi != gi))

    def set_mode(self, gpu: int, *, on: bool, keep_pending: bool = False) -> None:
        self._step()
        now = self._gpus[gpu]
        if now.mig != on and (now.instances or now.pids):
            raise GpuError("In use by another client", code=19)
        self._gpus[gpu] = replace(now, mig=on, mig_pending=on)

    def _free(self, gpu: Gpu, gi: int) -> Instance:
        found = next(i for i in gpu.instances if i.gi == gi)
        self.touched.append(found.placement)
        if found.pids:
            raise GpuError("In use by another client", code=19)
        return found

    def _step(self) -> None:
        self.changes += 1
        if self.changes == self.fail_at:
            raise GpuError("Unknown Error", code=999)


def sorted_by_place(instances: Sequence[Instance]) -> list[Instance]:
    return sorted(instances, key=lambda i: i.placement)


def made_instance(gpu: Gpu, cut: Cut, pids: tuple[int, ...] = ()) -> Instance:
    """An instance as the adapter would read it."""
    place = cut.placement
    profile = gpu.profile(place.profile)
    assert profile is not None
    gi = 100 * place.start + place.size
    computes = tuple(
        ComputeInstance(n, device_name(place.profile, width, profile.compute_slices), width,
                        f"MIG-{place}/{n}", 1000 + gi + n)
        for n, width in enumerate(cut.split or (profile.compute_slices,))
    )  # fmt: skip
    return Instance(place, gi, computes[0].uuid, gi, (gpu.file,), pids, len(computes), computes)


def with_cuts(gpu: Gpu, cuts: Sequence[Cut], busy: Sequence[Placement] = ()) -> Gpu:
    """The GPU in MIG mode with these instances; the busy ones held by a process."""
    made = [made_instance(gpu, c, (4711,) if c.placement in busy else ()) for c in cuts]
    pids = (4711,) if busy else ()
    return replace(
        gpu, mig=True, mig_pending=True, mig_capable=True, pids=pids,
        instances=tuple(sorted_by_place(made)),
    )  # fmt: skip
