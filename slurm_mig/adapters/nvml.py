"""NVML's calling conventions, in one place: errors, counted arrays, versions of structures.

For adapters/gpus.py only. Never keeps a handle: they do not outlive a change of the GPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from ctypes import byref
from functools import partial
from typing import Any, TypeVar

import pynvml

from slurm_mig.core import profiles
from slurm_mig.core.model import Profile
from slurm_mig.errors import BusyError, GpuError, UnreachableError

T = TypeVar("T")

PROFILE_ENUM_END = 0x40
"""A bound for the walk over GPU instance profile numbers (0x11 is the last in API 13.615). The
driver ends it earlier, with INVALID_ARGUMENT."""

MOST_PLACEMENTS = 16
"""Room for one profile's placements in the first call; a driver that has more says so."""

RETRY_S = 5.0
"""How long IN_USE is retried: the driver lets go of an instance some tenths of a second after
its last process or compute instance ended."""

RESETLESS_FIELD = 184
"""NVML_FI_DEV_IS_RESETLESS_MIG_SUPPORTED (nvml.h; older nvidia-ml-py does not name it)."""

_GONE = frozenset({pynvml.NVML_ERROR_NOT_FOUND, pynvml.NVML_ERROR_NOT_SUPPORTED})

_NO_DRIVER = frozenset(
    {
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
        pynvml.NVML_ERROR_LIBRARY_NOT_FOUND,
        pynvml.NVML_ERROR_UNINITIALIZED,
        pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
    }
)

_HINTS = {
    pynvml.NVML_ERROR_NO_PERMISSION: "MIG is changed by root only.",
    pynvml.NVML_ERROR_GPU_IS_LOST: "The GPU has fallen off the bus: see dmesg for its Xid, reset "
    "it (nvidia-smi --gpu-reset) or reboot the node.",
    pynvml.NVML_ERROR_RESET_REQUIRED: "The GPU wants a reset: nvidia-smi --gpu-reset -i N.",
    pynvml.NVML_ERROR_IN_USE: "`slurm-mig check` on the node says who has its device files open.",
    pynvml.NVML_ERROR_INSUFFICIENT_RESOURCES: "Another instance is in the way; `slurm-mig "
    "inventory` shows what is there now.",
}


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """NVML's exceptions as ours, saying what was being done."""
    try:
        yield
    except pynvml.NVMLError as error:
        if error.value in _NO_DRIVER:
            raise UnreachableError(
                f"{doing}: {error}", hint="Is the NVIDIA driver loaded? Try nvidia-smi."
            ) from error
        raise GpuError(
            f"{doing}: {error}", code=error.value, hint=_HINTS.get(error.value, "")
        ) from error


def text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def optional(call: Callable[[], T]) -> T | None:
    """The call's value, None when the GPU or the driver says that there is no such thing."""
    try:
        return call()
    except pynvml.NVMLError as error:
        if error.value in (
            *_GONE,
            pynvml.NVML_ERROR_INVALID_ARGUMENT,
            pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
        ):
            return None
        raise


def patiently(call: Callable[[], T], retry_s: float = RETRY_S) -> T:
    """Repeat a call that NVML answers with IN_USE, for `retry_s` seconds at most."""
    deadline = time.monotonic() + retry_s
    pause = 0.01
    while True:
        try:
            return call()
        except pynvml.NVMLError as error:
            if error.value != pynvml.NVML_ERROR_IN_USE or time.monotonic() > deadline:
                raise
        time.sleep(pause)
        pause = min(pause * 2, 0.5)


def mode_needs_reset(device: Any) -> bool:
    """The driver's word; drivers without that field (before R535) know Hopper at most."""
    value = optional(lambda: pynvml.nvmlDeviceGetFieldValues(device, [RESETLESS_FIELD]))
    if value is not None and value[0].nvmlReturn == pynvml.NVML_SUCCESS:
        return not value[0].value.uiVal
    architecture = optional(lambda: pynvml.nvmlDeviceGetArchitecture(device))
    return architecture is None or int(architecture) < pynvml.NVML_DEVICE_ARCH_HOPPER


Offered = tuple[int, Any, list[tuple[int, int]]]
"""A profile's number, NVML's structure, and its legal placements as start and size."""


def offered(device: Any) -> Iterator[Offered]:
    """Every GPU instance profile that the driver offers, also such as no table knows."""
    for number in range(PROFILE_ENUM_END):
        try:
            info = _profile_info(device, number)
            places = _placements(device, info.id)
        except pynvml.NVMLError as error:
            if error.value == pynvml.NVML_ERROR_INVALID_ARGUMENT:
                break
            if error.value not in _GONE:
                raise
        else:
            yield number, info, places


def _profile_info(device: Any, number: int) -> Any:
    try:
        return pynvml.nvmlDeviceGetGpuInstanceProfileInfo(device, number)
    except pynvml.NVMLError as error:
        if error.value != pynvml.NVML_ERROR_FUNCTION_NOT_FOUND:
            raise
        return pynvml.nvmlDeviceGetGpuInstanceProfileInfo(device, number, 1)


def profile_name(number: int, info: Any, total_bytes: int) -> str:
    """The driver's own, or (before R510, whose structure has none) the one that the rule makes."""
    if hasattr(info, "name"):
        return text(info.name).removeprefix("MIG ")
    return profiles.profile_name(number, int(info.sliceCount), int(info.memorySizeMB), total_bytes)


def profiles_of(device: Any, total_bytes: int) -> tuple[Profile, ...]:
    """What the driver offers, in our words."""
    return tuple(
        _profile(profile_name(number, info, total_bytes), info, places)
        for number, info, places in offered(device)
    )


def _profile(name: str, info: Any, places: Sequence[tuple[int, int]]) -> Profile:
    return Profile(
        name=name,
        id=int(info.id),
        compute_slices=int(info.sliceCount),
        size=places[0][1],
        starts=tuple(sorted(start for start, _ in places)),
        # The driver's instanceCount is wrong on some A30 (mig-parted hard-codes it there);
        # no more instances than legal placements can exist.
        max_count=min(int(info.instanceCount), len(places)),
        memory_mib=int(info.memorySizeMB),
    )


def _placements(device: Any, profile_id: int) -> list[tuple[int, int]]:
    count = pynvml.c_uint(MOST_PLACEMENTS)
    array = (pynvml.c_nvmlGpuInstancePlacement_t * MOST_PLACEMENTS)()
    call = pynvml.nvmlDeviceGetGpuInstancePossiblePlacements
    try:
        call(device, profile_id, array, byref(count))
    except pynvml.NVMLError as error:
        if error.value != pynvml.NVML_ERROR_INSUFFICIENT_SIZE:
            raise
        call(device, profile_id, None, byref(count))
        array = (pynvml.c_nvmlGpuInstancePlacement_t * count.value)()
        call(device, profile_id, array, byref(count))
    return [(int(array[i].start), int(array[i].size)) for i in range(count.value)]


def gpu_instances(device: Any, profile: Profile) -> list[Any]:
    """Handles of the GPU instances of one profile."""
    count = pynvml.c_uint(0)
    array = (pynvml.c_nvmlGpuInstance_t * max(profile.max_count, len(profile.starts)))()
    pynvml.nvmlDeviceGetGpuInstances(device, profile.id, array, byref(count))
    return [array[i] for i in range(count.value)]


ComputeProfile = tuple[int, int, int]
"""Id, compute slices, and the most of them in one GPU instance."""


def compute_profiles(instance: Any) -> tuple[ComputeProfile, ...]:
    """What a GPU instance can be split into; the last that is widest spans it."""
    shared = pynvml.NVML_COMPUTE_INSTANCE_ENGINE_PROFILE_SHARED
    call = pynvml.nvmlGpuInstanceGetComputeInstanceProfileInfo
    found = []
    for number in range(pynvml.NVML_COMPUTE_INSTANCE_PROFILE_COUNT):
        info = optional(partial(call, instance, number, shared, 1))
        if info is not None:
            found.append((int(info.id), int(info.sliceCount), max(int(info.instanceCount), 1)))
    return tuple(found)


def compute_instances(instance: Any, offered: Sequence[ComputeProfile]) -> list[Any]:
    """Handles of a GPU instance's compute instances."""
    found: list[Any] = []
    for ident, _, most in offered:
        count = pynvml.c_uint(0)
        array = (pynvml.c_nvmlComputeInstance_t * most)()
        pynvml.nvmlGpuInstanceGetComputeInstances(instance, ident, array, byref(count))
        found.extend(array[i] for i in range(count.value))
    return found


def processes(device: Any) -> list[tuple[int, int | None, int | None]]:
    """Compute and graphics processes of a GPU: pid, GPU instance and compute instance id."""
    calls = (
        pynvml.nvmlDeviceGetComputeRunningProcesses,
        pynvml.nvmlDeviceGetGraphicsRunningProcesses,
    )
    found = (process for call in calls for process in optional(partial(call, device)) or ())
    return [(int(p.pid), p.gpuInstanceId, p.computeInstanceId) for p in found]


def remnant(said: str) -> GpuError:
    """For a destruction that the driver calls done, and that left everything there."""
    return GpuError(
        f"{said} is destroyed, but it is still there",
        code=0,
        hint="Somebody holds a handle of it (DCGM is known for it): restart that daemon. "
        "`slurm-mig check` lists who has the device files open.",
    )


def mode_refusal(gpu: int, activation: int, *, current: bool, pending: bool) -> Exception:
    """Why the mode is not what was asked, what was left behind, and what to do."""
    word = {True: "on", False: "off"}
    if pending != current:
        left = f"it stays {word[current]}, and a change to {word[pending]} is pending"
    else:
        left = f"it stays {word[current]}, and nothing is pending"
    if activation == pynvml.NVML_ERROR_RESET_REQUIRED:
        return GpuError(
            f"GPU {gpu}: the MIG mode changes with a reset only, which the driver cannot do "
            f"here (a GPU passed through to a virtual machine); {left}",
            code=activation,
            hint="Reboot the virtual machine once the mode is pending."
            if pending != current
            else "Leave it pending and reboot the virtual machine.",
        )
    if activation in (pynvml.NVML_ERROR_IN_USE, pynvml.NVML_SUCCESS):
        return BusyError(
            f"GPU {gpu}: the MIG mode did not change, somebody holds the GPU whom NVML does not "
            f"list; {left}",
            hint="`slurm-mig check` on the node says who has its device files open.",
        )
    return GpuError(
        f"GPU {gpu}: the MIG mode did not change: {pynvml.nvmlErrorString(activation)}; {left}",
        code=activation,
    )
