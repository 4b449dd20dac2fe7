"""GPU instances and compute instances, through pynvml only."""

from __future__ import annotations

from collections.abc import Callable
from ctypes import byref
from typing import Any

import pynvml
import pytest

from tests.contract.nvml.calls import (
    A100,
    changes_gpus,
    code_of,
    create,
    create_at,
    gi_ids,
    mig_devices,
    places,
    profile,
    profiles,
    whole_compute,
)
from tests.testbed.nvml_sim import GpuSpec

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
