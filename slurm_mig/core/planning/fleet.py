"""The managed nodes as the planner works on them, from what was observed."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence

from slurm_mig.core import slots
from slurm_mig.core.model import Gpu, Layout, NodeCondition, NodeView, Profile, is_filler
from slurm_mig.core.planning.gpudraft import Draft
from slurm_mig.core.planning.limits import Budget, Limits
from slurm_mig.core.planning.node import WHOLE, Node
from slurm_mig.core.planning.shapes import Shape, shape_of

_filler = functools.cache(is_filler)


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
        if slurm.allocations and view.slotted:
            node.fleeting = dict.fromkeys((t for t in node.free if t not in spans), 0)
        for held in view.withheld:
            draft = drafts[position[held.gpu]]
            draft.withheld = draft.shape.code(held.placements) & draft.idle
            for placement in held.placements:
                node.idle_of[placement.profile] += 1
        found = [slots.Hull(t, i[0], i[-1], len(i)) for t, i in spans.items()]
        found.sort(key=lambda hull: hull.low)
        node.measure(found)
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


def _whole_type(gpu: Gpu, view: NodeView) -> str:
    """Type of a GPU without MIG, from the slot that it has."""
    if gpu.mig:
        return ""
    return next((d.type for d in view.slots if d.gpu == gpu.index and not is_filler(d.type)), "")
