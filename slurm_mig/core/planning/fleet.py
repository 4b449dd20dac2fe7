"""The managed nodes as the planner works on them: what is free, spoken for, and may be destroyed.

A `Node` is a draft: jobs claim devices on it, GPUs get targets, and it can say at any moment
whether a job would fit and whether its slots could be arranged. Never does it give away what is
busy, or twice what it has.
"""

from __future__ import annotations

import copy
import functools
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from slurm_mig.core import slots
from slurm_mig.core.draft import NodeDraft
from slurm_mig.core.model import (
    Gpu,
    JobRequest,
    Layout,
    NodeCondition,
    NodeView,
    Profile,
    is_filler,
)
from slurm_mig.core.planning.gpudraft import Draft
from slurm_mig.core.planning.limits import Budget, Limits
from slurm_mig.core.planning.options import Option
from slurm_mig.core.planning.shapes import Shape, shape_of

WHOLE = -1
"""Stands for the whole GPU where a placement's number is expected."""

_filler = functools.cache(is_filler)

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

    def arranged(self) -> None:
        """Raises ArrangementError when no order of the slots would do after the change (a hull)."""
        slots.order(self.view.room, self.spans, self.idle_of)


class Fleet:
    """Every node that may serve jobs, and the shapes of their GPUs."""

    def __init__(
        self,
        views: Sequence[NodeView],
        baselines: Mapping[str, Mapping[int, Layout]],
        frozen: Mapping[str, str],
        frozen_gpus: Mapping[tuple[str, int], str] | None = None,
        limits: Mapping[str, Limits] | None = None,
    ) -> None:
        """`limits` gives each node's group's, the same object for all of a group."""
        self._frozen_gpus = frozen_gpus or {}
        self._shapes: dict[Shape, None] = {}
        self._shape_of: dict[int, Shape] = {}
        self._possible_of: dict[frozenset[Hashable], frozenset[str]] = {}
        self.nodes = [
            self._node(view, baselines.get(view.name, {}), frozen.get(view.name, ""))
            for view in views
            if view.condition is NodeCondition.USABLE
        ]
        self.budgets = self._budgets(views, limits or {})

    def _budgets(self, views: Sequence[NodeView], limits: Mapping[str, Limits]) -> list[Budget]:
        """What each group has, on nodes that may not be touched too, and may lose and gain."""
        there: dict[int, Counter[str]] = {}
        for view in views:
            if view.name in limits:
                counts = there.setdefault(id(limits[view.name]), Counter())
                counts.update(i.placement.profile for g in view.gpus for i in g.instances)
        found: dict[int, Budget] = {}
        for node in self.nodes:
            if mine := limits.get(node.name):
                if id(mine) not in found:
                    found[id(mine)] = Budget.of(mine, there[id(mine)], len(found))
                node.budget = found[id(mine)]
        return list(found.values())

    def adopt(self, trials: Mapping[int, Node]) -> bool:
        """Go on with these drafts of nodes, by position; False, and nothing is done, when together
        they take more than a group's limits allow."""
        taken: dict[int, list[int]] = {}
        for trial in trials.values():
            if trial.budget:
                left = self.budgets[trial.budget.number].left
                mine = [a - b for a, b in zip(left, trial.budget.left, strict=True)]
                known = taken.setdefault(trial.budget.number, [0] * len(mine))
                taken[trial.budget.number] = [a + b for a, b in zip(known, mine, strict=True)]
        if not all(self.budgets[number].allows(use) for number, use in taken.items()):
            return False
        for number, use in taken.items():
            self.budgets[number].spend(use)
        for at, trial in trials.items():
            trial.budget = trial.budget and self.budgets[trial.budget.number]
            self.nodes[at] = trial
        return True

    @property
    def timed(self) -> bool:
        """Some node has a reservation to come: how long a job may run decides too."""
        return any(node.view.slurm.reservations for node in self.nodes)

    @property
    def shapes(self) -> list[Shape]:
        return list(self._shapes)

    def copy(self) -> Fleet:
        """The same fleet, to try something on."""
        other = Fleet((), {}, {})
        other._shapes = self._shapes
        other.nodes = [node.copy() for node in self.nodes]
        other.budgets = [budget.copy() for budget in self.budgets]
        for node in other.nodes:
            node.budget = node.budget and other.budgets[node.budget.number]
        return other

    def _shape(self, profiles: tuple[Profile, ...]) -> Shape:
        # By the object first: to compare profiles by value takes longer than all else here.
        found = self._shape_of.get(id(profiles))
        if found is None:
            found = self._shape_of[id(profiles)] = shape_of(profiles)
            self._shapes.setdefault(found)
        return found

    def _node(self, view: NodeView, baseline: Mapping[int, Layout], frozen: str) -> Node:
        drafts = [self._draft(gpu, view, baseline.get(gpu.index), frozen) for gpu in view.gpus]
        slurm = view.slurm
        node = Node(
            view, drafts, slurm.cpus - slurm.cpus_alloc, slurm.memory_mib - slurm.memory_alloc_mib,
            frozen=frozen,
        )  # fmt: skip
        node.kinds = frozenset((id(d.shape), d.whole_type, d.gpu.mig, d.switchable) for d in drafts)
        parts = {d.type for d in view.slots if d.placement and d.placement.ci is not None}
        node.possible = self._possible(node.kinds, drafts) | parts
        position = {draft.gpu.index: n for n, draft in enumerate(drafts)}
        busy = view.busy
        spans: dict[str, list[int]] = {}
        for index, device in enumerate(view.slots):
            at = position.get(device.gpu)
            if at is None or _filler(device.type):
                continue
            draft = drafts[at]
            number = WHOLE
            if device.placement is not None:
                bit = draft.shape.bit.get(device.placement.whole)
                if bit is None or not draft.gpu.mig:
                    continue
                number = bit.bit_length() - 1
            if index in busy:
                spans.setdefault(device.type, []).append(index)
                if number == WHOLE:
                    draft.whole_busy = True
                else:
                    draft.busy |= 1 << number
                    draft.idle &= ~(1 << number)
            else:
                node.idle_of[device.type] += 1
                node.free.setdefault(device.type, []).append((at, number))
        for held in view.withheld:
            draft = drafts[position[held.gpu]]
            draft.withheld = draft.shape.code(held.placements) & draft.idle
            for placement in held.placements:
                node.idle_of[placement.profile] += 1
        found = [slots.Hull(t, i[0], i[-1], len(i)) for t, i in spans.items()]
        found.sort(key=lambda hull: hull.low)
        _measure(node, found, view.room)
        return node

    def _possible(self, kinds: frozenset[Hashable], drafts: Sequence[Draft]) -> frozenset[str]:
        found = self._possible_of.get(kinds)
        if found is None:
            cut = {name for d in drafts if d.gpu.mig or d.switchable for name in d.shape.profiles}
            whole = {d.whole_type for d in drafts if d.switchable or not d.gpu.mig}
            found = self._possible_of[kinds] = frozenset(cut | whole)
        return found

    def _draft(self, gpu: Gpu, view: NodeView, baseline: Layout | None, frozen: str) -> Draft:
        shape = self._shape(gpu.profiles)
        target = shape.code(p for p in baseline if p in shape.bit) if baseline else 0
        whole = view.whole_types.get(gpu.index) or _whole_type(gpu, view)
        frozen = frozen or self._frozen_gpus.get((view.name, gpu.index), "")
        switchable = gpu.index in view.switchable
        resets = gpu.mode_needs_reset
        busy = idle = 0
        for instance in gpu.instances:
            if instance.pids:
                busy |= shape.bit[instance.placement]
            else:
                idle |= shape.bit[instance.placement]
        foreign, split = shape.code(gpu.foreign), shape.code(gpu.split)
        return Draft(
            gpu,
            shape,
            (id(shape), target, whole, gpu.mig, switchable, resets, bool(frozen)),
            busy | foreign | split,
            idle=idle & ~(foreign | split),
            foreign=foreign,
            split=split,
            baseline=target,
            whole_type=whole,
            whole_busy=not gpu.mig and bool(gpu.pids),
            switchable=switchable,
            frozen=frozen,
        )


def _measure(node: Node, hulls: Sequence[slots.Hull], total: int) -> None:
    """The holes of each hull, the room beside it, and the longest gap."""
    node.spans = hulls
    starts = [0, *(hull.high + 1 for hull in hulls)]
    ends = [*(hull.low for hull in hulls), total]
    gaps = [end - start for start, end in zip(starts, ends, strict=True)]
    node.gap = max(gaps)
    for n, hull in enumerate(hulls):
        node.room[hull.type] = hull.holes + gaps[n] + gaps[n + 1]
        if hull.holes:
            node.holes[hull.type] = hull.holes


def uses(budget: Budget, draft: NodeDraft) -> Iterator[list[int]]:
    """What each GPU's change in a draft takes of the group's limits."""
    for gpu in draft.view.gpus:
        created = Counter(p.profile for g, p in draft.created if g == gpu.index)
        destroyed = Counter(p.profile for g, p in draft.destroyed if g == gpu.index)
        if created or destroyed:
            yield budget.use_of(created, destroyed)


def _whole_type(gpu: Gpu, view: NodeView) -> str:
    """Type of a GPU without MIG, from the slot that it has."""
    if gpu.mig:
        return ""
    return next((d.type for d in view.slots if d.gpu == gpu.index and not is_filler(d.type)), "")
