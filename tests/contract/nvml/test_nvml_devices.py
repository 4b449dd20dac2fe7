"""MIG devices and the MIG mode, through pynvml only."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pynvml

from tests.contract.nvml.calls import (
    A100,
    H100,
    UUID,
    changes_gpus,
    code_of,
    create,
    gi_ids,
    mig_devices,
    profile,
    profiles,
    text,
    whole_compute,
)
from tests.testbed.nvml_sim import GpuSpec, Simulator

# -- MIG devices -----------------------------------------------------------------------------------


@changes_gpus
def test_mig_devices_are_in_order_of_gpu_instance_then_compute_instance(a100: Any) -> None:
    late = create(a100, "1g.5gb", 0)
    early = create(a100, "3g.20gb", 4)
    without = create(a100, "1g.5gb", 1)
    whole_compute(late)
    for _ in range(2):
        pynvml.nvmlGpuInstanceCreateComputeInstance(early, 0)
    assert pynvml.nvmlGpuInstanceGetInfo(without).id == 8
    found = [
        (pynvml.nvmlDeviceGetGpuInstanceId(d), pynvml.nvmlDeviceGetComputeInstanceId(d))
        for d in mig_devices(a100)
    ]
    assert found == [(2, 0), (2, 1), (7, 0)]
    assert pynvml.nvmlDeviceGetMaxMigDeviceCount(a100) == 7


@changes_gpus
def test_a_mig_device_says_its_name_parent_memory_and_parts(gpu: Any) -> None:
    info = profiles(gpu)[0]
    whole_compute(pynvml.nvmlDeviceCreateGpuInstance(gpu, info.id))
    mig = mig_devices(gpu)[0]
    parent = pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(mig)
    attributes = pynvml.nvmlDeviceGetAttributes(mig)
    assert pynvml.nvmlDeviceIsMigDeviceHandle(mig).value
    assert pynvml.nvmlDeviceGetUUID(parent) == pynvml.nvmlDeviceGetUUID(gpu)
    name = f"{text(pynvml.nvmlDeviceGetName(gpu))} {text(info.name)}"
    assert text(pynvml.nvmlDeviceGetName(mig)) == name
    assert pynvml.nvmlDeviceGetMemoryInfo(mig).total >> 20 == info.memorySizeMB
    assert attributes.memorySizeMB == info.memorySizeMB
    assert attributes.multiprocessorCount == info.multiprocessorCount
    assert attributes.gpuInstanceSliceCount == info.sliceCount
    on_parent = code_of(pynvml.nvmlDeviceGetAttributes, gpu)
    assert on_parent == pynvml.NVML_ERROR_INVALID_ARGUMENT


@changes_gpus
def test_a_part_of_an_instance_is_named_with_its_compute_slices(a100: Any) -> None:
    pynvml.nvmlGpuInstanceCreateComputeInstance(create(a100, "3g.20gb"), 0)
    assert text(pynvml.nvmlDeviceGetName(mig_devices(a100)[0])) == f"{A100} MIG 1c.3g.20gb"


@changes_gpus
def test_a_mig_uuid_belongs_to_the_place_not_to_the_instance(a100: Any) -> None:
    """Made again at the same place, it has the same UUID: a UUID is no generation counter."""
    seen = []
    for name in ("3g.20gb", "3g.20gb", "4g.20gb"):
        gi = create(a100, name, 0)
        ci = whole_compute(gi)
        seen.append(text(pynvml.nvmlDeviceGetUUID(mig_devices(a100)[0])))
        pynvml.nvmlComputeInstanceDestroy(ci)
        pynvml.nvmlGpuInstanceDestroy(gi)
    assert len(set(seen)) == 1
    assert re.fullmatch(f"MIG-{UUID}", seen[0])


@changes_gpus
def test_a_mig_device_is_found_by_both_forms_of_its_uuid(a100: Any) -> None:
    gi = create(a100, "3g.20gb", 0)
    device = pynvml.nvmlComputeInstanceGetInfo(whole_compute(gi)).device
    uuid = text(pynvml.nvmlDeviceGetUUID(device))
    old = f"MIG-{text(pynvml.nvmlDeviceGetUUID(a100))}/1/0"
    for form in (uuid, old):
        found = pynvml.nvmlDeviceGetHandleByUUID(form)
        assert text(pynvml.nvmlDeviceGetUUID(found)) == uuid


# -- mode ------------------------------------------------------------------------------------------


def test_the_mode_is_current_and_pending(gpu: Any) -> None:
    assert set(pynvml.nvmlDeviceGetMigMode(gpu)) <= {0, 1}


@changes_gpus
def test_an_idle_gpu_changes_its_mode_at_once(make: Callable[..., list[Any]]) -> None:
    for gpu in make(GpuSpec(A100), GpuSpec(H100)):
        assert pynvml.nvmlDeviceSetMigMode(gpu, 1) == 0
        assert pynvml.nvmlDeviceGetMigMode(gpu) == [1, 1]
        assert pynvml.nvmlDeviceSetMigMode(gpu, 0) == 0
        assert pynvml.nvmlDeviceGetMigMode(gpu) == [0, 0]


@changes_gpus
def test_a_mode_change_destroys_nothing_and_stays_pending(a100: Any) -> None:
    """The call itself succeeds; its second code is IN_USE. Again when idle."""
    gi = create(a100, "1g.5gb")
    assert pynvml.nvmlDeviceSetMigMode(a100, 0) == pynvml.NVML_ERROR_IN_USE
    assert pynvml.nvmlDeviceGetMigMode(a100) == [1, 0]
    pynvml.nvmlGpuInstanceDestroy(gi)
    assert pynvml.nvmlDeviceSetMigMode(a100, 0) == 0
    assert pynvml.nvmlDeviceGetMigMode(a100) == [0, 0]


@changes_gpus
def test_only_hopper_and_later_change_the_mode_without_reset(
    make: Callable[..., list[Any]],
) -> None:
    field = pynvml.NVML_FI_DEV_IS_RESETLESS_MIG_SUPPORTED
    gpus = make(GpuSpec(A100), GpuSpec(H100))
    values = [pynvml.nvmlDeviceGetFieldValues(g, [field])[0].value.uiVal for g in gpus]
    assert values == [0, 1]


@changes_gpus
def test_after_a_boot_instances_are_gone_and_the_mode_on_hopper_too(
    sim: Simulator, make: Callable[..., list[Any]]
) -> None:
    ampere, hopper = make(GpuSpec(A100, mig=True), GpuSpec(H100, mig=True))
    old = create(ampere, "1g.5gb")
    create(hopper, "1g.10gb")
    sim.reboot()
    assert pynvml.nvmlDeviceGetMigMode(ampere) == [1, 1]
    assert pynvml.nvmlDeviceGetMigMode(hopper) == [0, 0]
    assert gi_ids(ampere, profile(ampere, "1g.5gb").id) == []
    assert code_of(pynvml.nvmlGpuInstanceGetInfo, old) == pynvml.NVML_ERROR_NOT_FOUND
