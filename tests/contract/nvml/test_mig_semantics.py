"""What NVML does, stated through pynvml only. Each test's name or docstring is the fact."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from ctypes import byref
from pathlib import Path
from typing import Any

import pynvml
import pytest

from tests.testbed.nvml_sim import GpuSpec, Simulator

A100 = "NVIDIA A100-SXM4-40GB"
H100 = "NVIDIA H100 80GB HBM3"
L40S = "NVIDIA L40S"

UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-5[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"

changes_gpus = pytest.mark.changes_gpus


# -- helpers: what pynvml leaves to its callers ----------------------------------------------------


def text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def code_of(call: Callable[..., object], *args: object) -> int:
    """The return code of a call: 0, or its exception's."""
    try:
        call(*args)
    except pynvml.NVMLError as error:
        return int(error.value)
    return 0


def profiles(gpu: Any) -> list[Any]:
    found = []
    for number in range(pynvml.NVML_GPU_INSTANCE_PROFILE_COUNT):
        try:
            found.append(pynvml.nvmlDeviceGetGpuInstanceProfileInfo(gpu, number))
        except pynvml.NVMLError as error:
            if error.value != pynvml.NVML_ERROR_NOT_SUPPORTED:
                raise
    return found


def profile(gpu: Any, name: str) -> Any:
    return next(p for p in profiles(gpu) if text(p.name) == f"MIG {name}")


def places(gpu: Any, profile_id: int) -> list[tuple[int, int]]:
    count = pynvml.c_uint(0)
    pynvml.nvmlDeviceGetGpuInstancePossiblePlacements(gpu, profile_id, None, byref(count))
    array = (pynvml.c_nvmlGpuInstancePlacement_t * count.value)()
    pynvml.nvmlDeviceGetGpuInstancePossiblePlacements(gpu, profile_id, array, byref(count))
    return [(p.start, p.size) for p in array]


def create_at(gpu: Any, profile_id: int, start: int, size: int) -> Any:
    place = pynvml.c_nvmlGpuInstancePlacement_t(start, size)
    return pynvml.nvmlDeviceCreateGpuInstanceWithPlacement(gpu, profile_id, byref(place))


def create(gpu: Any, name: str, start: int | None = None) -> Any:
    info = profile(gpu, name)
    if start is None:
        return pynvml.nvmlDeviceCreateGpuInstance(gpu, info.id)
    return create_at(gpu, info.id, start, places(gpu, info.id)[0][1])


def whole_compute(gi: Any) -> Any:
    """A compute instance as large as its GPU instance."""
    found = []
    for number in range(pynvml.NVML_COMPUTE_INSTANCE_PROFILE_COUNT):
        try:
            found.append(pynvml.nvmlGpuInstanceGetComputeInstanceProfileInfo(gi, number, 0))
        except pynvml.NVMLError as error:
            if error.value != pynvml.NVML_ERROR_NOT_SUPPORTED:
                raise
    widest = max(found, key=lambda p: int(p.sliceCount))
    return pynvml.nvmlGpuInstanceCreateComputeInstance(gi, widest.id)


def mig_devices(gpu: Any) -> list[Any]:
    found: list[Any] = []
    while True:
        try:
            found.append(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, len(found)))
        except pynvml.NVMLError as error:
            if error.value != pynvml.NVML_ERROR_NOT_FOUND:
                raise
            return found


def gi_ids(gpu: Any, profile_id: int) -> list[int]:
    count = pynvml.c_uint(0)
    array = (pynvml.c_nvmlGpuInstance_t * 16)()
    pynvml.nvmlDeviceGetGpuInstances(gpu, profile_id, array, byref(count))
    return [pynvml.nvmlGpuInstanceGetInfo(array[i]).id for i in range(count.value)]


@pytest.fixture
def make(
    sim: Simulator, tmp_path: Path, request: pytest.FixtureRequest
) -> Callable[..., list[Any]]:
    """Makes a node of these GPUs, starts NVML, gives the handles."""

    def made(*gpus: GpuSpec, **options: Any) -> list[Any]:
        sim.create(gpus, root=tmp_path, **options)
        request.getfixturevalue("nvml")
        return [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(len(gpus))]

    return made


@pytest.fixture
def a100(make: Callable[..., list[Any]]) -> Any:
    return make(GpuSpec(A100, mig=True))[0]


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


# -- GPU instances ---------------------------------------------------------------------------------


@changes_gpus
def test_a_full_gpu_takes_as_many_as_the_profile_says(gpu: Any) -> None:
    for info in profiles(gpu):
        capacity = pynvml.nvmlDeviceGetGpuInstanceRemainingCapacity
        handles = []
        for left in range(info.instanceCount, 0, -1):
            assert capacity(gpu, info.id) >= left
            handles.append(pynvml.nvmlDeviceCreateGpuInstance(gpu, info.id))
        assert capacity(gpu, info.id) == 0
        full = code_of(pynvml.nvmlDeviceCreateGpuInstance, gpu, info.id)
        assert full == pynvml.NVML_ERROR_INSUFFICIENT_RESOURCES
        assert len(gi_ids(gpu, info.id)) == info.instanceCount
        for handle in handles:
            pynvml.nvmlGpuInstanceDestroy(handle)


@changes_gpus
def test_every_legal_placement_can_be_had_on_an_empty_gpu(gpu: Any) -> None:
    for info in profiles(gpu):
        for start, size in places(gpu, info.id):
            gi = create_at(gpu, info.id, start, size)
            made = pynvml.nvmlGpuInstanceGetInfo(gi)
            assert (made.placement.start, made.placement.size) == (start, size)
            assert made.profileId == info.id
            pynvml.nvmlGpuInstanceDestroy(gi)


@changes_gpus
@pytest.mark.parametrize(
    ("layout", "starts", "ids"),
    [
        ("N", [6, 4, 5, 0, 1, 2, 3], [13, 11, 12, 7, 8, 9, 10]),
        ("F", [6, 4, 5, 0, 1, 2, 3], [9, 7, 8, 11, 12, 13, 14]),
    ],
)
def test_the_driver_places_by_its_own_order_and_boards_number_differently(
    make: Callable[..., list[Any]], layout: Any, starts: list[int], ids: list[int]
) -> None:
    gpu = make(GpuSpec(A100, mig=True, layout=layout))[0]
    made = [pynvml.nvmlGpuInstanceGetInfo(create(gpu, "1g.5gb")) for _ in range(7)]
    assert [m.placement.start for m in made] == starts
    assert [m.id for m in made] == ids


@changes_gpus
@pytest.mark.parametrize(("layout", "low", "high"), [("N", 1, 2), ("F", 2, 1)])
def test_halves_have_ids_1_and_2_whatever_their_profile(
    make: Callable[..., list[Any]], layout: Any, low: int, high: int
) -> None:
    gpu = make(GpuSpec(A100, mig=True, layout=layout))[0]
    assert pynvml.nvmlGpuInstanceGetInfo(create(gpu, "4g.20gb", 0)).id == low
    assert pynvml.nvmlGpuInstanceGetInfo(create(gpu, "3g.20gb", 4)).id == high


@changes_gpus
def test_an_occupied_place_is_insufficient_resources_an_illegal_one_invalid(a100: Any) -> None:
    info = profile(a100, "2g.10gb")
    create(a100, "2g.10gb", 2)
    insufficient = pynvml.NVML_ERROR_INSUFFICIENT_RESOURCES
    assert code_of(create_at, a100, info.id, 2, 2) == insufficient
    assert code_of(create_at, a100, info.id, 6, 2) == pynvml.NVML_ERROR_INVALID_ARGUMENT
    assert code_of(create_at, a100, info.id, 0, 4) == pynvml.NVML_ERROR_INVALID_ARGUMENT


@changes_gpus
def test_memory_slices_can_run_out_before_compute_slices(a100: Any) -> None:
    create(a100, "3g.20gb", 0)
    create(a100, "3g.20gb", 4)
    capacity = pynvml.nvmlDeviceGetGpuInstanceRemainingCapacity
    assert capacity(a100, profile(a100, "1g.5gb").id) == 0


@changes_gpus
def test_the_eighth_memory_slice_alone_is_of_no_use(a100: Any) -> None:
    """4g and three 1g at 4, 5, 6 use all seven compute slices; memory slice 7 stays free."""
    create(a100, "4g.20gb", 0)
    for start in (4, 5, 6):
        create(a100, "1g.5gb", start)
    assert code_of(create_at, a100, 19, 7, 1) == pynvml.NVML_ERROR_INVALID_ARGUMENT
    capacity = pynvml.nvmlDeviceGetGpuInstanceRemainingCapacity
    assert all(capacity(a100, p.id) == 0 for p in profiles(a100))


@changes_gpus
def test_one_instance_with_media_engines_a_gpu(a100: Any) -> None:
    create(a100, "1g.5gb+me", 0)
    again = code_of(create, a100, "1g.5gb+me", 1)
    assert again == pynvml.NVML_ERROR_INSUFFICIENT_RESOURCES
    create(a100, "1g.5gb", 1)


@changes_gpus
def test_order_matters_without_placements(a100: Any) -> None:
    """1g, 1g, 2g leave no half for a 3g; 3g first does."""
    for name in ("1g.5gb", "1g.5gb", "2g.10gb"):
        create(a100, name)
    assert code_of(create, a100, "3g.20gb") == pynvml.NVML_ERROR_INSUFFICIENT_RESOURCES


@changes_gpus
def test_an_unknown_profile_id_is_not_supported(a100: Any) -> None:
    made = code_of(pynvml.nvmlDeviceCreateGpuInstance, a100, 99)
    assert made == pynvml.NVML_ERROR_NOT_SUPPORTED


@changes_gpus
def test_without_mig_mode_nothing_can_be_created(make: Callable[..., list[Any]]) -> None:
    gpu = make(GpuSpec(A100))[0]
    assert code_of(create, gpu, "1g.5gb") == pynvml.NVML_ERROR_NOT_SUPPORTED


@changes_gpus
def test_an_instance_with_a_compute_instance_is_in_use(a100: Any) -> None:
    gi = create(a100, "2g.10gb")
    ci = whole_compute(gi)
    assert code_of(pynvml.nvmlGpuInstanceDestroy, gi) == pynvml.NVML_ERROR_IN_USE
    pynvml.nvmlComputeInstanceDestroy(ci)
    pynvml.nvmlGpuInstanceDestroy(gi)
    assert gi_ids(a100, profile(a100, "2g.10gb").id) == []


@changes_gpus
def test_handles_of_what_was_destroyed_are_refused(a100: Any) -> None:
    gi = create(a100, "2g.10gb", 0)
    ci = whole_compute(gi)
    mig = mig_devices(a100)[0]
    pynvml.nvmlComputeInstanceDestroy(ci)
    for call, handle in (
        (pynvml.nvmlDeviceGetUUID, mig),
        (pynvml.nvmlDeviceGetName, mig),
        (pynvml.nvmlDeviceGetAttributes, mig),
        (pynvml.nvmlComputeInstanceGetInfo, ci),
        (pynvml.nvmlComputeInstanceDestroy, ci),
    ):
        assert code_of(call, handle) == pynvml.NVML_ERROR_NOT_FOUND
    whole_compute(gi)
    assert code_of(pynvml.nvmlDeviceGetUUID, mig) == pynvml.NVML_ERROR_NOT_FOUND


@changes_gpus
def test_a_handle_does_not_become_its_successors(a100: Any) -> None:
    gi = create(a100, "2g.10gb", 0)
    pynvml.nvmlGpuInstanceDestroy(gi)
    create(a100, "2g.10gb", 0)
    assert code_of(pynvml.nvmlGpuInstanceGetInfo, gi) == pynvml.NVML_ERROR_NOT_FOUND
    assert code_of(pynvml.nvmlGpuInstanceDestroy, gi) == pynvml.NVML_ERROR_NOT_FOUND


@changes_gpus
def test_a_handle_of_the_wrong_kind_is_an_invalid_argument(a100: Any) -> None:
    gi = create(a100, "2g.10gb", 0)
    assert code_of(pynvml.nvmlDeviceGetName, gi) == pynvml.NVML_ERROR_INVALID_ARGUMENT
    assert code_of(pynvml.nvmlGpuInstanceGetInfo, a100) == pynvml.NVML_ERROR_INVALID_ARGUMENT
    assert code_of(pynvml.nvmlGpuInstanceGetInfo, None) == pynvml.NVML_ERROR_INVALID_ARGUMENT


# -- compute instances -----------------------------------------------------------------------------


def ci_counts(gi: Any) -> dict[int, int]:
    found = {}
    for number in range(pynvml.NVML_COMPUTE_INSTANCE_PROFILE_COUNT):
        try:
            info = pynvml.nvmlGpuInstanceGetComputeInstanceProfileInfo(gi, number, 0)
        except pynvml.NVMLError:
            continue
        found[info.id] = info.instanceCount
    return found


@changes_gpus
@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("1g.5gb", {0: 1}),
        ("1g.10gb", {7: 1}),
        ("2g.10gb", {0: 2, 1: 1}),
        ("3g.20gb", {0: 3, 1: 1, 2: 1}),
        ("4g.20gb", {0: 4, 1: 2, 3: 1}),
        ("7g.40gb", {0: 7, 1: 3, 2: 2, 3: 1, 4: 1}),
    ],
)
def test_compute_profiles_of_each_gpu_instance(a100: Any, name: str, counts: Any) -> None:
    assert ci_counts(create(a100, name)) == counts


@changes_gpus
def test_free_counts_of_compute_profiles_are_coupled(a100: Any) -> None:
    gi = create(a100, "4g.20gb")
    pynvml.nvmlGpuInstanceCreateComputeInstance(gi, 0)
    left = pynvml.nvmlGpuInstanceGetComputeInstanceRemainingCapacity
    assert [left(gi, n) for n in (0, 1, 3)] == [3, 1, 0]
    full = code_of(pynvml.nvmlGpuInstanceCreateComputeInstance, gi, 3)
    assert full == pynvml.NVML_ERROR_INSUFFICIENT_RESOURCES


@changes_gpus
def test_compute_instance_ids_are_the_lowest_free(a100: Any) -> None:
    gi = create(a100, "3g.20gb")
    made = [pynvml.nvmlGpuInstanceCreateComputeInstance(gi, 0) for _ in range(3)]
    assert [pynvml.nvmlComputeInstanceGetInfo(ci).id for ci in made] == [0, 1, 2]
    pynvml.nvmlComputeInstanceDestroy(made[1])
    again = pynvml.nvmlGpuInstanceCreateComputeInstance(gi, 0)
    assert pynvml.nvmlComputeInstanceGetInfo(again).id == 1


@changes_gpus
def test_a_compute_instance_can_be_placed(a100: Any) -> None:
    gi = create(a100, "4g.20gb")
    place = pynvml.c_nvmlComputeInstancePlacement_t(2, 2)
    with_place = pynvml.nvmlGpuInstanceCreateComputeInstanceWithPlacement
    info = pynvml.nvmlComputeInstanceGetInfo(with_place(gi, 1, byref(place)))
    assert (info.placement.start, info.placement.size) == (2, 2)
    full = code_of(with_place, gi, 1, byref(place))
    assert full == pynvml.NVML_ERROR_INSUFFICIENT_RESOURCES
    place.start = 1
    assert code_of(with_place, gi, 1, byref(place)) == pynvml.NVML_ERROR_INVALID_ARGUMENT


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
