"""What goes wrong half way, one test for each: where it ends, and what is said."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from slurm_mig.adapters.gpus import NvmlGpus
from slurm_mig.adapters.system import RealClock
from slurm_mig.core.layouts import Cut, Wanted, cuts_of, parse_inline
from slurm_mig.core.model import Gpu, Placement, Profile
from slurm_mig.errors import GpuError, LeftOverError, SlurmMigError, UnreachableError
from slurm_mig.relayout import Relayout
from slurm_mig.restore import started
from tests.contract.nvml.conftest import Opened
from tests.testbed.nvml_sim import GpuSpec, Simulator

A100 = "NVIDIA A100-SXM4-40GB"
CREATE = "nvmlDeviceCreateGpuInstanceWithPlacement"
BACK = "every GPU is again as it was"

pytestmark = pytest.mark.changes_gpus


def cuts(gpus: NvmlGpus, index: int = 0) -> list[str]:
    return sorted(map(str, cuts_of(gpus.gpu(index))))


def apply(gpus: NvmlGpus, *words: str) -> None:
    Relayout(gpus).apply(parse_inline(words, gpus.inventory()))


@pytest.fixture
def gpus(opened: Opened) -> NvmlGpus:
    """An A100 with 3g.20gb@4 and 2g.10gb@0, and an empty one."""
    gpus: NvmlGpus = opened(GpuSpec(A100, mig=True), GpuSpec(A100, mig=True))
    apply(gpus, "gpu0=3g.20gb@4,2g.10gb@0")
    return gpus


BEFORE = ["2g.10gb@0", "3g.20gb@4"]


def test_in_use_for_tenths_of_a_second_is_waited_out(sim: Simulator, gpus: NvmlGpus) -> None:
    sim.fault("nvmlComputeInstanceDestroy", "IN_USE", for_ms=150)
    sim.fault("nvmlGpuInstanceDestroy", "IN_USE", for_ms=250)
    apply(gpus, "gpu0=1g.5gb*7")
    assert len(cuts(gpus)) == 7


def test_an_instance_that_stays_in_use_gets_its_compute_instance_back(
    sim: Simulator, gpus: NvmlGpus
) -> None:
    """The compute instance is gone, the GPU instance cannot go: a half-destroyed state."""
    sim.fault("nvmlGpuInstanceDestroy", "IN_USE", times=-1)
    with pytest.raises(GpuError, match=rf"destroying GPU instance .*In use.*{BACK}"):
        apply(gpus, "gpu0=1g.5gb*7")
    assert cuts(gpus) == BEFORE
    assert all(i.uuid for i in gpus.gpu(0).instances)


def test_a_success_that_left_everything_there_is_tried_again(
    sim: Simulator, gpus: NvmlGpus
) -> None:
    sim.fault("nvmlGpuInstanceDestroy", "LIE", times=2)
    apply(gpus, "gpu0=4g.20gb,3g.20gb")
    assert cuts(gpus) == ["3g.20gb@4", "4g.20gb@0"]


def test_a_remnant_that_never_goes_is_said_and_undone(sim: Simulator, gpus: NvmlGpus) -> None:
    sim.fault("nvmlGpuInstanceDestroy", "LIE", times=-1)
    with pytest.raises(GpuError, match=rf"is destroyed, but it is still there; {BACK}") as raised:
        apply(gpus, "gpu0=4g.20gb,3g.20gb")
    assert "DCGM" in raised.value.hint
    assert cuts(gpus) == BEFORE


def test_a_creation_that_fails_is_undone_on_every_gpu(sim: Simulator, gpus: NvmlGpus) -> None:
    sim.fault(CREATE, "UNKNOWN", gpu=1)
    with pytest.raises(GpuError, match=f"creating 7g.40gb@0 on GPU 1: Unknown Error; {BACK}"):
        apply(gpus, "gpu0=1g.5gb*7", "gpu1=7g.40gb")
    assert cuts(gpus) == BEFORE
    assert cuts(gpus, 1) == []


def test_a_compute_instance_that_cannot_be_made_leaves_no_gpu_instance(
    sim: Simulator, gpus: NvmlGpus
) -> None:
    sim.fault("nvmlGpuInstanceCreateComputeInstance", "INSUFFICIENT_RESOURCES", gpu=1)
    with pytest.raises(GpuError, match=BACK):
        apply(gpus, "gpu1=1c.3g.20gb*3,2g.10gb")
    assert cuts(gpus, 1) == []


class Intruder(NvmlGpus):
    """Another actor makes an instance just before ours."""

    def create(self, gpu: int, placement: Placement, split: Sequence[int] = ()) -> None:
        if not self.gpu(gpu).instances:
            super().create(gpu, Placement(0, 1, "1g.5gb"))
        super().create(gpu, placement, split)


def test_anothers_instance_in_the_way_stays(gpus: NvmlGpus, tmp_path: Path) -> None:
    other = Intruder(str(tmp_path / "dev" / "nvidia-caps"), str(tmp_path / "proc"))
    with pytest.raises(GpuError, match=f"Insufficient Resources; {BACK}") as raised:
        apply(other, "gpu1=3g.20gb@0")
    assert "Another instance is in the way" in raised.value.hint
    assert cuts(gpus, 1) == ["1g.5gb@0"]
    other.close()


@pytest.mark.parametrize(
    ("code", "words"), [("GPU_IS_LOST", "GPU is lost"), ("DRIVER_NOT_LOADED", "Driver Not Loaded")]
)
def test_a_gpu_or_driver_that_is_lost_meanwhile_is_said_to_be_left(
    sim: Simulator, gpus: NvmlGpus, code: str, words: str
) -> None:
    """And when it is there again, the same command goes on from what was left."""
    sim.fault("*", code, gpu=0, times=-1, after=sim_calls(sim, gpus))
    with pytest.raises(LeftOverError, match=rf"could not be undone: GPU 0: .*{words}") as left:
        apply(gpus, "gpu0=1g.5gb*7")
    assert "it had 2g.10gb@0, 3g.20gb@4; what it has now cannot be read" in str(left.value)
    assert left.value.exit_code == 6
    sim.clear_faults()
    apply(gpus, "gpu0=1g.5gb*7")
    assert len(cuts(gpus)) == 7


def sim_calls(sim: Simulator, gpus: NvmlGpus) -> int:
    """Calls about GPU 0 until the change begins, and a few more: it is lost in the middle."""
    before = sim.dump()["calls"]
    gpus.gpu(0)
    return 3 * (sim.dump()["calls"] - before) + 12


def test_a_lost_gpu_does_not_hide_the_others(sim: Simulator, gpus: NvmlGpus) -> None:
    sim.fault("*", "GPU_IS_LOST", gpu=0, times=-1)
    seen, faults = gpus.survey()
    assert [gpu.index for gpu in seen] == [1]
    assert "GPU is lost" in faults[0]


def test_no_permission(sim: Simulator, gpus: NvmlGpus) -> None:
    sim.fault("nvmlComputeInstanceDestroy", "NO_PERMISSION", times=-1)
    with pytest.raises(GpuError, match=f"Insufficient Permissions; {BACK}") as raised:
        apply(gpus, "gpu0=7g.40gb")
    assert raised.value.hint == "MIG is changed by root only."
    assert cuts(gpus) == BEFORE


def test_without_a_driver(sim: Simulator, tmp_path: Path) -> None:
    with pytest.raises(UnreachableError, match="Driver Not Loaded"):
        NvmlGpus(str(tmp_path / "caps"), str(tmp_path / "proc"))


def test_a_driver_that_is_not_loaded_yet(sim: Simulator, gpus: NvmlGpus, tmp_path: Path) -> None:
    """As at boot: nothing is touched, and it is there a moment later."""
    sim.fault("nvmlInit", "DRIVER_NOT_LOADED", for_ms=200)
    started_at = time.monotonic()
    other = started(lambda: NvmlGpus(proc=str(tmp_path / "proc")), RealClock(), 10)
    assert time.monotonic() - started_at >= 0.2
    assert [cut for gpu in other.inventory() for cut in cuts_of(gpu)]
    other.close()
    sim.fault("nvmlInit", "DRIVER_NOT_LOADED", times=-1)
    with pytest.raises(UnreachableError, match="Driver Not Loaded"):
        started(lambda: NvmlGpus(proc=str(tmp_path / "proc")), RealClock(), 0)
    assert cuts(gpus) == BEFORE


def test_no_handle_outlives_a_change(gpus: NvmlGpus) -> None:
    """What the adapter keeps is plain data, so that no handle can be used after what it meant."""
    gpus.inventory()
    apply(gpus, "gpu0=1c.3g.20gb@4*3,1g.5gb@0")
    kept: list[object] = [vars(gpus)]
    while kept:
        value = kept.pop()
        if isinstance(value, (dict, list, tuple)):
            kept += [*value, *(value.values() if isinstance(value, dict) else ())]
        elif isinstance(value, Profile):
            kept += [getattr(value, name) for name in Profile.__dataclass_fields__]
        else:
            assert value is None or isinstance(value, (str, int, float, Path)), value


def test_a_leaked_handle_keeps_the_instance_and_nothing_is_lost(
    sim: Simulator, opened: Opened
) -> None:
    """A daemon that NVML does not list as a process, DCGM's leak."""
    gpus = opened(GpuSpec(A100, mig=True))
    apply(gpus, "gpu0=3g.20gb@4,2g.10gb@0")
    (gi,) = [i.gi for i in gpus.gpu(0).instances if i.placement.start == 4]
    sim.add_process(os.getpid(), 0, gi, hidden=True)
    with pytest.raises(GpuError, match=f"In use by another client; {BACK}") as raised:
        apply(gpus, "gpu0=4g.20gb,2g.10gb@4")
    assert "check" in raised.value.hint
    assert cuts(gpus) == BEFORE


def test_slow_calls_are_waited_for(sim: Simulator, gpus: NvmlGpus) -> None:
    sim.fault(CREATE, "SLOW", times=2, delay_ms=200)
    apply(gpus, "gpu1=3g.20gb*2")
    assert cuts(gpus, 1) == ["3g.20gb@0", "3g.20gb@4"]


def test_a_change_that_was_killed_half_way_is_finished_by_the_next(gpus: NvmlGpus) -> None:
    class KilledError(Exception):
        pass

    class Dying:
        """Every change goes through, and the process dies after the n-th."""

        def __init__(self, real: NvmlGpus, steps: int) -> None:
            self.real, self.steps = real, steps

        def inventory(self) -> tuple[Gpu, ...]:
            return self.real.inventory()

        def gpu(self, index: int) -> Gpu:
            return self.real.gpu(index)

        def create(self, gpu: int, placement: Placement, split: Sequence[int] = ()) -> None:
            self.real.create(gpu, placement, split)
            self._step()

        def split(self, gpu: int, gi: int, split: Sequence[int] = ()) -> None:
            self.real.split(gpu, gi, split)
            self._step()

        def destroy(self, gpu: int, gi: int) -> None:
            self.real.destroy(gpu, gi)
            self._step()

        def set_mode(self, gpu: int, *, on: bool, keep_pending: bool = False) -> None:
            self.real.set_mode(gpu, on=on, keep_pending=keep_pending)
            self._step()

        def _step(self) -> None:
            self.steps -= 1
            if not self.steps:
                raise KilledError

    wanted: Mapping[int, Wanted] = parse_inline(["gpu0=1g.5gb*7"], gpus.inventory())
    for steps in range(1, 9):
        with pytest.raises(KilledError):
            Relayout(Dying(gpus, steps)).apply(wanted)
        apply(gpus, "gpu0=1g.5gb*7")
        assert len(cuts(gpus)) == 7
        apply(gpus, "gpu0=3g.20gb@4,2g.10gb@0")
        assert cuts(gpus) == BEFORE


def test_mode_and_layout_are_undone_together(sim: Simulator, opened: Opened) -> None:
    gpus = opened(GpuSpec("NVIDIA H100 80GB HBM3"), GpuSpec("NVIDIA H100 80GB HBM3"))
    sim.fault(CREATE, "UNKNOWN", gpu=1)
    with pytest.raises(GpuError, match=BACK):
        apply(gpus, "all=1g.10gb*7")
    assert [(gpu.mig, gpu.mig_pending) for gpu in gpus.inventory()] == [(False, False)] * 2


def test_an_old_driver_tells_its_profiles_after_the_mode(opened: Opened) -> None:
    gpus = opened(GpuSpec(A100), driver="525.147.05")
    with pytest.raises(SlurmMigError, match=f"has no profile 3g.40gb.*{BACK}"):
        apply(gpus, "gpu0=3g.40gb")
    assert not gpus.gpu(0).mig
    apply(gpus, "gpu0=3g.20gb,1g.5gb")
    assert len(cuts(gpus)) == 2


def test_a_driver_without_names_is_understood(
    sim: Simulator, gpus: NvmlGpus, tmp_path: Path
) -> None:
    """Before R510 the profile structure has no name; the rule makes the same one."""
    named = [p.name for p in gpus.gpu(0).profiles]
    calls = sim.dump()["calls"]
    sim.fault("nvmlDeviceGetGpuInstanceProfileInfoV", "FUNCTION_NOT_FOUND", times=-1)
    old = NvmlGpus(str(tmp_path / "dev" / "nvidia-caps"), str(tmp_path / "proc"))
    assert [p.name for p in old.gpu(0).profiles] == named
    assert sim.dump()["calls"] > calls
    old.close()


def test_a_split_is_made_again_in_place(sim: Simulator, gpus: NvmlGpus) -> None:
    made = sim.dump()["created"]
    apply(gpus, "gpu0=1c.3g.20gb*2,2g.10gb")
    assert cuts(gpus) == ["1c+1c.3g.20gb@4", "2g.10gb@0"]
    assert sim.dump()["created"] == made
    assert Cut(Placement(4, 4, "3g.20gb"), (1, 1)) in cuts_of(gpus.gpu(0))
