"""Waiting for running jobs without a fence: which idle instances to withhold, and where.

A job that nothing can be cut for now is given a goal: the placements that will be free first. What
is idle there is withheld (published as fillers), so that no other job takes it meanwhile; as the
running jobs end, the next cycles withhold the rest, and then the GPU is cut. Never takes anything
from a running job.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from slurm_mig.core import geometry
from slurm_mig.core.changes import GpuChange, NodeChange
from slurm_mig.core.draft import NodeDraft, never
from slurm_mig.core.model import (
    Allocation,
    Gpu,
    JobRequest,
    Layout,
    Patience,
    Placement,
    Withholding,
)
from slurm_mig.errors import ArrangementError

NO_END = 1 << 40
"""Stands for the end of a job without a time limit."""


@dataclass(frozen=True)
class Price:
    """What it costs, in points, to keep room for one job until it can start (docs/planner.md)."""

    now: float = 0.0
    longest_s: float = 0.0
    """Instances are withheld for no longer than that."""
    own_s: Mapping[str, float] = field(default_factory=dict)
    """The same by node, where it is another time."""
    worth: int = 0
    """What the job is worth: for each minute that it waits a hundredth of that."""
    slice_minute: int = 0
    """For each minute that a compute slice is withheld."""

    def minutes(self, node: str, end: float) -> int:
        """Whole minutes from now until the moment, as far as they count."""
        longest = self.own_s.get(node, self.longest_s)
        return math.ceil(min(max(0.0, end - self.now), longest) / 60)

    def withheld(self, minutes: int, slices: int) -> int:
        return self.slice_minute * minutes * slices

    def of(self, minutes: int, slices: int) -> int:
        """What such a wait costs altogether."""
        return self.withheld(minutes, slices) + self.worth * minutes // 100


FREE = Price()


@dataclass(frozen=True)
class Kept:
    """What is done for a job that waits."""

    sentence: str
    """For people."""
    slices: int = 0
    """Compute slices of the idle instances that are withheld for it."""
    cost: int = 0
    """Points for that, for as long as it may last."""
    held: bool = True
    """No: nothing, as it would cost more than the job is worth."""


@dataclass
class Goal:
    """What one node would do for a job, with the draft in which it does."""

    node: str
    draft: NodeDraft
    price: Price = FREE
    parts: list[_Part] = field(default_factory=list)
    withheld: int = 0
    """Compute slices of what is withheld in it."""

    @property
    def minutes(self) -> int:
        """How long it takes at most, as far as that counts."""
        return max((part.minutes for part in self.parts), default=0)

    @property
    def cost(self) -> int:
        """Points for what is withheld."""
        return self.price.withheld(self.minutes, self.withheld)

    @property
    def begun(self) -> bool:
        """Instances are withheld for the job on each of its GPUs already. What that costs was
        weighed then; it grows as the jobs in the way end, which is no reason to give up."""
        return all(part.known for part in self.parts)

    @property
    def key(self) -> tuple[bool, int, tuple[bool, int, int, int, int, int], str]:
        """Where it was begun; else where it costs least."""
        slices = sum(part.slices for part in self.parts)
        worst = max(part.key for part in self.parts)
        return (not self.begun, self.price.of(self.minutes, slices), worst, self.node)

    @property
    def sentence(self) -> str:
        """Why the job waits, for people."""
        jobs = sorted({a.job_id for part in self.parts for a in part.blocking.values()})
        gpus = sorted({part.gpu.index for part in self.parts})
        here = f"GPU {', '.join(map(str, gpus))} of {self.node}"
        if not jobs and not any(part.claimed for part in self.parts):
            return f"{here} is kept for it until running jobs no longer fix the order of its slots"
        end = f"job {', '.join(map(str, jobs))} ends" if jobs else "jobs before it have ended"
        kept = any(goal.placements for goal in self.draft.goals)
        return f"{here} is kept for it until {end}" if kept else f"{here} may serve it when {end}"


@dataclass(frozen=True)
class _Part:
    """One device of a goal: its place, the jobs in the way, and the idle instances there."""

    gpu: Gpu
    added: Layout
    """Empty: the GPU becomes a whole one."""
    blocking: Mapping[Placement, Allocation]
    idle: frozenset[Placement]
    claimed: frozenset[Placement]
    """Idle ones there that a job of higher priority is about to take."""
    known: bool
    """Instances are withheld there for this job already."""
    ends: int
    """When nothing is in the way any more, as far as time limits tell."""
    minutes: int
    """Until then."""
    cost: int

    @property
    def going(self) -> frozenset[Placement]:
        """What is there now, in the device's place."""
        return self.idle | self.blocking.keys() | self.claimed

    @property
    def slices(self) -> int:
        """Compute slices of the idle instances."""
        return slices_on(self.gpu, self.idle)

    @property
    def key(self) -> tuple[bool, int, int, int, int, int]:
        """Where it was begun; else by cost, by end, by what is idle; the last GPU first."""
        start = min((p.start for p in self.added), default=0)
        return (not self.known, self.cost, self.ends, len(self.idle), -self.gpu.index, start)


def patience(unserved_s: float, withhold_s: float, fence_wait_s: float) -> Patience:
    """What may be done for a job that could not be served for this long.

    Instances are withheld; if others took every slot that became free all the while, the node
    is fenced; then, lest one job keep a node for ever, nothing is done for as long again.
    """
    period = 2 * (withhold_s + fence_wait_s)
    at = unserved_s % period if period else 0.0
    if at < withhold_s:
        return Patience.WITHHOLD
    return Patience.FENCE if at < withhold_s + fence_wait_s else Patience.NONE


def slices_on(gpu: Gpu, placements: Iterable[Placement]) -> int:
    """Compute slices of GPU instances, by the GPU's own profiles."""
    of_profile = {p.name: p.compute_slices for p in gpu.profiles}
    return sum(of_profile.get(p.profile, 0) for p in placements)


def goals(drafts: Mapping[str, NodeDraft], request: JobRequest, price: Price = FREE) -> list[Goal]:
    """A goal for each node that the job can run on once others have ended, the best first."""
    found = []
    for name, draft in drafts.items():
        if never(draft.view, request):
            continue
        goal = _goal(Goal(name, draft.copy(), price), draft, request)
        if goal is not None:
            found.append(goal)
    return sorted(found, key=lambda goal: goal.key)


def _goal(goal: Goal, draft: NodeDraft, request: JobRequest) -> Goal | None:
    for gres_type, missing in draft.missing(request).items():
        for _ in range(missing):
            part = min(_parts(goal, gres_type, request), key=lambda p: p.key, default=None)
            if part is None:
                return None
            goal.parts.append(part)
            goal.withheld += slices_on(part.gpu, _withhold(goal.draft, part, request))
    # With nobody in the way hulls are: only a fence lets their jobs end without successors.
    if any(p.blocking or p.claimed for p in goal.parts) or request.patience is Patience.FENCE:
        return goal if goal.parts else None
    return None


def _parts(goal: Goal, gres_type: str, request: JobRequest) -> Iterator[_Part]:
    """Every place where nothing is in the way but jobs, which have an end."""
    draft = goal.draft
    busy = draft.busy_places
    for gpu in draft.view.gpus:
        holders = draft.holders(gpu)
        strangers = {p and p.whole for g, p in busy if g == gpu.index} - holders.keys()
        chosen = [a for part in goal.parts if part.gpu.index == gpu.index for a in part.added]
        whole = any(part.gpu.index == gpu.index and not part.added for part in goal.parts)
        if strangers or whole:
            continue
        known = any(w.gpu == gpu.index and request.job_id in w.jobs for w in draft.view.withheld)
        promised = {p for g, p in draft.promised if g == gpu.index}
        kept = (promised - holders.keys()) | frozenset(chosen) | gpu.foreign | gpu.split
        for added in _placements(draft, gpu, gres_type, frozenset(kept)):
            yield _part(goal, gpu, added, holders, known=known)


def _placements(draft: NodeDraft, gpu: Gpu, gres_type: str, kept: Layout) -> Iterator[Layout]:
    """The ways to place one device beside what is promised, whoever is there now."""
    if not draft.mig(gpu):
        return
    yield from geometry.ways_to_add(gpu, kept, {gres_type: 1})
    becomes_whole = draft.view.whole_types.get(gpu.index) == gres_type
    if becomes_whole and gpu.index in draft.view.switchable and not kept:
        yield frozenset()


def _part(
    goal: Goal,
    gpu: Gpu,
    added: Layout,
    holders: Mapping[Placement, Allocation],
    *,
    known: bool,
) -> _Part:
    draft = goal.draft
    target = draft.target(gpu)
    near = {p for p in target if not added or any(p.overlaps(a) for a in added)}
    blocking = {p: a for p, a in holders.items() if p in near}
    # Instances elsewhere on the GPU may use compute slices that the new one needs.
    others = frozenset(holders.keys() - near)
    if added and not geometry.fits(gpu, others | added | gpu.foreign | gpu.split):
        blocking = dict(holders)
    claimed = frozenset(p for p in near - holders.keys() if (gpu.index, p) in draft.claimed)
    promised = {p for g, p in draft.promised if g == gpu.index}
    idle = frozenset(near - holders.keys() - claimed - promised)
    ends = max((a.end_time or NO_END for a in blocking.values()), default=0)
    ends = NO_END if claimed else ends
    minutes = goal.price.minutes(goal.node, ends)
    cost = goal.price.of(minutes, slices_on(gpu, idle))
    return _Part(gpu, added, blocking, idle, claimed, known, ends, minutes, cost)


def _withhold(draft: NodeDraft, part: _Part, request: JobRequest) -> set[Placement]:
    """Withhold the part's idle instances, as many as the hulls of running jobs allow; which."""
    held: set[Placement] = set()
    for placement in sorted(part.idle):
        place = (part.gpu.index, placement)
        if place in draft.withheld:
            held.add(placement)
            continue
        draft.withheld.add(place)
        try:
            draft.arranged()
        except ArrangementError:
            draft.withheld.discard(place)
        else:
            held.add(placement)
    since = min(
        (w.since for w in draft.view.withheld if w.gpu == part.gpu.index and w.since), default=0.0
    )
    draft.goals.append(Withholding(part.gpu.index, frozenset(held), (request.job_id,), since))
    return held


def fence(goal: Goal, request: JobRequest) -> NodeChange:
    """The goal as a change that waits behind a fence until the jobs in its way have ended."""
    gpus = tuple(_fenced(goal.draft, part.gpu, goal.parts) for part in _first(goal.parts))
    gone = {(part.gpu.index, p) for part in goal.parts for p in part.going}
    return NodeChange(
        goal.node,
        gpus,
        goal.draft.view.slots,
        (request.job_id,),
        tuple(still(goal.draft.view.withheld, gone)),
        behind_fence=True,
    )


def still(
    withheld: Iterable[Withholding], gone: Collection[tuple[int, Placement]]
) -> Iterator[Withholding]:
    """What is left of it without these placements."""
    for held in withheld:
        left = frozenset(p for p in held.placements if (held.gpu, p) not in gone)
        if left:
            yield replace(held, placements=left)


def _first(parts: list[_Part]) -> list[_Part]:
    return list({part.gpu.index: part for part in reversed(parts)}.values())


def _fenced(draft: NodeDraft, gpu: Gpu, parts: list[_Part]) -> GpuChange:
    mine = [part for part in parts if part.gpu.index == gpu.index]
    added = frozenset(a for part in mine for a in part.added)
    going = {p for part in mine for p in part.going}
    kept = gpu.layout - going
    return GpuChange(
        gpu.index,
        tuple(sorted(kept | (gpu.layout & added))),
        tuple(sorted(going - added)),
        tuple(sorted(added - gpu.layout)),
        bool(added),
    )
