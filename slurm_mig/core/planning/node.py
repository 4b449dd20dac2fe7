"""One managed node as the planner works on it: what is free, spoken for, and may be destroyed.

A `Node` is a draft: jobs claim devices on it, GPUs get targets, and it can say at any moment
whether a job would fit and whether its slots could be arranged. Never does it give away what is
busy, or twice what it has.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from slurm_mig.core import slots
from slurm_mig.core.draft import NodeDraft
from slurm_mig.core.model import JobRequest, NodeView
from slurm_mig.core.planning.gpudraft import Draft
from slurm_mig.core.planning.limits import Budget
from slurm_mig.core.planning.options import Option

WHOLE = -1
"""Stands for the whole GPU where a placement's number is expected."""

Spot = tuple[int, int]
"""(position of the GPU in its node, number of the placement in its shape, or WHOLE)."""


@dataclass
class Node:
    """One node; `free` has what a job could have now or, for planned devices, after the change."""

    view: NodeView
    drafts: list[Draft]
    cpus: int
    memory_mib: int
    free: dict[str, list[Spot]] = field(default_factory=dict)
    """By type, in the order in which Slurm gives them away: by index, planned ones last."""
    holes: dict[str, int] = field(default_factory=dict)
    """By busy type: free devices that must remain of it, so that its hull is whole."""
    idle_of: Counter[str] = field(default_factory=Counter)
    """By type: devices that are not busy."""
    room: dict[str, int] = field(default_factory=dict)
    """By busy type: how many free devices there can be at indexes in and beside its hull."""
    spans: Sequence[slots.Hull] = ()
    """Its hulls, by index."""
    gap: int = 0
    """The longest run of indexes between hulls: room for a type that is not busy."""
    fleeting: Mapping[str, int] = field(default_factory=dict)
    """By type that it offers beside running jobs, and none of which is busy: how many of the idle
    ones are held back. If no more are left, it registers twice."""
    gained: Counter[str] = field(default_factory=Counter)
    """By type: what changed GPUs have more of than before."""
    serves: list[int] = field(default_factory=list)
    frozen: str = ""
    possible: frozenset[str] = frozenset()
    """Types that it has or could have."""
    kinds: frozenset[Hashable] = frozenset()
    """What GPUs it has."""
    budget: Budget | None = None
    """What its group may still lose and gain; shared by the group's nodes."""

    @property
    def name(self) -> str:
        return self.view.name

    def fits(self, request: JobRequest) -> bool:
        """True if one node's share of the job could start here, on what `free` has."""
        if request.cpus > self.cpus or request.memory_mib > self.memory_mib:
            return False
        if request.exclusive and self.cpus < self.view.slurm.cpus:
            return False
        return all(len(self.free.get(t, ())) >= n for t, n in request.gpus.items())

    def claim(self, request: JobRequest) -> bool:
        """Give the job its devices; they are destroyed by nothing from now on.

        True if one of them is not offered yet: the node must change for the job.
        """
        taken: list[Spot] = []
        for gres_type, count in request.gpus.items():
            pool = self.free[gres_type]
            taken += pool[:count]
            del pool[:count]
        planned = False
        for position, number in taken:
            draft = self.drafts[position]
            if number == WHOLE:
                planned = planned or draft.target is not None
                draft.whole_busy = True
            elif draft.target is not None and draft.target.created >> number & 1:
                planned = True
                draft.taken |= 1 << number
            else:
                planned = planned or bool(draft.withheld >> number & 1)
                draft.idle &= ~(1 << number)
                draft.claimed |= 1 << number
        self.cpus = 0 if request.exclusive else self.cpus - request.cpus
        self.memory_mib -= request.memory_mib
        return planned

    def keep(self, draft: NodeDraft) -> None:
        """Take over what was decided for this node before: what is held or about to go is not
        ours to give away, and GPUs that change already change no more."""
        for position, mine in enumerate(self.drafts):
            index = mine.gpu.index
            gone = mine.shape.code(p for g, p in draft.destroyed if g == index)
            held = {p for g, p in (*draft.promised, *draft.claimed) if g == index and p is not None}
            kept = mine.shape.code(p for p in held if p in mine.gpu.layout) & mine.idle
            for name, count in mine.shape.counts(gone & mine.idle).items():
                self.idle_of[name] -= count
            mine.idle &= ~(gone | kept)
            mine.claimed |= kept
            if (
                gone
                or draft.modes.get(index) is not None
                or any(g == index for g, _ in draft.created)
            ):
                mine.frozen = "changes for another job"
            for name, spots in self.free.items():
                self.free[name] = [
                    (at, n)
                    for at, n in spots
                    if at != position or n == WHOLE or (mine.idle | mine.split) >> n & 1
                ]
            for g, p in draft.claimed:
                if g == index and p is not None and p.ci is not None:
                    self.free[p.profile].remove(
                        (position, mine.shape.bit[p.whole].bit_length() - 1)
                    )
        self.cpus, self.memory_mib = draft.cpus, draft.memory_mib
        waiting = Counter(p.profile for _, p in draft.promised)
        made = {p.profile for _, p in draft.created}
        self.fleeting = {
            t: waiting[t] for t in self.fleeting if t not in made and self.idle_of[t] > waiting[t]
        }
        if self.budget:
            for use in uses(self.budget, draft):
                self.budget.spend(use)

    def give(self, draft: NodeDraft) -> None:
        """Hand over what was decided here."""
        for mine in self.drafts:
            index, shape = mine.gpu.index, mine.shape
            draft.claimed |= {(index, shape.placements[n]) for n in shape.numbers(mine.claimed)}
            if mine.target is not None:
                option, new = mine.target, mine.target.created | mine.filled
                draft.created |= {(index, shape.placements[n]) for n in shape.numbers(new)}
                draft.destroyed |= {
                    (index, shape.placements[n]) for n in shape.numbers(option.destroyed)
                }
                draft.withheld -= draft.destroyed
                draft.claimed |= {(index, shape.placements[n]) for n in shape.numbers(mine.taken)}
                draft.set_mode(mine.gpu, mig=option.mig)
            if mine.whole_busy and not mine.mig_after:
                draft.claimed.add((index, None))
        draft.serves += self.serves
        draft.cpus, draft.memory_mib = self.cpus, self.memory_mib

    @property
    def touched(self) -> bool:
        """Something was decided here."""
        return bool(self.serves) or any(d.claimed or d.target or d.whole_busy for d in self.drafts)

    def offer_again(self) -> None:
        """What is withheld, and not held for a job that waits for more, is free too."""
        for position, draft in enumerate(self.drafts):
            for number in draft.shape.numbers(draft.withheld & draft.idle):
                name = draft.shape.placements[number].profile
                self.free.setdefault(name, []).append((position, number))

    def spare(self, gres_type: str) -> int | None:
        """How many free devices of a type its hull can do without; None where it needs none."""
        holes = self.holes.get(gres_type)
        return None if holes is None else self.idle_of[gres_type] - self.gained[gres_type] - holes

    def growth(self, gres_type: str) -> int:
        """How many more free devices of a type the order of the slots has room for."""
        return self.room.get(gres_type, self.gap) - self.idle_of[gres_type]

    @property
    def registers_twice(self) -> bool:
        """A type goes from it while jobs use others: slurmctld takes that in two registrations
        (docs/concepts.md)."""
        return any(self.idle_of[t] <= held for t, held in self.fleeting.items())

    def loses_type(self, position: int, option: Option) -> bool:
        """The option, as the next change, would have it register twice."""
        if not self.fleeting or not option.destroyed:
            return False
        shape = self.drafts[position].shape
        created = shape.counts(option.created)
        return any(
            t in self.fleeting and t not in created and self.idle_of[t] - n <= self.fleeting[t]
            for t, n in shape.counts(option.destroyed).items()
        )

    def change_allowed(self, position: int, option: Option) -> bool:
        """False when a hull would lose an instance that it needs, or be in the way of one more (a
        quick test: `arranged` is the exact one). What other GPUs of the node gain makes up for
        nothing."""
        if self.budget and not self.budget.allows(self.use(position, option)):
            return False
        shape = self.drafts[position].shape
        created, destroyed = shape.counts(option.created), shape.counts(option.destroyed)
        if any(n - destroyed.get(t, 0) > self.growth(t) for t, n in created.items()):
            return False
        return all(
            n - created.get(t, 0) <= spare
            for t, n in destroyed.items()
            if (spare := self.spare(t)) is not None
        )

    def use(self, position: int, option: Option) -> list[int]:
        """What the option takes of the group's limits."""
        if self.budget is None:
            return []
        shape = self.drafts[position].shape
        return self.budget.use_of(shape.counts(option.created), shape.counts(option.destroyed))

    def change(self, position: int, option: Option) -> None:
        """Take the option for the GPU; what it creates is free, what it destroys is not."""
        draft = self.drafts[position]
        draft.target = option
        if self.budget:
            self.budget.spend(self.use(position, option))
        self._note_gain(draft, option, 1)
        for number in draft.shape.numbers(option.destroyed):
            name = draft.shape.placements[number].profile
            self.idle_of[name] -= 1
            if (position, number) in self.free.get(name, ()):
                self.free[name].remove((position, number))
        if not draft.gpu.mig and option.mig:
            self.free[draft.whole_type].remove((position, WHOLE))
            self.idle_of[draft.whole_type] -= 1
        for number in draft.shape.numbers(option.created):
            name = draft.shape.placements[number].profile
            self.idle_of[name] += 1
            self.free.setdefault(name, []).append((position, number))
        if draft.gpu.mig and not option.mig:
            self.free.setdefault(draft.whole_type, []).append((position, WHOLE))
            self.idle_of[draft.whole_type] += 1

    def _note_gain(self, draft: Draft, option: Option, sign: int) -> None:
        lost = draft.shape.counts(option.destroyed)
        for name, n in draft.shape.counts(option.created).items():
            self.gained[name] += sign * max(0, n - lost.get(name, 0))

    def revert(self, position: int) -> None:
        """Back to as it is. Nothing that the target creates may be claimed."""
        draft = self.drafts[position]
        option = draft.target
        if option is None:
            return
        draft.target = None
        if self.budget:
            self.budget.spend(self.use(position, option), -1)
        self._note_gain(draft, option, -1)
        for number in draft.shape.numbers(option.created):
            name = draft.shape.placements[number].profile
            self.idle_of[name] -= 1
            self.free[name].remove((position, number))
        if draft.gpu.mig and not option.mig:
            self.free[draft.whole_type].remove((position, WHOLE))
            self.idle_of[draft.whole_type] -= 1
        for number in draft.shape.numbers(option.destroyed):
            name = draft.shape.placements[number].profile
            self.idle_of[name] += 1
            self.free.setdefault(name, []).append((position, number))
        if not draft.gpu.mig and option.mig:
            self.free.setdefault(draft.whole_type, []).append((position, WHOLE))
            self.idle_of[draft.whole_type] += 1

    def copy(self) -> Node:
        """A draft to try something on; `view` and shapes are shared."""
        return replace(
            self,
            drafts=[copy.copy(draft) for draft in self.drafts],
            free={t: list(spots) for t, spots in self.free.items()},
            idle_of=Counter(self.idle_of),
            gained=Counter(self.gained),
            serves=list(self.serves),
            budget=self.budget and self.budget.copy(),
        )

    def measure(self, hulls: Sequence[slots.Hull]) -> None:
        """Note the holes of each hull, the room beside it, and the longest gap."""
        self.spans = hulls
        starts = [0, *(hull.high + 1 for hull in hulls)]
        ends = [*(hull.low for hull in hulls), self.view.room]
        gaps = [end - start for start, end in zip(starts, ends, strict=True)]
        self.gap = max(gaps)
        for n, hull in enumerate(hulls):
            self.room[hull.type] = hull.holes + gaps[n] + gaps[n + 1]
            if hull.holes:
                self.holes[hull.type] = hull.holes

    def arranged(self) -> None:
        """Raises ArrangementError when no order of the slots would do after the change (a hull)."""
        slots.order(self.view.room, self.spans, self.idle_of)


def uses(budget: Budget, draft: NodeDraft) -> Iterator[list[int]]:
    """What each GPU's change in a draft takes of the group's limits."""
    for gpu in draft.view.gpus:
        created = Counter(p.profile for g, p in draft.created if g == gpu.index)
        destroyed = Counter(p.profile for g, p in draft.destroyed if g == gpu.index)
        if created or destroyed:
            yield budget.use_of(created, destroyed)
