"""What pynvml leaves to its callers: counted arrays, return codes, walks. For tests only."""

from __future__ import annotations

from collections.abc import Callable
from ctypes import byref
from typing import Any

import pynvml
import pytest

A100 = "NVIDIA A100-SXM4-40GB"
H100 = "NVIDIA H100 80GB HBM3"
L40S = "NVIDIA L40S"

UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-5[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"

changes_gpus = pytest.mark.changes_gpus


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
