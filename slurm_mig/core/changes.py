"""What is to become of the cluster: a plan, the change of each node in it, and what it refuses.

Made by the planner, reviewed by policy, carried out by the executor. Frozen values, no I/O.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from slurm_mig.core.model import Layout, Place, Placement, Slots, Withholding

Split = tuple[Placement, tuple[int, ...]]
"""A GPU instance and the compute slices of its compute instances; none: one that spans it."""


@dataclass(frozen=True, slots=True)
class GpuChange:
    """What one GPU gives up and gets."""

    gpu: int
    kept: tuple[Placement, ...]
    destroyed: tuple[Placement, ...]
    created: tuple[Placement, ...]
    mig: bool = True
    """MIG mode afterwards; off makes the GPU a whole one."""
    splits: tuple[Split, ...] = ()
    """Compute instances of what is created, where not one spans it, and of what is kept, where
    they change."""

    @property
    def target(self) -> Layout:
        return frozenset(self.kept + self.created)

    @property
    def resplit(self) -> Layout:
        """GPU instances that stay and get other compute instances."""
        return frozenset(p for p, _ in self.splits if p in self.kept)


@dataclass(frozen=True, slots=True)
class NodeChange:
    """A planned reshape of one node."""

    node: str
    gpus: tuple[GpuChange, ...]
    slots: Slots
    """Slots after it; devices that do not exist yet have no files or UUID."""
    serves: tuple[int, ...]
    """Jobs that it unblocks."""
    withheld: tuple[Withholding, ...] = ()
    """What is published as fillers afterwards; what was withheld before and is not in here is
    offered again."""
    behind_fence: bool = False
    """Running jobs are in the way: the node is fenced until they have ended."""
    why: str = ""
    """What it is for, in words, for the history."""
    plan: str = ""
    """The plan that it is part of; changes of one plan were made together."""

    @property
    def blocking(self) -> frozenset[Place]:
        """The devices that must go: none may be busy when it happens. A GPU that is whole now is
        among them, as it gets instances."""
        gone: set[Place] = {(g.gpu, p) for g in self.gpus for p in (*g.destroyed, *g.resplit)}
        return frozenset(gone | {(g.gpu, None) for g in self.gpus if g.mig})


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a waiting job is not served now."""

    job_id: int
    reason: str
    wants: str = ""


@dataclass(frozen=True, slots=True)
class Quality:
    """How good a plan is: the objective, and the proof."""

    value: int
    """Points: what the served jobs are worth less what the changes cost (docs/planner.md)."""
    bound: int
    """No plan can be worth more."""
    proven: bool
    """The bound is the optimum of the programme over classes, not only an estimate."""
    worth: int = 0
    """What the served jobs are worth."""
    cost: int = 0
    """What the changes cost."""
    terms: tuple[tuple[str, int], ...] = ()
    """The cost by term, as (words, points)."""
    withheld: tuple[tuple[str, int], ...] = ()
    """What it costs to keep room for jobs that running jobs are in the way of, as (words, points):
    decided afterwards, and no part of the value."""
    classes: int = 0
    gpus: int = 0
    refused_by_hulls: int = 0
    """Layouts that the programme wanted and no node could have beside its running jobs."""

    @property
    def gap(self) -> float:
        """The share of the bound that the plan falls short of it."""
        return max(0.0, 1 - self.value / self.bound) if self.bound > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What one cycle wants to do, and why it leaves the rest alone."""

    changes: tuple[NodeChange, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    startable: tuple[int, ...] = ()
    """Jobs that can start on what is there now: not unmet demand."""
    notes: tuple[str, ...] = field(default=())
    quality: Quality | None = None
    """None from a planner that proves nothing."""
