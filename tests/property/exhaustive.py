"""The best plan on nodes by trying everything: every layout of every GPU, every choice of nodes for
every job, with CPUs, memory, slots and the groups' limits as they are on each node.

It knows the objective only as docs/planner.md words it, the geometry only as core/geometry has it,
and of slots only what `slots.order` says of a number of devices of each type.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from slurm_mig.core import slots
from slurm_mig.core.model import JobRequest, Layout, NodeView, is_filler
from slurm_mig.core.planning.limits import Limits
from slurm_mig.core.planning.weights import level
from slurm_mig.errors import ArrangementError
from tests.property.test_programme import ALL_LAYOUTS, SLICES, WEIGHTS, cost

Numbers = tuple[int, ...]


@dataclass(frozen=True)
class Way:
    """What can be made of one node."""

    supply: Numbers
    """Free instances of each wanted type."""
    use: Numbers
    """What it takes of each limit."""
    cost: int


class Cluster:
    """Nodes, what waits, and one group of nodes with limits."""

    def __init__(
        self,
        views: Sequence[NodeView],
        baselines: Mapping[str, Mapping[int, Layout]],
        requests: Sequence[JobRequest],
        limits: Limits | None,
        limited: frozenset[str],
        twice: int = WEIGHTS.twice,
    ) -> None:
        """`twice` is what a second registration costs."""
        self._twice = twice
        self._views, self._requests = views, requests
        self._wanted = sorted({t for r in requests for t in r.gpus})
        self._limits, self._limited = limits or Limits(""), limited
        self._ways = [self._of_node(view, baselines.get(view.name, {})) for view in views]

    def best(self) -> int:
        """The most that any plan is worth."""
        highest = max(r.priority for r in self._requests)
        best = 0
        for chosen in itertools.product(*map(self._places, self._requests)):
            value, needs = 0, [[0] * len(self._wanted) for _ in self._views]
            for request, nodes in zip(self._requests, chosen, strict=True):
                size = sum(n * SLICES[t] for t, n in request.gpus.items())
                value += WEIGHTS.job * level(request.priority, highest) * size * len(nodes)
                for at, (t, n) in itertools.product(nodes, request.gpus.items()):
                    needs[at][self._wanted.index(t)] += n
            if value > best and self._bearable(chosen):
                least = self._least(needs)
                best = best if least is None else max(best, value - least)
        return best

    def _places(self, request: JobRequest) -> list[tuple[int, ...]]:
        """The sets of nodes that could have the job; the first is none."""
        able = [n for n, v in enumerate(self._views) if request.partition in v.slurm.partitions]
        return [(), *itertools.combinations(able, request.nodes)]

    def _bearable(self, chosen: Sequence[Sequence[int]]) -> bool:
        """The nodes have the CPUs and the memory for all that is on them."""
        for at, view in enumerate(self._views):
            here = [r for r, n in zip(self._requests, chosen, strict=True) if at in n]
            free = view.slurm.memory_mib - view.slurm.memory_alloc_mib
            if (
                sum(r.cpus for r in here) > view.slurm.cpus - view.slurm.cpus_alloc
                or sum(r.memory_mib for r in here) > free
            ):
                return False
        return True

    def _least(self, needs: Sequence[Sequence[int]]) -> int | None:
        """What it costs at least that each node offers so much, within the limits."""
        left = self._left()
        reached: dict[Numbers, int] = {(0,) * len(left): 0}
        for ways, need in zip(self._ways, needs, strict=True):
            enough = [
                way for way in ways if all(a >= b for a, b in zip(way.supply, need, strict=True))
            ]
            step: dict[Numbers, int] = {}
            for (used, paid), way in itertools.product(reached.items(), enough):
                use = tuple(map(sum, zip(used, way.use, strict=True)))
                if all(a <= b for a, b in zip(use, left, strict=True)):
                    step[use] = min(paid + way.cost, step.get(use, paid + way.cost))
            reached = step
        return min(reached.values(), default=None)

    def _left(self) -> Numbers:
        """What the group may lose of each minimum's profile, and gain of each maximum's."""
        there = Counter(
            i.placement.profile
            for view in self._views
            if view.name in self._limited
            for gpu in view.gpus
            for i in gpu.instances
        )
        least, most = self._limits.least, self._limits.most
        return (
            *(max(0, there[t] - least[t]) for t in sorted(least)),
            *(max(0, most[t] - there[t]) for t in sorted(most)),
        )

    def _use(self, before: Layout, after: Layout) -> Numbers:
        """What one GPU's change takes of the limits: nothing makes up for another change."""
        more = Counter(p.profile for p in after)
        more.subtract(p.profile for p in before)
        return (
            *(max(0, -more[t]) for t in sorted(self._limits.least)),
            *(max(0, more[t]) for t in sorted(self._limits.most)),
        )

    def _of_node(self, view: NodeView, baselines: Mapping[int, Layout]) -> list[Way]:
        """The cheapest way to each supply and use."""
        choices = [list(self._of_gpu(view, n, baselines)) for n in range(len(view.gpus))]
        known: dict[tuple[tuple[str, int], ...], bool] = {}
        best: dict[tuple[Numbers, Numbers], int] = {}
        for together in itertools.product(*choices):
            free: Counter[str] = Counter()
            for counts, _, _ in together:
                free.update(counts)
            key = tuple(sorted(free.items()))
            if key not in known:
                known[key] = arrangeable(view, free)
            if known[key]:
                supply = tuple(free[t] for t in self._wanted)
                use = tuple(map(sum, zip(*(use for _, use, _ in together), strict=True)))
                paid = sum(points for *_, points in together)
                paid += self._twice * registers_twice(view, free)
                best[supply, use] = min(paid, best.get((supply, use), paid))
        return [Way(supply, use, paid) for (supply, use), paid in best.items()]

    def _of_gpu(
        self, view: NodeView, position: int, baselines: Mapping[int, Layout]
    ) -> Iterator[tuple[Counter[str], Numbers, int]]:
        """Free devices by type, use and cost of each layout that the GPU could have by itself."""
        board = view.gpus[position]
        busy = frozenset(
            p
            for i in view.busy
            if view.slots[i].gpu == board.index and (p := view.slots[i].placement)
        )
        others = Counter(
            d.type
            for i, d in enumerate(view.slots)
            if i not in view.busy and d.gpu != board.index and not is_filler(d.type)
        )
        for target in ALL_LAYOUTS[board.model]:
            new = {p.profile for p in target - board.layout}
            if not busy <= target or not new <= set(self._wanted):
                continue
            free = Counter(p.profile for p in target - busy)
            if target == board.layout or arrangeable(view, others + free):
                use = self._use(board.layout, target) if view.name in self._limited else ()
                use = use or (0,) * len(self._left())
                baseline = baselines.get(board.index, frozenset())
                yield free, use, cost(board, busy, baseline, target)


def registers_twice(view: NodeView, free: Mapping[str, int]) -> bool:
    """A type that the node offers beside running jobs is neither busy nor free afterwards."""
    offered = {d.type for d in view.slots if not is_filler(d.type)}
    busy = {view.slots[i].type for i in view.busy}
    return bool(view.slurm.allocations) and any(not free.get(t) for t in offered - busy)


def arrangeable(view: NodeView, free: Mapping[str, int]) -> bool:
    """The node's slots have an order for so many free devices beside the busy ones."""
    busy = {i: view.slots[i] for i in view.busy}
    try:
        slots.order(view.room, slots.hulls(busy), free)
    except ArrangementError:
        return False
    return True
