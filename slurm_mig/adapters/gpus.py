"""NVML: the GPUs of this node. The only module that imports pynvml.

Runs on the GPU node as root. The driver is asked for everything: profiles, legal placements and
what is there; no table of GPU models is used. Handles never outlive one call.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import byref
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pynvml

from slurm_mig.core.model import Gpu, Instance, Placement, Profile
from slurm_mig.errors import BusyError, GpuError, UnreachableError

T = TypeVar("T")

PROFILE_ENUM_END = 0x20
"""One past any GPU instance profile enum that NVML has had (0x11 in API 13.615), with room."""

RETRY_S = 5.0
"""How long IN_USE is retried: the driver lets go of an instance some tenths of a second after
its last process or compute instance ended."""

RESETLESS_FIELD = 184
"""NVML_FI_DEV_IS_RESETLESS_MIG_SUPPORTED (nvml.h; older nvidia-ml-py does not name it)."""

_GONE = frozenset({pynvml.NVML_ERROR_NOT_FOUND, pynvml.NVML_ERROR_NOT_SUPPORTED})


@contextmanager
def _translated(doing: str) -> Iterator[None]:
    """NVML's exceptions as ours, saying what was being done."""
    try:
        yield
    except pynvml.NVMLError as error:
        if error.value in (
            pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
            pynvml.NVML_ERROR_LIBRARY_NOT_FOUND,
            pynvml.NVML_ERROR_UNINITIALIZED,
        ):
            raise UnreachableError(
                f"{doing}: {error}", hint="Is the NVIDIA driver loaded? Try nvidia-smi."
            ) from error
        raise GpuError(f"{doing}: {error}", code=error.value) from error


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _optional(call: Callable[[], T]) -> T | None:
    """The call's value, None when the GPU or the driver says that there is no such thing."""
    try:
        return call()
    except pynvml.NVMLError as error:
        if error.value in (*_GONE, pynvml.NVML_ERROR_INVALID_ARGUMENT):
            return None
        raise


class NvmlGpus:
    """The GPUs through NVML, initialised once for the life of the object.

    `proc` is where the driver's capability files are found, `caps_dir` its device nodes.
    """

    def __init__(self, caps_dir: str = "/dev/nvidia-caps", proc: str = "/proc/driver") -> None:
        self.caps_dir = caps_dir
        self._minors_file = Path(proc) / "nvidia-caps" / "mig-minors"
        self._capabilities = Path(proc) / "nvidia" / "capabilities"
        self._minors: dict[str, int] | None = None
        self._profiles: dict[str, tuple[Profile, ...]] = {}
        with _translated("starting NVML"):
            pynvml.nvmlInit()

    def close(self) -> None:
        with _translated("closing NVML"):
            pynvml.nvmlShutdown()

    def driver(self) -> str:
        """Driver version, `580.95.05`."""
        with _translated("reading the driver version"):
            return _text(pynvml.nvmlSystemGetDriverVersion())

    def inventory(self) -> tuple[Gpu, ...]:
        """Every GPU with its instances and their processes. Raises GpuError."""
        with _translated("listing GPUs"):
            return tuple(self._gpu(i) for i in range(pynvml.nvmlDeviceGetCount()))

    def create(self, gpu: int, placement: Placement) -> None:
        """Create a GPU instance at exactly this placement, and its compute instance.

        If the compute instance cannot be made, the GPU instance is destroyed again.
        """
        with _translated(f"creating {placement} on GPU {gpu}"):
            device = pynvml.nvmlDeviceGetHandleByIndex(gpu)
            profile = self._profile(device, placement.profile)
            where = pynvml.c_nvmlGpuInstancePlacement_t()
            where.start, where.size = placement.start, placement.size
            instance = _patiently(
                lambda: pynvml.nvmlDeviceCreateGpuInstanceWithPlacement(
                    device, profile.id, byref(where)
                )
            )
            try:
                self._create_compute(instance)
            except pynvml.NVMLError:
                _patiently(lambda: pynvml.nvmlGpuInstanceDestroy(instance))
                raise

    def destroy(self, gpu: int, gi: int) -> None:
        """Destroy a GPU instance and its compute instances. IN_USE is retried for a while."""
        with _translated(f"destroying GPU instance {gi} on GPU {gpu}"):
            device = pynvml.nvmlDeviceGetHandleByIndex(gpu)
            instance = pynvml.nvmlDeviceGetGpuInstanceById(device, gi)
            for compute in self._compute_instances(instance):
                _patiently(partial(pynvml.nvmlComputeInstanceDestroy, compute))
            _patiently(lambda: pynvml.nvmlGpuInstanceDestroy(instance))

    def set_mode(self, gpu: int, *, on: bool, keep_pending: bool = False) -> None:
        """Switch a GPU's MIG mode and see that it took; nothing is destroyed for it.

        Safe to repeat. Where the mode is stored on the board (Ampere) the driver resets this GPU
        alone. Raises BusyError while an instance or a process is there, or somebody whom NVML
        does not list holds the GPU; GpuError when the change waits for a reset or a reboot. A
        mode that did not become current is taken back, unless `keep_pending` (for a change that
        is to come with the next boot of a virtual machine).
        """
        with _translated(f"switching MIG {'on' if on else 'off'} on GPU {gpu}"):
            device = pynvml.nvmlDeviceGetHandleByIndex(gpu)
            before = _optional(lambda: pynvml.nvmlDeviceGetMigMode(device))
            if before is None:
                raise GpuError(
                    f"GPU {gpu} ({_text(pynvml.nvmlDeviceGetName(device))}) cannot do MIG",
                    code=int(pynvml.NVML_ERROR_NOT_SUPPORTED),
                )
            if before == [on, on]:
                return
            if before[0] != on:
                self._refuse_mode_change(gpu, device)
            activation = int(pynvml.nvmlDeviceSetMigMode(device, int(on)))
            # The driver may have reset the GPU: nothing of before is used again.
            device = pynvml.nvmlDeviceGetHandleByIndex(gpu)
            if list(pynvml.nvmlDeviceGetMigMode(device)) == [on, on]:
                return
            kept = keep_pending and activation == pynvml.NVML_ERROR_RESET_REQUIRED
            if not kept:
                pynvml.nvmlDeviceSetMigMode(device, int(not on))
            now = pynvml.nvmlDeviceGetMigMode(device)
        raise _mode_refusal(gpu, activation, current=bool(now[0]), pending=bool(now[1]))

    def _refuse_mode_change(self, gpu: int, device: Any) -> None:
        """Raises BusyError for what the driver would refuse later, or worse, leave pending."""
        pids = sorted({pid for pid, _ in self._pids(device)})
        if pids:
            raise BusyError(
                f"GPU {gpu}: its MIG mode cannot change while processes hold it: "
                f"{', '.join(map(str, pids))}; nothing was touched"
            )
        profiles = self._profiles_of(device, _text(pynvml.nvmlDeviceGetUUID(device)))
        left = [
            p.name
            for p in profiles
            if (found := _optional(partial(self._gpu_instances, device, p)))
            for _ in found
        ]
        if left:
            raise BusyError(
                f"GPU {gpu}: its MIG mode cannot change while it has instances: "
                f"{', '.join(left)}; nothing was touched",
                hint="Destroy them first.",
            )

    @staticmethod
    def _mode_needs_reset(device: Any) -> bool:
        """The driver's word; drivers without that field (before R535) know Hopper at most."""
        value = _optional(lambda: pynvml.nvmlDeviceGetFieldValues(device, [RESETLESS_FIELD]))
        if value is not None and value[0].nvmlReturn == pynvml.NVML_SUCCESS:
            return not value[0].value.uiVal
        architecture = _optional(lambda: pynvml.nvmlDeviceGetArchitecture(device))
        return architecture is None or int(architecture) < pynvml.NVML_DEVICE_ARCH_HOPPER

    def _gpu(self, index: int) -> Gpu:
        device = pynvml.nvmlDeviceGetHandleByIndex(index)
        mode = _optional(lambda: pynvml.nvmlDeviceGetMigMode(device))
        current, pending = mode if mode else (0, 0)
        uuid = _text(pynvml.nvmlDeviceGetUUID(device))
        minor = int(pynvml.nvmlDeviceGetMinorNumber(device))
        pids = self._pids(device)
        capacity_minors, spare = self._gpu_minors(minor)
        profiles = self._profiles_of(device, uuid) if mode else ()
        return Gpu(
            index=index,
            minor=minor,
            uuid=uuid,
            model=_text(pynvml.nvmlDeviceGetName(device)),
            memory_mib=int(pynvml.nvmlDeviceGetMemoryInfo(device).total) >> 20,
            mig=bool(current),
            mig_pending=bool(pending),
            mode_needs_reset=bool(mode) and self._mode_needs_reset(device),
            profiles=profiles,
            instances=self._instances(device, minor, profiles, pids) if current else (),
            file=f"/dev/nvidia{minor}",
            pids=tuple(pid for pid, _ in pids),
            instance_minors=capacity_minors,
            spare_minors=spare,
        )

    def _profiles_of(self, device: Any, uuid: str) -> tuple[Profile, ...]:
        """What the driver offers. Drivers up to R535 know no profiles while MIG is off: nothing
        is remembered then."""
        if not self._profiles.get(uuid):
            found = (self._profile_by_enum(device, n) for n in range(PROFILE_ENUM_END))
            self._profiles[uuid] = tuple(p for p in found if p)
        return self._profiles[uuid]

    def _profile_by_enum(self, device: Any, number: int) -> Profile | None:
        info = _optional(lambda: pynvml.nvmlDeviceGetGpuInstanceProfileInfo(device, number))
        if info is None:
            return None
        places = self._placements(device, info.id)
        return Profile(
            name=_text(info.name).removeprefix("MIG "),
            id=int(info.id),
            compute_slices=int(info.sliceCount),
            size=places[0][1],
            starts=tuple(sorted(start for start, _ in places)),
            # The driver's instanceCount is wrong on some A30 (mig-parted hard-codes it there);
            # no more instances than legal placements can exist.
            max_count=min(int(info.instanceCount), len(places)),
        )

    @staticmethod
    def _placements(device: Any, profile_id: int) -> list[tuple[int, int]]:
        count = pynvml.c_uint(0)
        pynvml.nvmlDeviceGetGpuInstancePossiblePlacements(device, profile_id, None, byref(count))
        array = (pynvml.c_nvmlGpuInstancePlacement_t * count.value)()
        pynvml.nvmlDeviceGetGpuInstancePossiblePlacements(device, profile_id, array, byref(count))
        return [(int(array[i].start), int(array[i].size)) for i in range(count.value)]

    def _profile(self, device: Any, name: str) -> Profile:
        uuid = _text(pynvml.nvmlDeviceGetUUID(device))
        for profile in self._profiles_of(device, uuid):
            if profile.name == name:
                return profile
        raise GpuError(
            f"GPU {uuid} has no profile {name}", code=int(pynvml.NVML_ERROR_NOT_SUPPORTED)
        )

    def _instances(
        self, device: Any, minor: int, profiles: tuple[Profile, ...], pids: list[tuple[int, int]]
    ) -> tuple[Instance, ...]:
        found = []
        for profile in profiles:
            for handle in self._gpu_instances(device, profile):
                found.append(self._instance(handle, minor, profile, pids))
        return tuple(sorted(found, key=lambda i: i.placement))

    @staticmethod
    def _gpu_instances(device: Any, profile: Profile) -> list[Any]:
        count = pynvml.c_uint(0)
        array = (pynvml.c_nvmlGpuInstance_t * max(profile.max_count, len(profile.starts)))()
        pynvml.nvmlDeviceGetGpuInstances(device, profile.id, array, byref(count))
        return [array[i] for i in range(count.value)]

    def _instance(
        self, handle: Any, minor: int, profile: Profile, pids: list[tuple[int, int]]
    ) -> Instance:
        info = pynvml.nvmlGpuInstanceGetInfo(handle)
        gi = int(info.id)
        place = Placement(int(info.placement.start), int(info.placement.size), profile.name)
        gi_minor = self._minor(f"gpu{minor}/gi{gi}/access")
        files = [f"/dev/nvidia{minor}", f"{self.caps_dir}/nvidia-cap{gi_minor}"]
        uuid = ""
        computes = self._compute_instances(handle)
        for compute in computes:
            details = pynvml.nvmlComputeInstanceGetInfo(compute)
            uuid = uuid or _text(pynvml.nvmlDeviceGetUUID(details.device))
            ci_minor = self._minor(f"gpu{minor}/gi{gi}/ci{int(details.id)}/access")
            files.append(f"{self.caps_dir}/nvidia-cap{ci_minor}")
        return Instance(
            placement=place,
            gi=gi,
            uuid=uuid,
            gi_minor=gi_minor,
            files=tuple(files),
            pids=tuple(sorted({pid for pid, where in pids if where == gi})),
            compute_instances=len(computes),
        )

    @staticmethod
    def _compute_profiles(instance: Any) -> Iterator[Any]:
        for number in range(pynvml.NVML_COMPUTE_INSTANCE_PROFILE_COUNT):
            info = _optional(
                partial(
                    pynvml.nvmlGpuInstanceGetComputeInstanceProfileInfo,
                    instance,
                    number,
                    pynvml.NVML_COMPUTE_INSTANCE_ENGINE_PROFILE_SHARED,
                )
            )
            if info is not None:
                yield info

    def _compute_instances(self, instance: Any) -> list[Any]:
        found: list[Any] = []
        for info in self._compute_profiles(instance):
            count = pynvml.c_uint(0)
            array = (pynvml.c_nvmlComputeInstance_t * max(int(info.instanceCount), 1))()
            pynvml.nvmlGpuInstanceGetComputeInstances(instance, info.id, array, byref(count))
            found.extend(array[i] for i in range(count.value))
        return found

    def _create_compute(self, instance: Any) -> None:
        """The compute instance that spans the whole GPU instance."""
        widest = max(self._compute_profiles(instance), key=lambda info: int(info.sliceCount))
        _patiently(lambda: pynvml.nvmlGpuInstanceCreateComputeInstance(instance, widest.id))

    @staticmethod
    def _pids(device: Any) -> list[tuple[int, int]]:
        """Compute and graphics processes of a GPU, each with its GPU instance id."""
        calls = (
            pynvml.nvmlDeviceGetComputeRunningProcesses,
            pynvml.nvmlDeviceGetGraphicsRunningProcesses,
        )
        found = (process for call in calls for process in _optional(partial(call, device)) or ())
        return [(int(p.pid), int(p.gpuInstanceId or 0)) for p in found]

    def proofs(self) -> dict[str, str]:
        """The driver's capability file of each compute instance that is there, by device file."""
        found = {}
        for path in sorted(self._capabilities.glob("gpu*/mig/gi*/ci*/access")):
            gpu, _, gi, ci, _ = path.relative_to(self._capabilities).parts
            minor = self._minor(f"{gpu}/{gi}/{ci}/access")
            found[f"{self.caps_dir}/nvidia-cap{minor}"] = str(path)
        return found

    def _minor(self, key: str) -> int:
        if self._minors is None:
            self._minors = self._read_minors()
        try:
            return self._minors[key]
        except KeyError:
            raise UnreachableError(
                f"{self._minors_file} has no line for {key}",
                hint="The driver's capability files do not match its GPUs; reload the driver.",
            ) from None

    def _read_minors(self) -> dict[str, int]:
        try:
            lines = self._minors_file.read_text().splitlines()
        except OSError as error:
            raise UnreachableError(
                f"cannot read {self._minors_file}: {error.strerror}",
                hint="Is the NVIDIA driver loaded?",
            ) from error
        return {key: int(minor) for key, _, minor in (line.partition(" ") for line in lines)}

    def _gpu_minors(self, minor: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Capability minors of all possible GPU instances, and spare ones for fillers.

        Compute instance 7 of a GPU instance never exists on a GPU with at most 7 compute slices,
        so its capability is nobody's.
        """
        gis = [gi for gi in range(15) if self._has(f"gpu{minor}/gi{gi}/access")]
        spare = [gi for gi in gis if self._has(f"gpu{minor}/gi{gi}/ci7/access")]
        return (
            tuple(self._minor(f"gpu{minor}/gi{gi}/access") for gi in gis),
            tuple(self._minor(f"gpu{minor}/gi{gi}/ci7/access") for gi in spare),
        )

    def _has(self, key: str) -> bool:
        if self._minors is None:
            self._minors = self._read_minors() if self._minors_file.exists() else {}
        return key in self._minors


def _mode_refusal(gpu: int, activation: int, *, current: bool, pending: bool) -> Exception:
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


def _patiently(call: Callable[[], T]) -> T:
    """Repeat a call that NVML answers with IN_USE, for RETRY_S seconds at most."""
    deadline = time.monotonic() + RETRY_S
    pause = 0.01
    while True:
        try:
            return call()
        except pynvml.NVMLError as error:
            if error.value != pynvml.NVML_ERROR_IN_USE or time.monotonic() > deadline:
                raise
        time.sleep(pause)
        pause = min(pause * 2, 0.5)
