"""NVML: the GPUs of this node, what can be on them, and every change of them.

Runs on the GPU node as root. The driver is asked for everything: profiles, legal placements and
what is there; no table of GPU models is used. Handles never outlive one call: what is remembered
is what a model can do, never what is there.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from ctypes import byref
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pynvml

from slurm_mig.adapters import nvml
from slurm_mig.adapters.nvml import optional, patiently, text, translated
from slurm_mig.core.exports.kubernetes import Attributes
from slurm_mig.core.model import ComputeInstance, Gpu, Instance, Placement, Profile
from slurm_mig.core.profiles import device_name
from slurm_mig.errors import BusyError, GpuError, UnreachableError

Kind = tuple[str, int, int]
"""What GPUs have in common that the driver tells the same of: name, memory, PCI device id."""


class NvmlGpus:
    """The GPUs through NVML, initialised until `close`, and again by `open`.

    `proc` is where the driver's capability files are found, `caps_dir` its device nodes.
    """

    def __init__(
        self,
        caps_dir: str = "/dev/nvidia-caps",
        proc: str = "/proc/driver",
        retry_s: float = nvml.RETRY_S,
    ) -> None:
        self.caps_dir = caps_dir
        self._retry_s = retry_s
        self._minors_file = Path(proc) / "nvidia-caps" / "mig-minors"
        self._capabilities = Path(proc) / "nvidia" / "capabilities"
        self._minors: dict[str, int] | None = None
        self._profiles: dict[Kind, tuple[Profile, ...]] = {}
        self._splits: dict[tuple[Kind, int], tuple[nvml.ComputeProfile, ...]] = {}
        self.open()

    def open(self) -> None:
        """Start NVML; again after a `close`."""
        with translated("starting NVML"):
            pynvml.nvmlInit()

    def close(self) -> None:
        """Let go of the driver."""
        with translated("closing NVML"):
            pynvml.nvmlShutdown()

    # -- reading --------------------------------------------------------------------------------

    def driver(self) -> str:
        """Driver version, `580.95.05`."""
        with translated("reading the driver version"):
            return text(pynvml.nvmlSystemGetDriverVersion())

    def inventory(self) -> tuple[Gpu, ...]:
        """Every GPU with its instances and their processes. Raises GpuError."""
        with translated("listing GPUs"):
            return tuple(self._gpu(i) for i in range(pynvml.nvmlDeviceGetCount()))

    def survey(self) -> tuple[list[Gpu], dict[int, str]]:
        """`inventory` for looking only: a GPU that cannot be read (lost) is in the second, by
        index with the reason, and does not hide the others. Raises when none can be."""
        gpus: list[Gpu] = []
        faults: dict[int, str] = {}
        with translated("listing GPUs"):
            count = int(pynvml.nvmlDeviceGetCount())
        for index in range(count):
            try:
                gpus.append(self.gpu(index))
            except GpuError as error:
                faults[index] = str(error)
        return gpus, faults

    def gpu(self, index: int) -> Gpu:
        """One GPU, as `inventory` gives it."""
        with translated(f"reading GPU {index}"):
            return self._gpu(index)

    def remaining(self, gpu: int) -> dict[str, int]:
        """How many more of each profile the driver would make now; empty without MIG mode."""
        with translated(f"reading the free room of GPU {gpu}"):
            device = pynvml.nvmlDeviceGetHandleByIndex(gpu)
            call = pynvml.nvmlDeviceGetGpuInstanceRemainingCapacity
            found = {
                profile.name: optional(partial(call, device, profile.id))
                for profile in self._profiles_of(device, self._kind(device))
            }
            return {name: int(count) for name, count in found.items() if count is not None}

    def persistence(self, gpu: int) -> bool:
        """Persistence mode: the driver keeps the GPU initialised while nobody uses it."""
        with translated(f"reading the persistence mode of GPU {gpu}"):
            device = pynvml.nvmlDeviceGetHandleByIndex(gpu)
            return bool(optional(lambda: pynvml.nvmlDeviceGetPersistenceMode(device)))

    def pci_ids(self, gpu: int) -> tuple[int, int]:
        """PCI device and subsystem id, each `device << 16 | vendor` as device filters write it."""
        with translated(f"reading the PCI ids of GPU {gpu}"):
            info = pynvml.nvmlDeviceGetPciInfo(pynvml.nvmlDeviceGetHandleByIndex(gpu))
            return int(info.pciDeviceId), int(info.pciSubSystemId)

    def attributes(self, uuid: str) -> Attributes:
        """The resources of a MIG device."""
        with translated(f"reading the attributes of {uuid}"):
            device = pynvml.nvmlDeviceGetHandleByUUID(uuid)
            told = pynvml.nvmlDeviceGetAttributes(device)
            engines = {
                "copy": told.sharedCopyEngineCount,
                "decoder": told.sharedDecoderCount,
                "encoder": told.sharedEncoderCount,
                "jpeg": told.sharedJpegCount,
                "ofa": told.sharedOfaCount,
            }
            return Attributes(
                int(told.memorySizeMB),
                int(told.multiprocessorCount),
                int(told.gpuInstanceSliceCount),
                int(told.computeInstanceSliceCount),
                {name: int(count) for name, count in engines.items()},
            )

    # -- changing instances ---------------------------------------------------------------------

    def create(self, gpu: int, placement: Placement, split: Sequence[int] = ()) -> None:
        """Create a GPU instance at exactly this placement, with its compute instances.

        `split` gives the compute slices of each; empty: one that spans it. If a compute instance
        cannot be made, the GPU instance is destroyed again.
        """
        with translated(f"creating {placement} on GPU {gpu}"):
            device = pynvml.nvmlDeviceGetHandleByIndex(gpu)
            profile = self._profile(device, gpu, placement.profile)
            where = pynvml.c_nvmlGpuInstancePlacement_t()
            where.start, where.size = placement.start, placement.size
            instance = self._patiently(
                partial(
                    pynvml.nvmlDeviceCreateGpuInstanceWithPlacement,
                    device,
                    profile.id,
                    byref(where),
                )
            )
            try:
                self._create_computes(instance, split)
            except pynvml.NVMLError:
                self._clear(instance)
                self._patiently(partial(pynvml.nvmlGpuInstanceDestroy, instance))
                raise

    def split(self, gpu: int, gi: int, split: Sequence[int] = ()) -> None:
        """Give a GPU instance these compute instances instead of those it has.

        The GPU instance stays. Raises GpuError; it may then be without compute instances, which
        the caller finds by looking.
        """
        with translated(f"splitting GPU instance {gi} on GPU {gpu}"):
            device = pynvml.nvmlDeviceGetHandleByIndex(gpu)
            instance = pynvml.nvmlDeviceGetGpuInstanceById(device, gi)
            self._clear(instance)
            self._create_computes(instance, split)

    def destroy(self, gpu: int, gi: int) -> None:
        """Destroy a GPU instance and its compute instances, and see that it is gone.

        IN_USE is retried for a while, and so is a success after which it is still there.
        """
        deadline = time.monotonic() + self._retry_s
        with translated(f"destroying GPU instance {gi} on GPU {gpu}"):
            device = pynvml.nvmlDeviceGetHandleByIndex(gpu)
            find = partial(pynvml.nvmlDeviceGetGpuInstanceById, device, gi)
            instance = find()
            while instance is not None:
                self._clear(instance)
                self._patiently(partial(pynvml.nvmlGpuInstanceDestroy, instance))
                instance = optional(find)
                if instance is not None and time.monotonic() > deadline:
                    raise nvml.remnant(f"GPU {gpu}: the driver says that GPU instance {gi}")

    def _clear(self, instance: Any) -> None:
        """Destroy every compute instance of a GPU instance, and see that they are gone."""
        deadline = time.monotonic() + self._retry_s
        offered = nvml.compute_profiles(instance)
        while there := nvml.compute_instances(instance, offered):
            if time.monotonic() > deadline:
                raise nvml.remnant("the driver says that a compute instance")
            for compute in there:
                self._patiently(partial(pynvml.nvmlComputeInstanceDestroy, compute))

    def _create_computes(self, instance: Any, split: Sequence[int]) -> None:
        """The compute instance that spans the whole GPU instance, or one for each width."""
        offered = nvml.compute_profiles(instance)
        widest = max(offered, key=lambda profile: profile[1])
        for width in sorted(split, reverse=True) or [widest[1]]:
            ident = next((i for i, slices, _ in offered if slices == width), None)
            if ident is None:
                raise GpuError(
                    f"a GPU instance of {widest[1]} compute slices cannot have a compute "
                    f"instance of {width}",
                    code=int(pynvml.NVML_ERROR_NOT_SUPPORTED),
                )
            self._patiently(partial(pynvml.nvmlGpuInstanceCreateComputeInstance, instance, ident))

    def _patiently(self, call: Any) -> Any:
        return patiently(call, self._retry_s)

    # -- changing the mode ----------------------------------------------------------------------

    def set_mode(self, gpu: int, *, on: bool, keep_pending: bool = False) -> None:
        """Switch a GPU's MIG mode and see that it took; nothing is destroyed for it.

        Safe to repeat. Where the mode is stored on the board (Ampere) the driver resets this GPU
        alone. Raises BusyError while an instance or a process is there, or somebody whom NVML
        does not list holds the GPU; GpuError when the change waits for a reset or a reboot. A
        mode that did not become current is taken back, unless `keep_pending` (for a change that
        is to come with the next boot of a virtual machine).
        """
        with translated(f"switching MIG {'on' if on else 'off'} on GPU {gpu}"):
            device = pynvml.nvmlDeviceGetHandleByIndex(gpu)
            before = optional(lambda: pynvml.nvmlDeviceGetMigMode(device))
            if before is None:
                raise GpuError(
                    f"GPU {gpu} ({text(pynvml.nvmlDeviceGetName(device))}) cannot do MIG",
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
        raise nvml.mode_refusal(gpu, activation, current=bool(now[0]), pending=bool(now[1]))

    def _refuse_mode_change(self, gpu: int, device: Any) -> None:
        """Raises BusyError for what the driver would refuse later, or worse, leave pending."""
        pids = sorted({pid for pid, _, _ in nvml.processes(device)})
        if pids:
            raise BusyError(
                f"GPU {gpu}: its MIG mode cannot change while processes hold it: "
                f"{', '.join(map(str, pids))}; nothing was touched"
            )
        left = [
            profile.name
            for profile in self._profiles_of(device, self._kind(device))
            for _ in optional(partial(nvml.gpu_instances, device, profile)) or ()
        ]
        if left:
            raise BusyError(
                f"GPU {gpu}: its MIG mode cannot change while it has instances: "
                f"{', '.join(left)}; nothing was touched",
                hint="Destroy them first.",
            )

    # -- how it is read -------------------------------------------------------------------------

    def _gpu(self, index: int) -> Gpu:
        device = pynvml.nvmlDeviceGetHandleByIndex(index)
        mode = optional(lambda: pynvml.nvmlDeviceGetMigMode(device))
        current, pending = mode if mode else (0, 0)
        minor = int(pynvml.nvmlDeviceGetMinorNumber(device))
        kind = self._kind(device)
        running = nvml.processes(device)
        instance_minors, spare = self._gpu_minors(minor)
        gpu = Gpu(
            index=index,
            minor=minor,
            uuid=text(pynvml.nvmlDeviceGetUUID(device)),
            model=kind[0],
            memory_mib=kind[1] >> 20,
            mig=bool(current),
            mig_pending=bool(pending),
            mig_capable=mode is not None,
            mode_needs_reset=bool(mode) and nvml.mode_needs_reset(device),
            profiles=self._profiles_of(device, kind) if mode else (),
            file=f"/dev/nvidia{minor}",
            pids=tuple(pid for pid, _, _ in running),
            instance_minors=instance_minors,
            spare_minors=spare,
            pci=text(pynvml.nvmlDeviceGetPciInfo(device).busId),
        )
        if not current:
            return gpu
        found = (
            self._instance(handle, minor, (kind, profile), running)
            for profile in gpu.profiles
            for handle in nvml.gpu_instances(device, profile)
        )
        return replace(gpu, instances=tuple(sorted(found, key=lambda i: i.placement)))

    @staticmethod
    def _kind(device: Any) -> Kind:
        return (
            text(pynvml.nvmlDeviceGetName(device)),
            int(pynvml.nvmlDeviceGetMemoryInfo(device).total),
            int(pynvml.nvmlDeviceGetPciInfo(device).pciDeviceId),
        )

    def _profiles_of(self, device: Any, kind: Kind) -> tuple[Profile, ...]:
        """What the driver offers, asked once for GPUs that are alike. Drivers up to R535 know no
        profiles while MIG is off: nothing is remembered then."""
        if not self._profiles.get(kind):
            self._profiles[kind] = nvml.profiles_of(device, kind[1])
        return self._profiles[kind]

    def _profile(self, device: Any, gpu: int, name: str) -> Profile:
        for profile in self._profiles_of(device, self._kind(device)):
            if profile.name == name:
                return profile
        raise GpuError(
            f"GPU {gpu} has no profile {name}", code=int(pynvml.NVML_ERROR_NOT_SUPPORTED)
        )

    def _instance(
        self,
        handle: Any,
        minor: int,
        what: tuple[Kind, Profile],
        running: Sequence[tuple[int, int | None, int | None]],
    ) -> Instance:
        kind, profile = what
        info = pynvml.nvmlGpuInstanceGetInfo(handle)
        gi = int(info.id)
        gi_minor = self._minor(f"gpu{minor}/gi{gi}/access")
        mine = [(pid, ci) for pid, where, ci in running if where == gi]
        if (kind, profile.id) not in self._splits:
            self._splits[(kind, profile.id)] = nvml.compute_profiles(handle)
        found = (
            self._compute(compute, f"gpu{minor}/gi{gi}", profile, mine)
            for compute in nvml.compute_instances(handle, self._splits[(kind, profile.id)])
        )
        computes = tuple(sorted(found, key=lambda compute: compute.ci))
        caps = (gi_minor, *(compute.minor for compute in computes))
        return Instance(
            placement=Placement(int(info.placement.start), int(info.placement.size), profile.name),
            gi=gi,
            uuid=computes[0].uuid if computes else "",
            gi_minor=gi_minor,
            files=(f"/dev/nvidia{minor}", *(f"{self.caps_dir}/nvidia-cap{n}" for n in caps)),
            pids=tuple(sorted({pid for pid, _ in mine})),
            compute_instances=len(computes),
            computes=computes,
        )

    def _compute(
        self, handle: Any, where: str, profile: Profile, running: Sequence[tuple[int, int | None]]
    ) -> ComputeInstance:
        info = pynvml.nvmlComputeInstanceGetInfo(handle)
        ci, slices = int(info.id), int(info.placement.size)
        return ComputeInstance(
            ci=ci,
            name=device_name(profile.name, slices, profile.compute_slices),
            slices=slices,
            uuid=text(pynvml.nvmlDeviceGetUUID(info.device)),
            minor=self._minor(f"{where}/ci{ci}/access"),
            pids=tuple(sorted({pid for pid, its in running if its == ci})),
        )

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
