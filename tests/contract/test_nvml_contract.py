"""What NVML does, through nvidia-ml-py: of the simulated library, and read-only of a real one."""

from __future__ import annotations

from collections.abc import Iterator
from ctypes import byref
from typing import Any

import pynvml
import pytest


def devices() -> Iterator[Any]:
    for index in range(pynvml.nvmlDeviceGetCount()):
        yield pynvml.nvmlDeviceGetHandleByIndex(index)


def mig_devices() -> Iterator[Any]:
    for device in devices():
        try:
            current, _ = pynvml.nvmlDeviceGetMigMode(device)
        except pynvml.NVMLError_NotSupported:
            continue
        if current:
            yield device


def profiles(device: Any) -> list[Any]:
    found = []
    for number in range(pynvml.NVML_GPU_INSTANCE_PROFILE_COUNT):
        try:
            found.append(pynvml.nvmlDeviceGetGpuInstanceProfileInfo(device, number))
        except pynvml.NVMLError_NotSupported:
            continue
    return found


def named(device: Any, name: str) -> Any:
    return next(p for p in profiles(device) if text(p.name) == f"MIG {name}")


def text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def placements(device: Any, profile: int) -> list[tuple[int, int]]:
    count = pynvml.c_uint(0)
    pynvml.nvmlDeviceGetGpuInstancePossiblePlacements(device, profile, None, byref(count))
    array = (pynvml.c_nvmlGpuInstancePlacement_t * count.value)()
    pynvml.nvmlDeviceGetGpuInstancePossiblePlacements(device, profile, array, byref(count))
    return [(p.start, p.size) for p in array[: count.value]]


def create(device: Any, profile: int, start: int, size: int) -> Any:
    where = pynvml.c_nvmlGpuInstancePlacement_t(start, size)
    return pynvml.nvmlDeviceCreateGpuInstanceWithPlacement(device, profile, byref(where))


def test_every_device_has_a_name_a_uuid_and_a_minor(nvml: list[str]) -> None:
    for device in devices():
        assert text(pynvml.nvmlDeviceGetName(device)).startswith("NVIDIA ")
        assert text(pynvml.nvmlDeviceGetUUID(device)).startswith("GPU-")
        assert pynvml.nvmlDeviceGetMinorNumber(device) >= 0


def test_a_gpu_without_mig_says_not_supported(nvml: list[str]) -> None:
    for device in devices():
        if "L40S" in text(pynvml.nvmlDeviceGetName(device)):
            with pytest.raises(pynvml.NVMLError_NotSupported):
                pynvml.nvmlDeviceGetMigMode(device)


def test_past_the_last_profile_number_is_an_invalid_argument(nvml: list[str]) -> None:
    for device in mig_devices():
        with pytest.raises(pynvml.NVMLError_InvalidArgument):
            pynvml.nvmlDeviceGetGpuInstanceProfileInfo(device, 0x40)


def test_a_profile_number_is_not_a_profile_id(nvml: list[str]) -> None:
    for device in mig_devices():
        first = pynvml.nvmlDeviceGetGpuInstanceProfileInfo(
            device, pynvml.NVML_GPU_INSTANCE_PROFILE_1_SLICE
        )
        assert first.id != pynvml.NVML_GPU_INSTANCE_PROFILE_1_SLICE
        assert first.sliceCount == 1


def test_every_profile_has_legal_placements_of_one_size(nvml: list[str]) -> None:
    for device in mig_devices():
        for profile in profiles(device):
            places = placements(device, profile.id)
            assert places
            assert len({size for _, size in places}) == 1


def test_an_unknown_index_is_an_invalid_argument(nvml: list[str]) -> None:
    with pytest.raises(pynvml.NVMLError_InvalidArgument):
        pynvml.nvmlDeviceGetHandleByIndex(4096)


def test_a_uuid_that_does_not_exist_is_not_found(nvml: list[str]) -> None:
    with pytest.raises(pynvml.NVMLError_NotFound):
        pynvml.nvmlDeviceGetHandleByUUID("MIG-00000000-0000-0000-0000-000000000000")


@pytest.mark.changes_gpus
def test_an_instance_at_an_exact_place(nvml: list[str]) -> None:
    device = pynvml.nvmlDeviceGetHandleByIndex(0)
    profile = named(device, "3g.20gb")
    instance = create(device, profile.id, 4, 4)
    info = pynvml.nvmlGpuInstanceGetInfo(instance)
    assert (info.placement.start, info.placement.size, info.profileId) == (4, 4, profile.id)
    assert pynvml.nvmlDeviceGetGpuInstanceRemainingCapacity(device, profile.id) == 1


@pytest.mark.changes_gpus
def test_an_occupied_place_and_an_illegal_one(nvml: list[str]) -> None:
    device = pynvml.nvmlDeviceGetHandleByIndex(0)
    create(device, named(device, "1g.5gb").id, 0, 1)
    with pytest.raises(pynvml.NVMLError_InsufficientResources):
        create(device, named(device, "3g.20gb").id, 0, 4)
    with pytest.raises(pynvml.NVMLError_InvalidArgument):
        create(device, named(device, "3g.20gb").id, 2, 4)


@pytest.mark.changes_gpus
def test_compute_slices_count_too(nvml: list[str]) -> None:
    device = pynvml.nvmlDeviceGetHandleByIndex(0)
    create(device, named(device, "4g.20gb").id, 0, 4)
    create(device, named(device, "3g.20gb").id, 4, 4)
    with pytest.raises(pynvml.NVMLError_InsufficientResources):
        pynvml.nvmlDeviceCreateGpuInstance(device, named(device, "1g.5gb").id)


@pytest.mark.changes_gpus
def test_an_instance_with_a_compute_instance_is_in_use(nvml: list[str]) -> None:
    device = pynvml.nvmlDeviceGetHandleByIndex(0)
    instance = create(device, named(device, "1g.5gb").id, 0, 1)
    compute = pynvml.nvmlGpuInstanceCreateComputeInstance(instance, 0)
    with pytest.raises(pynvml.NVMLError_InUse):
        pynvml.nvmlGpuInstanceDestroy(instance)
    pynvml.nvmlComputeInstanceDestroy(compute)
    pynvml.nvmlGpuInstanceDestroy(instance)
    with pytest.raises(pynvml.NVMLError_NotFound):
        pynvml.nvmlGpuInstanceGetInfo(instance)


@pytest.mark.changes_gpus
def test_the_uuid_comes_back_with_the_placement(nvml: list[str]) -> None:
    device = pynvml.nvmlDeviceGetHandleByIndex(0)
    seen = set()
    for _ in range(2):
        instance = create(device, named(device, "2g.10gb").id, 0, 2)
        compute = pynvml.nvmlGpuInstanceCreateComputeInstance(instance, 1)
        mig = pynvml.nvmlComputeInstanceGetInfo(compute).device
        seen.add(text(pynvml.nvmlDeviceGetUUID(mig)))
        assert text(pynvml.nvmlDeviceGetName(mig)).endswith("MIG 2g.10gb")
        pynvml.nvmlComputeInstanceDestroy(compute)
        pynvml.nvmlGpuInstanceDestroy(instance)
    assert len(seen) == 1


@pytest.mark.changes_gpus
@pytest.mark.parametrize(("index", "gis"), [(0, [11, 12, 13, 7, 8, 9, 10]), (1, None)])
def test_the_drivers_own_order(nvml: list[str], index: int, gis: list[int] | None) -> None:
    """7 x 1g: GPU instances 11,12,13 and 7 to 10 on one kind of board, flipped on the other."""
    device = pynvml.nvmlDeviceGetHandleByIndex(index)
    profile = named(device, "1g.5gb").id
    made = [pynvml.nvmlDeviceCreateGpuInstance(device, profile) for _ in range(7)]
    infos = [pynvml.nvmlGpuInstanceGetInfo(i) for i in made]
    assert [i.placement.start for i in infos] == [6, 4, 5, 0, 1, 2, 3]
    expected = {0: [13, 11, 12, 7, 8, 9, 10], 1: [9, 7, 8, 11, 12, 13, 14]}
    assert [i.id for i in infos] == expected[index]
    assert gis is None or sorted(gis) == sorted(i.id for i in infos)
    with pytest.raises(pynvml.NVMLError_InsufficientResources):
        pynvml.nvmlDeviceCreateGpuInstance(device, profile)
