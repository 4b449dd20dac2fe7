"""Who holds what, who may do what, and how the simulator misbehaves, through pynvml only."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pynvml

from tests.contract.nvml.calls import (
    A100,
    changes_gpus,
    code_of,
    create,
    gi_ids,
    mig_devices,
    profile,
    whole_compute,
)
from tests.testbed.nvml_sim import GpuSpec, Simulator

# -- processes -------------------------------------------------------------------------------------


def running(device: Any) -> list[tuple[int, Any, Any]]:
    found = pynvml.nvmlDeviceGetComputeRunningProcesses(device)
    return [(p.pid, p.gpuInstanceId, p.computeInstanceId) for p in found]


@changes_gpus
def test_a_process_is_seen_on_its_instance_and_on_the_gpu(sim: Simulator, a100: Any) -> None:
    for start in (0, 1):
        whole_compute(create(a100, "1g.5gb", start))
    sim.add_process(os.getpid(), 0, 8)
    first, second = mig_devices(a100)
    assert running(a100) == running(second) == [(os.getpid(), 8, 0)]
    assert running(first) == []
    assert pynvml.nvmlDeviceGetGraphicsRunningProcesses(a100) == []


@changes_gpus
def test_a_process_keeps_its_instance_from_being_destroyed(sim: Simulator, a100: Any) -> None:
    gi = create(a100, "1g.5gb", 0)
    ci = whole_compute(gi)
    sim.add_process(os.getpid(), 0, 7)
    assert code_of(pynvml.nvmlComputeInstanceDestroy, ci) == pynvml.NVML_ERROR_IN_USE
    other = create(a100, "1g.5gb", 1)
    pynvml.nvmlGpuInstanceDestroy(other)
    sim.remove_process(os.getpid())
    pynvml.nvmlComputeInstanceDestroy(ci)


@changes_gpus
def test_a_dead_process_holds_nothing(sim: Simulator, a100: Any) -> None:
    ci = whole_compute(create(a100, "1g.5gb", 0))
    with subprocess.Popen(["sleep", "60"]) as sleeper:
        sim.add_process(sleeper.pid, 0, 7)
        assert len(running(a100)) == 1
        sleeper.kill()
    assert running(a100) == []
    pynvml.nvmlComputeInstanceDestroy(ci)


@changes_gpus
def test_the_first_instance_waits_for_who_holds_the_gpu(sim: Simulator, a100: Any) -> None:
    sim.add_process(os.getpid(), 0)
    assert code_of(create, a100, "1g.5gb") == pynvml.NVML_ERROR_IN_USE
    sim.remove_process(os.getpid())
    create(a100, "1g.5gb")


# -- permissions and files -------------------------------------------------------------------------

AS_NOBODY = """
import ctypes, os, sys
lib = ctypes.CDLL(sys.argv[1])
os.setuid(65534)
device, out = ctypes.c_void_p(), ctypes.c_void_p()
assert lib.nvmlInit_v2() == 0
assert lib.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(device)) == 0
print(lib.nvmlDeviceCreateGpuInstance(device, 19, ctypes.byref(out)),
      lib.nvmlDeviceSetMigMode(device, 0, ctypes.byref(ctypes.c_uint())))
"""


@changes_gpus
def test_only_root_changes_anything(sim: Simulator, a100: Any) -> None:
    for file in (sim.state, sim.paths.libnvml):
        for parent in list(file.parents)[:-2]:
            parent.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-S", "-c", AS_NOBODY, str(sim.paths.libnvml)],
        check=True, capture_output=True, text=True, env=sim.environment(),
    )  # fmt: skip
    assert done.stdout.split() == [str(pynvml.NVML_ERROR_NO_PERMISSION)] * 2


@changes_gpus
def test_capability_files_come_and_go_and_nodes_only_come(
    sim: Simulator, make: Callable[..., list[Any]], tmp_path: Path
) -> None:
    """gi minor = 3 + 135*gpu + 9*gi, ci minor = that + 1 + ci; gpu is the device's minor number."""
    gpu = make(GpuSpec(A100, mig=True, minor=2))[0]
    caps = tmp_path / "proc/nvidia/capabilities/gpu2/mig"
    assert list(caps.iterdir()) == []
    gi = create(gpu, "3g.20gb", 4)
    ci = whole_compute(gi)
    told = "DeviceFileMinor: 291\nDeviceFileMode: 292\nDeviceFileModify: 1\n"
    assert (caps / "gi2/access").read_text() == told
    assert "DeviceFileMinor: 292\n" in (caps / "gi2/ci0/access").read_text()
    minors = (tmp_path / "proc/nvidia-caps/mig-minors").read_text().splitlines()
    assert "gpu2/gi2/access 291" in minors
    assert len(minors) == 2 + 32 * 15 * 9
    pynvml.nvmlComputeInstanceDestroy(ci)
    pynvml.nvmlGpuInstanceDestroy(gi)
    assert list(caps.iterdir()) == []
    node = (tmp_path / "dev/nvidia-caps/nvidia-cap291").stat()
    assert (os.major(node.st_rdev), os.minor(node.st_rdev)) == (508, 291)
    assert node.st_mode & 0o777 == 0o444
    assert (tmp_path / "dev/nvidia-caps/nvidia-cap1").stat().st_mode & 0o777 == 0o400


# -- the simulator's own: faults, delays, several processes ----------------------------------------


@changes_gpus
def test_an_injected_fault_hits_its_gpu_so_many_times(
    sim: Simulator, make: Callable[..., list[Any]]
) -> None:
    first, second = make(GpuSpec(A100, mig=True), GpuSpec(A100, mig=True))
    sim.fault("nvmlDeviceCreateGpuInstance", "IN_USE", gpu=1, times=2)
    create(first, "1g.5gb")
    for _ in range(2):
        assert code_of(create, second, "1g.5gb") == pynvml.NVML_ERROR_IN_USE
    create(second, "1g.5gb")
    assert sim.dump()["faults"] == []


@changes_gpus
def test_a_fault_is_for_every_version_of_a_call_and_no_other(sim: Simulator, a100: Any) -> None:
    sim.fault("nvmlDeviceGetCount", 15, times=-1)
    assert code_of(pynvml.nvmlDeviceGetCount) == pynvml.NVML_ERROR_GPU_IS_LOST
    assert code_of(pynvml.nvmlDeviceGetName, a100) == 0
    sim.clear_faults()
    assert pynvml.nvmlDeviceGetCount() == 1


@changes_gpus
def test_hardware_timing_takes_the_published_time(sim: Simulator, a100: Any) -> None:
    sim.timing("hardware")
    began = time.monotonic()
    create(a100, "1g.5gb")
    assert 0.16 <= time.monotonic() - began < 1


@changes_gpus
def test_what_another_process_makes_is_seen_here(sim: Simulator, a100: Any) -> None:
    """Also in a child that was forked with NVML running: it takes a lock of its own."""
    child = os.fork()
    if not child:
        os._exit(code_of(create, a100, "1g.5gb", 3))
    assert os.waitpid(child, 0)[1] == 0
    assert gi_ids(a100, profile(a100, "1g.5gb").id) == [10]
    assert sim.dump()["created"] == 1


@changes_gpus
def test_handles_end_with_the_last_shutdown(sim: Simulator, tmp_path: Path) -> None:
    sim.create([GpuSpec(A100)], root=tmp_path)
    pynvml.nvmlInit()
    old = pynvml.nvmlDeviceGetHandleByIndex(0)
    pynvml.nvmlShutdown()
    pynvml.nvmlInit()
    assert code_of(pynvml.nvmlDeviceGetName, old) == pynvml.NVML_ERROR_INVALID_ARGUMENT
    pynvml.nvmlShutdown()
