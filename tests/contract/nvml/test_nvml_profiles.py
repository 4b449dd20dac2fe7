"""What NVML says of a GPU and of what it can hold, through pynvml only."""

from __future__ import annotations

import re
from collections.abc import Callable
from ctypes import byref
from pathlib import Path
from typing import Any

import pynvml
import pytest

from tests.contract.nvml.calls import (
    A100,
    L40S,
    changes_gpus,
    code_of,
    places,
    profiles,
    text,
)
from tests.testbed.nvml_sim import GpuSpec, Simulator

# -- the library -----------------------------------------------------------------------------------


@changes_gpus
def test_without_a_driver_init_says_so(sim: Simulator) -> None:
    assert code_of(pynvml.nvmlInit) == pynvml.NVML_ERROR_DRIVER_NOT_LOADED


@changes_gpus
def test_calls_after_the_last_shutdown_are_uninitialized(sim: Simulator, tmp_path: Path) -> None:
    sim.create([GpuSpec(L40S)], root=tmp_path)
    pynvml.nvmlInit()
    pynvml.nvmlInit()
    pynvml.nvmlShutdown()
    assert pynvml.nvmlDeviceGetCount() == 1
    pynvml.nvmlShutdown()
    assert code_of(pynvml.nvmlDeviceGetCount) == pynvml.NVML_ERROR_UNINITIALIZED


def test_errors_have_texts(gpu: Any) -> None:
    assert text(pynvml.nvmlErrorString(pynvml.NVML_ERROR_IN_USE)) == "In use by another client"
    assert text(pynvml.nvmlErrorString(pynvml.NVML_ERROR_NOT_FOUND)) == "Not Found"


def test_versions_are_numbers_with_dots(gpu: Any) -> None:
    assert re.fullmatch(r"\d+(\.\d+)+", text(pynvml.nvmlSystemGetDriverVersion()))
    assert re.fullmatch(r"\d+(\.\d+)+", text(pynvml.nvmlSystemGetNVMLVersion()))


# -- devices ---------------------------------------------------------------------------------------


def test_a_gpu_is_found_by_what_it_says_of_itself(gpu: Any) -> None:
    uuid = pynvml.nvmlDeviceGetUUID(gpu)
    bus = pynvml.nvmlDeviceGetPciInfo(gpu).busId
    assert text(uuid).startswith("GPU-")
    assert pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByUUID(uuid)) == uuid
    assert pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByPciBusId(bus)) == uuid
    assert not pynvml.nvmlDeviceIsMigDeviceHandle(gpu).value
    assert pynvml.nvmlDeviceGetMinorNumber(gpu) >= 0


def test_what_is_not_there_is_not_found(gpu: Any) -> None:
    past = pynvml.nvmlDeviceGetCount()
    none = "GPU-00000000-0000-0000-0000-000000000000"
    index = code_of(pynvml.nvmlDeviceGetHandleByIndex, past)
    assert index == pynvml.NVML_ERROR_INVALID_ARGUMENT
    assert code_of(pynvml.nvmlDeviceGetHandleByUUID, none) == pynvml.NVML_ERROR_NOT_FOUND


@changes_gpus
def test_a_gpu_without_mig_supports_no_mig_call(make: Callable[..., list[Any]]) -> None:
    gpu = make(GpuSpec(L40S))[0]
    not_supported = pynvml.NVML_ERROR_NOT_SUPPORTED
    assert code_of(pynvml.nvmlDeviceGetMigMode, gpu) == not_supported
    assert code_of(pynvml.nvmlDeviceSetMigMode, gpu, 1) == not_supported
    assert code_of(pynvml.nvmlDeviceGetGpuInstanceProfileInfo, gpu, 0) == not_supported
    assert pynvml.nvmlDeviceGetMaxMigDeviceCount(gpu) == 0
    assert pynvml.nvmlDeviceGetMemoryInfo(gpu).total >> 20 == 46068


@changes_gpus
def test_the_minor_number_need_not_be_the_index(make: Callable[..., list[Any]]) -> None:
    first, second = make(GpuSpec(A100, minor=1), GpuSpec(A100, minor=0))
    assert pynvml.nvmlDeviceGetMinorNumber(first) == 1
    assert pynvml.nvmlDeviceGetMinorNumber(second) == 0


# -- profiles --------------------------------------------------------------------------------------


def test_the_walk_over_profile_numbers_has_gaps_and_an_end(gpu: Any) -> None:
    """NOT_SUPPORTED: skip this number. INVALID_ARGUMENT: the end."""
    assert profiles(gpu)
    end = code_of(pynvml.nvmlDeviceGetGpuInstanceProfileInfo, gpu, 0x40)
    assert end == pynvml.NVML_ERROR_INVALID_ARGUMENT


def test_a_profile_number_is_not_its_id(gpu: Any) -> None:
    first = pynvml.nvmlDeviceGetGpuInstanceProfileInfo(
        gpu, pynvml.NVML_GPU_INSTANCE_PROFILE_1_SLICE
    )
    assert first.id in (19, 14)
    assert first.sliceCount == 1
    by_id = pynvml.nvmlDeviceGetGpuInstanceProfileInfoById(gpu, first.id)
    assert by_id.name == first.name


def test_both_versions_of_a_profile_agree(gpu: Any) -> None:
    new = pynvml.nvmlDeviceGetGpuInstanceProfileInfo(gpu, 0)
    old = pynvml.nvmlDeviceGetGpuInstanceProfileInfo(gpu, 0, version=1)
    for field, _ in old._fields_:
        assert getattr(old, field) == getattr(new, field)


def test_another_version_of_the_structure_is_a_mismatch(gpu: Any) -> None:
    info = pynvml.c_nvmlGpuInstanceProfileInfo_v2_t()
    info.version = 0x07000098
    call = pynvml._nvmlGetFunctionPointer("nvmlDeviceGetGpuInstanceProfileInfoV")
    assert call(gpu, 0, byref(info)) == pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH


def test_profile_names_say_slices_memory_and_attribute(gpu: Any) -> None:
    for info in profiles(gpu):
        assert re.fullmatch(
            rf"MIG {info.sliceCount}g\.\d+gb(\+me|\+me\.all|\+gfx|-me)?", text(info.name)
        )


def test_placements_are_legal_ones_not_free_ones(gpu: Any) -> None:
    for info in profiles(gpu):
        found = places(gpu, info.id)
        sizes = {size for _, size in found}
        assert len(sizes) == 1
        assert all(start % min(sizes) == 0 or min(sizes) == 1 for start, _ in found)


@changes_gpus
def test_placements_do_not_depend_on_what_is_there(gpu: Any) -> None:
    for info in profiles(gpu):
        before = places(gpu, info.id)
        gi = pynvml.nvmlDeviceCreateGpuInstance(gpu, info.id)
        assert places(gpu, info.id) == before
        pynvml.nvmlGpuInstanceDestroy(gi)


@changes_gpus
@pytest.mark.parametrize(("driver", "known"), [("535.183.06", 0), ("580.95.05", 1)])
def test_older_drivers_know_no_profiles_while_mig_is_off(
    make: Callable[..., list[Any]], driver: str, known: int
) -> None:
    gpu = make(GpuSpec(A100), driver=driver)[0]
    field = pynvml.nvmlDeviceGetFieldValues(
        gpu, [pynvml.NVML_FI_DEV_IS_MIG_MODE_INDEPENDENT_MIG_QUERY_CAPABLE]
    )[0]
    assert field.value.uiVal == known
    expected = 0 if known else pynvml.NVML_ERROR_NOT_SUPPORTED
    assert code_of(pynvml.nvmlDeviceGetGpuInstanceProfileInfo, gpu, 0) == expected
    remaining = code_of(pynvml.nvmlDeviceGetGpuInstanceRemainingCapacity, gpu, 19)
    assert remaining == pynvml.NVML_ERROR_NOT_SUPPORTED
