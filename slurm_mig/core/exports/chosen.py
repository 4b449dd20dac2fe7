"""Which devices an export is about, and why it may not be about others.

A device is what CUDA sees: a compute instance, or a GPU with MIG off. Pure.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from slurm_mig.core.model import Gpu, Instance
from slurm_mig.errors import BusyError, SlurmMigError, UsageError

SLURM = "Slurm"


@dataclass(frozen=True, slots=True)
class Ask:
    """What `slurm-mig export` is asked for."""

    format: str = "mig-parted"
    gpus: tuple[int, ...] = ()
    profiles: tuple[str, ...] = ()
    uuids: tuple[str, ...] = ()
    owner: str = ""
    free: bool = False
    """Of what nobody uses and Slurm does not have."""
    count: int = 0
    """So many of them; 0: all."""
    job: int = 0
    """The devices of this Slurm job."""
    image: str = "docker.io/nvidia/cuda:12.6.3-base-ubuntu24.04"
    strategy: str = ""
    part: str = "all"
    vgpu: bool = False
    check: bool = False

    @property
    def words(self) -> str:
        """The choice, for messages."""
        found = [f"GPU {index}" for index in self.gpus]
        found += [*self.profiles, *self.uuids]
        found += [f"{self.owner}'s"] if self.owner else []
        found += [f"job {self.job}"] if self.job else []
        found += ["free outside Slurm"] if self.free else []
        return ", ".join(found) or "any"


@dataclass(frozen=True, slots=True)
class Device:
    """A MIG device, or a GPU with MIG off."""

    name: str
    """`3g.20gb`, `1c.3g.20gb`, or the GPU's model."""
    uuid: str
    gpu: Gpu
    files: tuple[str, ...]
    """Of the device alone: GPU, GPU-instance and compute-instance capability."""
    instance: Instance | None = None
    slices: int = 0
    """Compute slices of a compute instance; 0 for a whole GPU."""
    pids: tuple[int, ...] = ()
    owner: str = ""
    """`Slurm`, another owner, or nobody."""

    @property
    def mig(self) -> bool:
        return self.instance is not None

    def __str__(self) -> str:
        place = f"@{self.instance.placement.start}" if self.instance else ""
        return f"{self.name}{place} of GPU {self.gpu.index}"


def devices(gpus: Sequence[Gpu], slurms: Collection[str]) -> list[Device]:
    """Every device there; `slurms` are the UUIDs of those that Slurm has."""
    return [device for gpu in gpus for device in _of(gpu, slurms)]


def _of(gpu: Gpu, slurms: Collection[str]) -> Iterator[Device]:
    if not gpu.mig:
        owner = gpu.owner or (SLURM if gpu.uuid in slurms else "")
        yield Device(gpu.model, gpu.uuid, gpu, (gpu.file,), pids=gpu.pids, owner=owner)
    for instance in gpu.instances:
        caps = instance.files[1].rpartition("nvidia-cap")[0] if len(instance.files) > 1 else ""
        for compute in instance.computes:
            yield Device(
                compute.name,
                compute.uuid,
                gpu,
                (*instance.files[:2], f"{caps}nvidia-cap{compute.minor}"),
                instance,
                compute.slices,
                compute.pids,
                instance.owner or (SLURM if compute.uuid in slurms else ""),
            )


def choose(there: Sequence[Device], ask: Ask, jobs: Collection[str] = ()) -> list[Device]:
    """The devices that are asked for; `jobs` are the UUIDs of the job's.

    Raises UsageError when none matches, SlurmMigError for what is Slurm's and not the job's, and
    BusyError when too few are free.
    """
    found = [d for d in there if _matches(d, ask, jobs)]
    if not found:
        listed = ", ".join(f"{d}{_whose(d)}" for d in there) or "nothing"
        raise UsageError(f"nothing here is {ask.words}; there is {listed}")
    taken = [d for d in found if d.owner == SLURM and d.uuid not in jobs]
    chosen = [d for d in found if d not in taken]
    if taken and (not chosen or ask.uuids):
        raise SlurmMigError(
            f"{taken[0]} is Slurm's: what is started on it elsewhere and a job would share it",
            hint="Give it to another owner (`outside` in the node's group), or name the job: --job",
        )
    if ask.free:
        chosen = [d for d in chosen if not d.pids]
    if len(chosen) < max(1, ask.count):
        raise BusyError(f"{len(chosen)} of {ask.words} can be had, {max(1, ask.count)} are wanted")
    return chosen[: ask.count] if ask.count else chosen


def _matches(device: Device, ask: Ask, jobs: Collection[str]) -> bool:
    if ask.job and device.uuid not in jobs:
        return False
    if ask.gpus and device.gpu.index not in ask.gpus:
        return False
    if ask.profiles and (not device.mig or device.name not in ask.profiles):
        return False
    if ask.uuids and device.uuid not in ask.uuids:
        return False
    return not ask.owner or device.owner == ask.owner


def _whose(device: Device) -> str:
    return f" ({device.owner}'s)" if device.owner else ""


def one_gpu(gpus: Sequence[Gpu], ask: Ask, slurms: Mapping[int, bool]) -> Gpu:
    """The whole GPU that a virtual machine is to get. Raises with the reason why it may not."""
    if ask.profiles or ask.uuids:
        raise UsageError(
            "a MIG instance is no PCI device: only a whole GPU can be passed through",
            hint="--vgpu gives a virtual machine one instance, with NVIDIA's vGPU software.",
        )
    if len(ask.gpus) != 1:
        raise UsageError("name the one GPU to be passed through: --gpu N")
    gpu = next((g for g in gpus if g.index == ask.gpus[0]), None)
    if gpu is None:
        raise UsageError(f"there is no GPU {ask.gpus[0]} here; {len(gpus)} are there")
    if slurms.get(gpu.index):
        raise SlurmMigError(
            f"GPU {gpu.index} has devices that are Slurm's: it cannot be passed through",
            hint="Give the whole GPU to another owner: `outside` in the node's group.",
        )
    if gpu.pids:
        pids = ", ".join(map(str, gpu.pids))
        raise BusyError(f"GPU {gpu.index} is used by process {pids}: it cannot be passed through")
    return gpu
