"""The values that every other module speaks in: NVIDIA's and Slurm's words, frozen.

Built by the adapters from what NVML and Slurm say, read by the core. Never does I/O.
Memory is counted in MiB, places on a GPU in memory slices, times in seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

GUARD = "guard"
"""Type of a managed node's last slot: it has every GPU and GPU instance that no other slot has."""

ZERO = "none"
"""A type that no device ever has. Listed with count 0 in every Gres line: slurmctld rebuilds a
node's topology at a registration when a listed type has count 0 (Slurm source,
interfaces/gres.c `_node_config_validate`)."""


def is_filler(gres_type: str) -> bool:
    """True for types that no job may ask for: `off`, `off1`, … and the guard."""
    return gres_type in (GUARD, ZERO) or gres_type.rstrip("0123456789") == "off"


@dataclass(frozen=True, slots=True)
class Profile:
    """A GPU instance profile as one GPU's driver reports it (NVML GpuInstanceProfileInfo)."""

    name: str
    id: int
    compute_slices: int
    size: int
    """Memory slices of one placement."""
    starts: tuple[int, ...]
    max_count: int
    memory_mib: int = 0

    @property
    def attribute(self) -> str:
        """`me` for `1g.5gb+me`, empty for a plain profile."""
        for sign in "+-":
            if sign in self.name:
                return self.name.split(sign, 1)[1]
        return ""


class Placement(NamedTuple):
    """A profile at a place of one GPU, in memory slices; or one compute instance of a GPU instance
    that has several: its profile is then the part's name, `1c.3g.20gb`.

    A tuple, not a dataclass: a large cluster's plan hashes and compares some hundred thousand.
    """

    start: int
    size: int
    profile: str
    ci: int | None = None
    """Compute instance id of a part; None for a whole GPU instance."""

    def overlaps(self, other: Placement) -> bool:
        return self.start < other.start + other.size and other.start < self.start + self.size

    @property
    def whole(self) -> Placement:
        """The GPU instance that it is or is a part of."""
        if self.ci is None:
            return self
        return Placement(self.start, self.size, self.profile.partition(".")[2])

    def __str__(self) -> str:
        return f"{self.profile}@{self.start}" + ("" if self.ci is None else f"/{self.ci}")


Layout = frozenset[Placement]


@dataclass(frozen=True, slots=True)
class ComputeInstance:
    """A compute instance: what CUDA sees as one MIG device."""

    ci: int
    name: str
    """`3g.20gb` when it spans its GPU instance, `1c.3g.20gb` when it is a part."""
    slices: int
    uuid: str
    minor: int
    pids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Instance:
    """A GPU instance, usually with one compute instance that spans it, as found on the node."""

    placement: Placement
    gi: int
    uuid: str
    """UUID of the MIG device; empty when the GPU instance has no compute instance."""
    gi_minor: int
    files: tuple[str, ...]
    """Device files a process needs: parent GPU, GPU-instance and compute-instance capability."""
    pids: tuple[int, ...] = ()
    compute_instances: int = 1
    computes: tuple[ComputeInstance, ...] = ()
    owner: str = ""
    """Who has it instead of Slurm (core/ownership.py); empty: it is Slurm's."""

    @property
    def is_split(self) -> bool:
        """It has compute instances that do not span it: each is a device of its own."""
        return any(c.name != self.placement.profile for c in self.computes)

    @property
    def parts(self) -> dict[Placement, ComputeInstance]:
        """The devices of a split instance."""
        if not self.is_split:
            return {}
        start, size = self.placement.start, self.placement.size
        return {Placement(start, size, c.name, c.ci): c for c in self.computes}

    def pids_of(self, device: Placement) -> tuple[int, ...]:
        """The processes of one of its devices; all of them where their part is not known."""
        part = self.parts.get(device)
        return (part.pids if part else ()) or self.pids

    @property
    def held(self) -> frozenset[Placement]:
        """Its devices that a process holds: itself, or the parts."""
        if not self.pids:
            return frozenset()
        known = {p for c in self.computes for p in c.pids}
        # Whose compute instance is not known may be in any.
        every = not self.is_split or not set(self.pids) <= known
        held = (p for p, c in self.parts.items() if c.pids or every)
        return frozenset(held) if self.is_split else frozenset({self.placement})


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU of a node, as its driver describes it now."""

    index: int
    minor: int
    uuid: str
    model: str
    memory_mib: int
    mig: bool
    """MIG mode is on (current)."""
    profiles: tuple[Profile, ...] = ()
    instances: tuple[Instance, ...] = ()
    file: str = ""
    pids: tuple[int, ...] = ()
    mig_pending: bool = False
    mig_capable: bool = False
    """The driver knows a MIG mode of it, on or off."""
    mode_needs_reset: bool = True
    """A change of the MIG mode resets this GPU (Ampere); Hopper and later need none."""
    instance_minors: tuple[int, ...] = ()
    """Capability minors of every GPU instance that this GPU could have."""
    spare_minors: tuple[int, ...] = ()
    """Capability minors that no instance ever uses: one per slot, for the fillers."""
    pci: str = ""
    """PCI address as NVML writes it, `00000000:07:00.0`."""
    owner: str = ""
    """Who has all of it instead of Slurm; empty: Slurm, but for instances with an owner."""

    @property
    def compute_slices(self) -> int:
        return max((p.compute_slices for p in self.profiles), default=0)

    @property
    def memory_slices(self) -> int:
        return max((start + p.size for p in self.profiles for start in p.starts), default=0)

    @property
    def capacity(self) -> int:
        """The most devices that the GPU can be: instances, or the one that it is without MIG."""
        return max((p.max_count for p in self.profiles), default=1)

    @property
    def layout(self) -> Layout:
        return frozenset(i.placement for i in self.instances)

    @property
    def foreign(self) -> Layout:
        """Placements of instances that are not Slurm's: nothing may destroy or offer them."""
        return frozenset(i.placement for i in self.instances if i.owner)

    @property
    def split(self) -> Layout:
        """GPU instances of Slurm's with several devices."""
        return frozenset(i.placement for i in self.instances if i.is_split and not i.owner)

    @property
    def held(self) -> frozenset[Placement]:
        """Devices on it that processes hold."""
        return frozenset(p for i in self.instances for p in i.held)

    def profile(self, name: str) -> Profile | None:
        return next((p for p in self.profiles if p.name == name), None)


@dataclass(frozen=True, slots=True)
class Device:
    """What one slot holds: a line of gres.conf."""

    type: str
    files: tuple[str, ...] = ()
    uuid: str = ""
    gpu: int = -1
    placement: Placement | None = None

    @property
    def key(self) -> Place:
        """Where the device is: the same before and after a reshape that keeps it."""
        return (self.gpu, self.placement)

    @property
    def home(self) -> Place:
        """The GPU instance or GPU that would go with the device."""
        return (self.gpu, self.placement.whole if self.placement else None)


Slots = tuple[Device, ...]

Place = tuple[int, Placement | None]
"""Where a device is: GPU index and placement; None is the whole GPU, MIG off."""


@dataclass(frozen=True, slots=True)
class Withholding:
    """Idle instances of one GPU that are published as fillers, so that no job takes them while the
    rest of what a waiting job needs becomes free."""

    gpu: int
    placements: frozenset[Placement]
    jobs: tuple[int, ...]
    """The waiting jobs that it is for."""
    since: float = 0.0
    """When the GPU's first instance was withheld for them, in seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class Allocation:
    """A job that has slots of a node, by GRES index."""

    job_id: int
    user: str
    indexes: frozenset[int]
    state: str = "RUNNING"
    end_time: int = 0
    """When its time limit ends it, in seconds since the epoch; 0 when it has none."""


class NodeCondition(Enum):
    """Why a node may not be touched, or that it may."""

    USABLE = "usable"
    OURS = "fenced by slurm-mig"
    ADMIN = "drained by an administrator"
    AWAY = "not responding, down or powering"
    RESERVED = "in a reservation"
    FROZEN = "a job has the whole node"
    UNSUPPORTED = "configured in a way that slurm-mig cannot live with"
    BROKEN = "slurmctld and our record disagree"
    DRIFTED = "changed by another hand"


@dataclass(frozen=True, slots=True)
class Reservation:
    """One of Slurm's reservations, as far as one of its nodes is concerned."""

    name: str
    begins_in_s: float = 0.0
    """Seconds until it begins; 0 or less while it is active."""
    whole: bool = True
    """It has every core of its nodes: no other job runs there meanwhile."""
    gpus: Mapping[str, int] = field(default_factory=dict)
    """Count by gpu type that it holds, over all its nodes; "" for untyped ones."""

    @property
    def active(self) -> bool:
        return self.begins_in_s <= 0


@dataclass(frozen=True, slots=True)
class SlurmNode:
    """A node as slurmctld shows it."""

    name: str
    states: frozenset[str]
    reason: str
    gres: Mapping[str, int]
    """Count by gpu type, in slurmctld's order, from Gres (never from CfgTRES)."""
    cpus: int
    cpus_alloc: int
    memory_mib: int
    memory_alloc_mib: int
    partitions: frozenset[str]
    features: frozenset[str] = frozenset()
    allocations: tuple[Allocation, ...] = ()
    unsettled: tuple[str, ...] = ()
    """Why the node is not settled: `job 12 is COMPLETING`, …"""
    batch_jobs: frozenset[int] = frozenset()
    """Running jobs whose batch script is on this node: each must have its slurmstepd."""
    reservations: tuple[Reservation, ...] = ()
    """Active and coming ones that the node is in."""
    slurmd_start: int = 0
    """Seconds since the epoch at which slurmd last registered as started."""

    @property
    def allocated(self) -> frozenset[int]:
        return frozenset(index for a in self.allocations for index in a.indexes)

    @property
    def promised(self) -> frozenset[int]:
        """Indexes that coming reservations need: as many of each type as they hold. Slurm does not
        keep them: when their type is gone, the reservation begins and its jobs wait."""
        if not self.reservations:
            return frozenset()
        types = [t for t, n in self.gres.items() for _ in range(n)]
        taken, found = self.allocated, set()
        for reservation in self.reservations:
            for gres_type, count in () if reservation.active else reservation.gpus.items():
                fit = (
                    i
                    for i, t in enumerate(types)
                    if i not in found and (t == gres_type or not (gres_type or is_filler(t)))
                )
                found.update(sorted(fit, key=lambda i: (i not in taken, i))[:count])
        return frozenset(found)

    @property
    def busy(self) -> frozenset[int]:
        """Indexes that must stay as they are."""
        return self.allocated | self.promised


@dataclass(frozen=True, slots=True)
class NodeView:
    """All that is known of a managed node at one moment."""

    slurm: SlurmNode
    gpus: tuple[Gpu, ...]
    slots: Slots
    """As published: the device at each GRES index."""
    condition: NodeCondition = NodeCondition.USABLE
    note: str = ""
    """Why nothing may be done to the node now, for `status`."""
    possible: tuple[str, ...] = ()
    """Every type that the node can ever have, known also while it is away."""
    whole_types: Mapping[int, str] = field(default_factory=dict)
    """Slurm type of each GPU that is, or may become, a whole one (MIG off), by GPU index."""
    switchable: frozenset[int] = frozenset()
    """GPUs whose MIG mode the site lets us change while they are idle."""
    withheld: tuple[Withholding, ...] = ()
    """What is there but published as fillers."""
    outside: tuple[Gpu, ...] = ()
    """GPUs that are somebody else's as a whole; `gpus` has the others."""
    slotted: bool = True
    """No: there are no fillers, and nothing changes while a gpu job is on the node."""

    @property
    def name(self) -> str:
        return self.slurm.name

    @property
    def all_gpus(self) -> list[Gpu]:
        """Slurm's and the others', by index."""
        return sorted((*self.gpus, *self.outside), key=lambda gpu: gpu.index)

    @property
    def room(self) -> int:
        """The most devices that the node can offer at once, guard left out."""
        if self.slotted:
            return len(self.slots) - 1
        return sum(g.capacity if g.mig or g.index in self.switchable else 1 for g in self.gpus)

    @property
    def held(self) -> frozenset[int]:
        """Indexes whose instance a process holds, by NVML."""
        by_key: set[Place] = {(gpu.index, p) for gpu in self.gpus for p in gpu.held}
        by_key |= {(gpu.index, None) for gpu in self.gpus if gpu.pids}
        if not by_key:
            return frozenset()
        return frozenset(
            n
            for n, device in enumerate(self.slots)
            if not is_filler(device.type) and device.key in by_key
        )

    @property
    def busy(self) -> frozenset[int]:
        """Indexes that must stay as they are: Slurm's allocation or a process says so."""
        return self.slurm.busy | self.held


class Patience(Enum):
    """How a node may be kept for a waiting job that running jobs are in the way of."""

    NONE = "none"
    WITHHOLD = "withhold"
    """Idle instances in its way are published as fillers."""
    FENCE = "fence"
    """The node may stay in DRAIN until they have ended."""


@dataclass(frozen=True, slots=True)
class JobRequest:
    """A pending job, as far as planning needs it. Counts are per node."""

    job_id: int
    user: str
    partition: str
    priority: int
    gpus: Mapping[str, int]
    """Instances by type that the job needs on each node."""
    nodes: int = 1
    cpus: int = 1
    """CPUs on each node."""
    memory_mib: int = 0
    features: tuple[frozenset[str], ...] = ()
    """Sets of features of which the node must have one whole; none: any node will do."""
    required_nodes: frozenset[str] = frozenset()
    excluded_nodes: frozenset[str] = frozenset()
    tasks: int = 1
    """Array tasks that wait: each is a job of its own."""
    submit_time: int = 0
    reason: str = ""
    patience: Patience = Patience.WITHHOLD
    unserved_s: float = 0.0
    """How long it has been seen waiting for more than there is; -1 where a fence waits for it."""
    account: str = ""
    het_job: int = 0
    """The heterogeneous job that this is a component of: all start together. 0: none."""
    time_limit_s: int = 0
    """0 when it has none."""
    reservation: str = ""
    """The reservation that it was submitted into."""
    exclusive: bool = False
    """It asks for whole nodes: it gets every device of them."""
    preempts: frozenset[int] = frozenset()
    """Running jobs whose gpus Slurm's preemption may give it."""

    @property
    def label(self) -> str:
        wants = ", ".join(t if n == 1 else f"{t}*{n}" for t, n in sorted(self.gpus.items()))
        return f"job {self.job_id} ({wants})"
