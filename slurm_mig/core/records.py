"""What slurm-mig remembers: the nodes in its care and the transactions under way.

Kept as JSON in the state directory (adapters/store.py); this module only says what they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from slurm_mig.core.changes import NodeChange
from slurm_mig.core.model import Gpu, Layout, Placement, Profile, Slots, Withholding, is_filler
from slurm_mig.core.ownership import Outside
from slurm_mig.core.silence import Silence

REASON = "slurm-mig"
"""Every reason that we put on a node starts with this word and a colon."""


@dataclass(frozen=True)
class Card:
    """A GPU as a piece of hardware."""

    uuid: str
    model: str


@dataclass(frozen=True)
class ManagedNode:
    """A node in our care. The number of its slots never changes while it is, if it is `slotted`."""

    name: str
    attributes: Mapping[str, str]
    """The node's slurm.conf attributes but Gres, as the site wrote them."""
    slots: Slots
    """As last published, guard included."""
    possible: tuple[str, ...]
    """Every gpu type that the node can ever have, without fillers."""
    whole_types: Mapping[int, str] = field(default_factory=dict)
    """Slurm type of each GPU that is, or may become, a whole one (MIG off), by GPU index."""
    switchable: frozenset[int] = frozenset()
    """GPUs whose MIG mode the site lets us change while they are idle."""
    profiles: Mapping[int, tuple[Profile, ...]] = field(default_factory=dict)
    """Profiles of each switchable GPU: older drivers do not tell them while MIG is off."""
    withheld: tuple[Withholding, ...] = ()
    """What is there but published as fillers."""
    reshaped: Mapping[int, float] = field(default_factory=dict)
    """When each GPU was last reshaped, in seconds since the epoch."""
    published: float = 0.0
    """When its slots were last published, in seconds since the epoch."""
    cores: Mapping[int, str] = field(default_factory=dict)
    """`Cores=` of each GPU, where the site's gres.conf gave it."""
    baseline: Mapping[int, tuple[Placement, ...]] = field(default_factory=dict)
    """Layout of each GPU that fills room nobody asked for: the one found at enrolment."""
    partitions: tuple[str, ...] = ()
    explicit: bool = False
    """Whole-node jobs (`--exclusive`) get the gpus that they ask for, not every slot: gres.conf's
    Flags=explicit."""
    cards: Mapping[int, Card] = field(default_factory=dict)
    """Which GPU was at which index when it was last looked at; empty in records from before."""
    former: tuple[str, ...] = ()
    """Types that it could have once, under an earlier driver's names: listed with count 0."""
    other_gres: str = ""
    """What else the site's Gres has, such as `nic:2`: it stays as it is."""
    slotted: bool = True
    """No (`slots: false`): no fillers. The number of devices changes with the layout, by a
    reconfigure, and only while no gpu job is on the node."""
    most: Mapping[str, int] = field(default_factory=dict)
    """The most devices of each possible type that the node can have at once."""
    outside: tuple[Outside, ...] = ()
    """What of its GPUs is not Slurm's."""
    part_types: tuple[str, ...] = ()
    """Types that compute instances of split GPU instances can have here (`1c.3g.20gb`)."""

    @property
    def baselines(self) -> dict[int, Layout]:
        return {gpu: frozenset(placements) for gpu, placements in self.baseline.items()}

    @property
    def parts(self) -> frozenset[str]:
        """Types of compute instances that it has now."""
        return frozenset(d.type for d in self.slots if d.placement and d.placement.ci is not None)

    @property
    def fillers(self) -> frozenset[str]:
        return frozenset(d.type for d in self.slots if is_filler(d.type))


class Phase(Enum):
    """How far a node's transaction has come. Each is journalled before its work begins."""

    FENCED = "fenced"
    RESHAPED = "reshaped"
    PUBLISHED = "published"
    RELEASED = "released"
    ABANDONED = "abandoned"
    HELD = "held"
    """What became of a pass, never a journal's entry: left fenced, the next cycle goes on."""
    QUARANTINED = "quarantined"
    """The same: left fenced for a person."""


OPEN = frozenset({Phase.FENCED, Phase.RESHAPED, Phase.PUBLISHED})


@dataclass(frozen=True)
class Transaction:
    """One reshape of one node, from the fence to the release."""

    id: str
    node: str
    phase: Phase
    reason: str
    """The reason that we put on the node when we drained it."""
    started: float
    change: NodeChange
    before: Slots
    """The slots when it began, for `undo` and the record; a job's index means what
    `ManagedNode.slots` says."""
    slots: Slots = ()
    """The slots being published; empty until they are known."""
    finished: float = 0.0
    note: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Time spent by step; `fenced`: from the drain to the resume."""
    until: float = 0.0
    """How long the fence may wait for running jobs, in seconds since the epoch; 0: not at all."""
    failures: int = 0
    """Cycles that could not finish it."""
    failing_since: float = 0.0
    """When the first of them gave up, in seconds since the epoch."""
    needs: str = ""
    """What a person must do; the node stays fenced until `slurm-mig release`. Empty: the next cycle
    goes on by itself."""

    @property
    def is_open(self) -> bool:
        return self.phase in OPEN

    @property
    def touched(self) -> bool:
        """Something but the fence may have been changed."""
        return self.phase in (Phase.RESHAPED, Phase.PUBLISHED)

    @property
    def shown(self) -> str:
        """Its phase for people."""
        return Phase.QUARANTINED.value if self.needs else self.phase.value

    @property
    def waits(self) -> bool:
        """Fenced for as long as running jobs are in the way; nothing was changed yet."""
        return self.phase is Phase.FENCED and self.until > 0


@dataclass(frozen=True)
class Event:
    """Something that a person had slurm-mig do, apart from reshapes, for the history."""

    time: float
    did: str
    """`enrolled`, `paused`, …"""
    what: str
    """On what: nodes, a group, `the cluster`, a file."""
    by: str
    why: str = ""
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pause:
    """An administrator wants no change: of the cluster, of a group of nodes, or of one node."""

    scope: str
    """A node's name, `@` and a group's name, or empty for the cluster."""
    since: float
    by: str
    reason: str = ""

    @property
    def what(self) -> str:
        if self.scope.startswith("@"):
            return f"group {self.scope[1:]}"
        return self.scope or "the cluster"


@dataclass(frozen=True)
class NodeFacts:
    """What a node says of itself (`slurm-mig node observe`)."""

    gpus: tuple[Gpu, ...]
    driver: str = ""
    slurmd_pid: int = 0
    hooks: tuple[str, ...] = ()
    """Prologs and epilogs that run now, as `pid command`."""
    stepd_jobs: frozenset[int] = frozenset()
    """Jobs that have a slurmstepd on the node."""
    copies: Mapping[str, str] = field(default_factory=dict)
    """What the node's own nodes.conf and gres.conf of ours are: a digest, `edited`, `missing` or
    `not included`; empty where it has no files of its own."""


@dataclass(frozen=True)
class CycleReport:
    """What the last cycle saw and did, for `status`."""

    time: float
    sentence: str
    refusals: Mapping[int, str] = field(default_factory=dict)
    """Why each waiting job is not served, by job id."""
    unserved_since: Mapping[int, float] = field(default_factory=dict)
    """When each of them was first seen waiting so, in seconds since the epoch."""
    free: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Devices that it left free, by partition and type."""
    drift: Mapping[str, str] = field(default_factory=dict)
    """What it found otherwise than published, by node."""
    mended: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """When each node's drift was mended lately, in seconds since the epoch."""
    seconds: float = 0.0
    """How long it took."""
    plan_seconds: float = 0.0
    """How long its planning took."""
    silent: Mapping[str, Silence] = field(default_factory=dict)
    """Nodes that kept it or cycles before it waiting, and until when they are left alone."""
