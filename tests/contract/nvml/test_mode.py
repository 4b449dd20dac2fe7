"""Switching the MIG mode through our adapter: what it refuses, and what it leaves behind."""

from __future__ import annotations

import os

import pynvml
import pytest

from slurm_mig.adapters.gpus import NvmlGpus
from slurm_mig.core.model import Gpu, Placement
from slurm_mig.errors import BusyError, GpuError
from tests.contract.nvml.conftest import Opened
from tests.testbed.nvml_sim import GpuSpec, Simulator

A100 = "NVIDIA A100-SXM4-40GB"
H100 = "NVIDIA H100 80GB HBM3"
L40S = "NVIDIA L40S"

pytestmark = pytest.mark.changes_gpus


def mode(gpus: NvmlGpus, index: int = 0) -> tuple[bool, bool]:
    gpu = gpus.inventory()[index]
    return gpu.mig, gpu.mig_pending


@pytest.mark.parametrize("name", [A100, H100])
def test_on_and_off_again(opened: Opened, name: str) -> None:
    gpus = opened(GpuSpec(name))
    gpus.set_mode(0, on=True)
    assert mode(gpus) == (True, True)
    gpus.set_mode(0, on=False)
    assert mode(gpus) == (False, False)


def test_the_profiles_of_an_old_driver_come_with_the_mode(opened: Opened) -> None:
    gpus = opened(GpuSpec(A100), driver="535.183.06")
    assert gpus.inventory()[0].profiles == ()
    gpus.set_mode(0, on=True)
    assert len(gpus.inventory()[0].profiles) == 7


def test_what_is_so_already_is_left_alone_though_busy(sim: Simulator, opened: Opened) -> None:
    gpus = opened(GpuSpec(A100, mig=True))
    gpus.create(0, Placement(0, 4, "3g.20gb"))
    gpus.set_mode(0, on=True)
    assert sim.dump()["mode_changes"] == 0
    assert mode(gpus) == (True, True)


def test_instances_are_in_the_way(opened: Opened) -> None:
    gpus = opened(GpuSpec(H100, mig=True))
    gpus.create(0, Placement(0, 1, "1g.10gb"))
    gpus.create(0, Placement(4, 4, "3g.40gb"))
    with pytest.raises(BusyError, match=r"GPU 0: .*has instances: 1g.10gb, 3g.40gb; nothing"):
        gpus.set_mode(0, on=False)
    assert mode(gpus) == (True, True)
    assert len(gpus.inventory()[0].instances) == 2


def test_a_process_is_in_the_way_of_its_gpu_only(sim: Simulator, opened: Opened) -> None:
    gpus = opened(GpuSpec(H100), GpuSpec(H100))
    sim.add_process(os.getpid(), 0)
    with pytest.raises(BusyError, match=rf"processes hold it: {os.getpid()}; nothing"):
        gpus.set_mode(0, on=True)
    gpus.set_mode(1, on=True)
    assert [mode(gpus, n) for n in (0, 1)] == [(False, False), (True, True)]


def test_a_holder_that_nvml_does_not_list_leaves_nothing_pending(
    sim: Simulator, opened: Opened
) -> None:
    gpus = opened(GpuSpec(A100))
    sim.add_process(os.getpid(), 0, hidden=True)
    with pytest.raises(BusyError, match="whom NVML does not list; it stays off, and nothing is"):
        gpus.set_mode(0, on=True)
    assert mode(gpus) == (False, False)
    sim.remove_process(os.getpid())
    gpus.set_mode(0, on=True)


def test_a_virtual_machine_must_reboot(sim: Simulator, opened: Opened) -> None:
    gpus = opened(GpuSpec(A100, passthrough=True))
    with pytest.raises(GpuError, match="it stays off, and nothing is pending"):
        gpus.set_mode(0, on=True)
    assert mode(gpus) == (False, False)
    with pytest.raises(GpuError, match="a change to on is pending") as raised:
        gpus.set_mode(0, on=True, keep_pending=True)
    assert raised.value.code == pynvml.NVML_ERROR_RESET_REQUIRED
    assert mode(gpus) == (False, True)
    sim.reboot()
    assert mode(gpus) == (True, True)


def test_a_change_that_was_left_pending_is_taken_back(opened: Opened) -> None:
    gpus = opened(GpuSpec(A100, passthrough=True))
    with pytest.raises(GpuError):
        gpus.set_mode(0, on=True, keep_pending=True)
    gpus.set_mode(0, on=False)
    assert mode(gpus) == (False, False)


def test_a_gpu_without_mig(opened: Opened) -> None:
    gpus = opened(GpuSpec(L40S))
    with pytest.raises(GpuError, match=r"GPU 0 \(NVIDIA L40S\) cannot do MIG"):
        gpus.set_mode(0, on=True)


@pytest.mark.parametrize("code", ["NO_PERMISSION", "GPU_IS_LOST"])
def test_the_drivers_refusal_is_an_error(sim: Simulator, opened: Opened, code: str) -> None:
    gpus = opened(GpuSpec(A100))
    sim.fault("nvmlDeviceSetMigMode", code)
    with pytest.raises(GpuError, match="switching MIG on on GPU 0"):
        gpus.set_mode(0, on=True)
    assert mode(gpus) == (False, False)


def needs_reset(gpus: NvmlGpus) -> list[bool]:
    found: tuple[Gpu, ...] = gpus.inventory()
    return [gpu.mode_needs_reset for gpu in found]


def test_which_gpus_need_a_reset(sim: Simulator, opened: Opened) -> None:
    gpus = opened(GpuSpec(A100), GpuSpec(H100), GpuSpec("NVIDIA B200"), GpuSpec(L40S))
    assert needs_reset(gpus) == [True, False, False, False]
    # A driver that does not know the field: by architecture.
    sim.fault("nvmlDeviceGetFieldValues", "NOT_SUPPORTED", times=-1)
    assert needs_reset(gpus) == [True, False, False, False]
