"""The second stage: from so many GPUs of a class to GPUs, from so many jobs of a group to nodes.

Jobs that need several instances come first, each on the nodes where that costs least: what they
need must come together, which the programme does not see. The fine programme then says, node by
node where hulls matter, what becomes of all other GPUs for all other jobs. Each job gets its
devices, CPUs and memory on a node; one that finds none is tried on nodes that may yet change.
What serves nobody in the end stays as it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from slurm_mig.core.planning.classes import Member, Problem, problem, refined
from slurm_mig.core.planning.fleet import Fleet
from slurm_mig.core.planning.mending import Mender
from slurm_mig.core.planning.node import Node
from slurm_mig.core.planning.placing import Places
from slurm_mig.core.planning.programme import Programme, Solution
from slurm_mig.core.planning.units import Pools, Unit
from slurm_mig.core.planning.weights import Weights
from slurm_mig.errors import ArrangementError

FINE_GAP = 0.005
"""The fine programme need not be solved to the end: the coarse one is what proves the value."""

Solve = Callable[[Programme, float], Solution]
"""Solves a programme up to a share of its value."""


@dataclass
class Staged:
    """A plan on the fleet's nodes."""

    fleet: Fleet
    weights: Weights = field(default_factory=Weights)
    served: list[Unit] = field(default_factory=list)
    left: list[Unit] = field(default_factory=list)
    """Not served, the most valuable first."""
    refused_by_hulls: int = 0
    """Targets that no GPU of their class could take."""

    @property
    def value(self) -> int:
        """The objective of what is planned."""
        costs = (d.target.cost for node in self.fleet.nodes for d in node.drafts if d.target)
        worth = sum(unit.value for unit in self.served)
        return worth - sum(costs) - self.weights.twice * self._twice

    @property
    def _twice(self) -> int:
        return sum(node.registers_twice for node in self.fleet.nodes)

    def terms(self) -> tuple[tuple[str, int], ...]:
        """What the changes cost, by what is paid for."""
        weights = self.weights
        changed = [d for node in self.fleet.nodes for d in node.drafts if d.target]
        options = [d.target for d in changed if d.target]
        created = sum(option.created.bit_count() for option in options)
        destroyed = sum(option.destroyed.bit_count() for option in options)
        switched = [d for d in changed if d.mig_after != d.gpu.mig]
        resets = sum(d.gpu.mode_needs_reset for d in switched)
        found = [
            (f"{len(options)} GPU(s) change", weights.publish * len(options)),
            (f"{created} created", weights.create * created),
            (f"{destroyed} destroyed", weights.destroy * destroyed),
            (f"{len(switched)} mode change(s)", weights.mode * len(switched)),
            (f"{resets} reset(s)", weights.reset * resets),
        ]
        paid = sum(points for _, points in found)
        rest = sum(option.cost for option in options) - paid
        found.append(("room and baseline", rest))
        found.insert(1, (f"{self._twice} node(s) register twice", weights.twice * self._twice))
        return tuple((words, points) for words, points in found if points)


@dataclass(frozen=True)
class Task:
    """What the stage works from."""

    pools: Pools
    units: Sequence[Unit]
    coarse: Problem
    bound: Solution
    weights: Weights
    solve: Solve


def stage(fleet: Fleet, task: Task, *, hard_first: bool = True) -> Staged:
    """Carry the coarse programme's solution over to the fleet's nodes, which it changes."""
    found = Staged(fleet, task.weights)
    places = Places(fleet, task.pools)
    wanted = _chosen(task.coarse, task.bound)
    hard = [unit for unit in wanted if unit.several] if hard_first else []
    if hard:
        Mender(fleet, task.pools, task.coarse, places).mend(hard, found.served)
    fine, solution = task.coarse, task.bound
    if hard or task.coarse.crowded:
        if hard_first:
            rest = [unit for unit in task.units if not unit.several]
            fine = problem(fleet, task.pools, rest, task.weights, fine=True)
        else:
            fine = refined(task.coarse, fleet, task.pools, task.weights)
        solution = task.solve(fine.programme, FINE_GAP)
    found.refused_by_hulls = _Assignment(fleet, fine, solution).give()
    places.refresh()
    for unit in sorted(_chosen(fine, solution), key=lambda unit: (not unit.several, -unit.value)):
        if places.place(unit):
            found.served.append(unit)
    _finish(found, task, fine, places)
    return found


def close_stage(fleet: Fleet, task: Task) -> tuple[Staged, Solution]:
    """The close programme, in which every node is told apart, carried over to the fleet's nodes,
    which it changes; and its solution, whose value bounds every plan too."""
    found = Staged(fleet, task.weights)
    places = Places(fleet, task.pools)
    close = problem(fleet, task.pools, task.units, task.weights, close=True)
    solution = task.solve(close.programme, 0.0)
    found.refused_by_hulls = _Assignment(fleet, close, solution).give()
    places.refresh()
    for unit, positions in _spread(close, solution):
        if places.place_on(unit, positions):
            found.served.append(unit)
    _finish(found, task, close, places)
    return found, solution


def _finish(found: Staged, task: Task, of: Problem, places: Places) -> None:
    """What has no place yet is tried on GPUs that may yet change; what serves nobody stays."""
    mender = Mender(found.fleet, task.pools, of, places)
    found.left = mender.mend(_others(task.units, found.served), found.served)
    for node in found.fleet.nodes:
        _revert_wasted(node, task.weights)


def _spread(of: Problem, solution: Solution) -> Iterator[tuple[Unit, list[list[int]]]]:
    """The units that the close programme serves, with the nodes for each of their requests."""
    for units, served, parts in zip(of.units, solution.served, solution.spread, strict=True):
        left = [Counter(part) for part in parts]
        for unit in units[:served]:
            taken: set[int] = set()
            positions = []
            for request, shares in zip(unit.requests, left, strict=True):
                # Where most shares are left first: then they last for all the units.
                most = [at for at, n in shares.most_common() if n and at not in taken]
                positions.append(most[: request.nodes])
                shares.subtract(positions[-1])
                taken.update(positions[-1])
            yield unit, positions


def _chosen(of: Problem, solution: Solution) -> list[Unit]:
    """The units that a programme serves."""
    counted = zip(of.units, solution.served, strict=True)
    return [unit for units, served in counted for unit in units[:served]]


def _others(units: Iterable[Unit], served: Iterable[Unit]) -> list[Unit]:
    """The units that are not served, the most valuable first."""
    done = {id(unit) for unit in served}
    return sorted((u for u in units if id(u) not in done), key=lambda unit: -unit.value)


class _Assignment:
    """Gives a solution's targets to GPUs; where hulls are tight, to nodes that can spare most."""

    def __init__(self, fleet: Fleet, of: Problem, solution: Solution) -> None:
        self._nodes = fleet.nodes
        self._members = of.members
        self._options = solution.options
        self._touched: dict[int, list[int]] = {}

    def give(self) -> int:
        """Give all; how many found no GPU, or a node whose slots could then not be arranged."""
        lost = 0
        for members, taken in zip(self._members, self._options, strict=True):
            for option, count in enumerate(taken):
                if count and members[0][2][option].changes:
                    lost += self._give(members, option, count)
        return lost + sum(
            _until_arranged(self._nodes[at], changed) for at, changed in self._touched.items()
        )

    def _give(self, members: Sequence[Member], option: int, count: int) -> int:
        free = [m for m in members if self._nodes[m[0]].drafts[m[1]].target is None]
        if free and any(free[0][2][option].loss):
            free.sort(key=lambda m: -_room(self._nodes[m[0]], m, option))
        else:
            free = _once_first(self._nodes, free, option, count)
        for at, position, options in free:
            if not count:
                break
            node = self._nodes[at]
            if node.change_allowed(position, options[option]):
                node.change(position, options[option])
                self._touched.setdefault(at, []).append(position)
                count -= 1
        return count


def _once_first(
    nodes: Sequence[Node], members: Sequence[Member], number: int, enough: int
) -> list[Member]:
    """The members for which the option takes one registration, then those for which it takes two;
    no more are looked at than needed."""
    once: list[Member] = []
    twice: list[Member] = []
    for n, member in enumerate(members):
        if len(once) >= enough:
            return [*once, *members[n:], *twice]
        at, position, options = member
        (twice if nodes[at].loses_type(position, options[number]) else once).append(member)
    return [*once, *twice]


def _room(node: Node, member: Member, number: int) -> int:
    """What the node's hulls could still spare of what the option costs."""
    _, position, options = member
    shape = node.drafts[position].shape
    spares = (node.spare(t) for t in shape.counts(options[number].destroyed))
    return min((spare for spare in spares if spare is not None), default=1 << 20)


def _until_arranged(node: Node, changed: list[int]) -> int:
    """Take changes back until the slots can be arranged; how many."""
    lost = 0
    while changed:
        try:
            node.arranged()
        except ArrangementError:
            node.revert(changed.pop())
            lost += 1
        else:
            break
    return lost


def _revert_wasted(node: Node, weights: Weights) -> None:
    """Leave as they are the GPUs whose change serves nobody, unless the slots need it, or it spares
    the node a registration."""
    for position, draft in enumerate(node.drafts):
        option = draft.target
        if option is None or not draft.wasted:
            continue
        once = not node.registers_twice
        node.revert(position)
        try:
            node.arranged()
        except ArrangementError:
            node.change(position, option)
            continue
        if once and node.registers_twice and option.cost < weights.twice:
            node.change(position, option)
