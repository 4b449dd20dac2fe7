"""Finds places for jobs one by one, changing GPUs where that costs least.

For jobs that need several instances on a node, or several nodes; and for those that the programme
promised something and that found no node.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from slurm_mig.core.model import JobRequest
from slurm_mig.core.planning.classes import Problem
from slurm_mig.core.planning.fleet import Fleet
from slurm_mig.core.planning.node import Node
from slurm_mig.core.planning.options import Option
from slurm_mig.core.planning.placing import Places
from slurm_mig.core.planning.tables import Tables
from slurm_mig.core.planning.units import Pools, Size, Unit
from slurm_mig.errors import ArrangementError

TRIES = 400
"""How many changes of nodes are tried at most, all jobs together."""

ENOUGH = 4
"""So many nodes more than a job needs are compared."""

Trial = tuple[int, int, Node]
"""Cost, position of the node, and a draft of it that fits."""


class Mender:
    """Places units on nodes of the fleet, which it changes."""

    def __init__(self, fleet: Fleet, pools: Pools, of: Problem, places: Places) -> None:
        self._fleet = fleet
        self._pools = pools
        self._tables = of.tables
        self._most = of.most
        self._places = places
        self._number = {t: n for n, t in enumerate(of.tables.types)}
        self._tries = TRIES
        self._hopeless: set[tuple[Size, ...]] = set()

    def mend(self, units: Sequence[Unit], served: list[Unit]) -> list[Unit]:
        """Those that find no place; the others are added to `served`."""
        left = []
        for unit in units:
            if self._places.place(unit) or self._reshape(unit):
                served.append(unit)
            else:
                left.append(unit)
        return left

    def _reshape(self, unit: Unit) -> bool:
        """Place the unit by changes that cost less than it is worth."""
        sizes = unit.sizes
        if sizes in self._hopeless or any(t not in self._number for s in sizes for t, _ in s.gpus):
            return False
        tried: dict[int, Node] = {}
        chosen: list[tuple[int, JobRequest]] = []
        cost = 0
        for request, size in zip(unit.requests, sizes, strict=True):
            found = sorted(self._trials(size, tried), key=lambda trial: trial[:2])
            if len(found) < request.nodes:
                self._hopeless.add(sizes)
                return False
            for price, at, trial in found[: request.nodes]:
                cost += price
                tried[at] = trial
                if trial.claim(request):
                    chosen.append((at, request))
        if cost >= unit.value or not self._fleet.adopt(tried):
            return False
        for at in tried:
            self._places.added(at)
        for at, request in chosen:
            self._fleet.nodes[at].serves.append(request.job_id)
        return True

    def _trials(self, size: Size, tried: dict[int, Node]) -> Iterator[Trial]:
        """Nodes that fit one share of such a job, as they are or changed; enough of them."""
        request = size.example
        wanted = [(self._number[t], n) for t, n in size.gpus]
        found = 0
        for pool in self._pools.eligible(size):
            for at in self._pools.nodes[pool]:
                # Components of a heterogeneous job never share a node.
                if at in tried or any(self._most[at][t] < n for t, n in wanted):
                    continue
                if found == request.nodes + ENOUGH or not self._tries:
                    return
                self._tries -= 1
                trial = reshaped(self._fleet.nodes[at], request, self._tables, self._number)
                if trial is not None:
                    found += 1
                    yield trial[0], at, trial[1]


def reshaped(
    node: Node, request: JobRequest, tables: Tables, number: dict[str, int]
) -> tuple[int, Node] | None:
    """What it costs to give a node what the job lacks, and a copy that has it."""
    if request.cpus > node.cpus or request.memory_mib > node.memory_mib:
        return None
    trial, cost = node, 0
    for gres_type, count in request.gpus.items():
        while len(trial.free.get(gres_type, ())) < count:
            ways = _ways(trial, tables, number[gres_type])
            way = min(ways, key=lambda w: (w[0], w[1]), default=None)
            if way is None:
                return None
            trial = node.copy() if trial is node else trial
            cost += way[2]
            trial.change(way[1], way[3])
    trial = node.copy() if trial is node else trial
    cost += tables.weights.twice * (trial.registers_twice - node.registers_twice)
    if not trial.fits(request):
        return None
    try:
        trial.arranged()
    except ArrangementError:
        return None
    return cost, trial


def _ways(node: Node, tables: Tables, wanted: int) -> Iterator[tuple[float, int, int, Option]]:
    """(cost of each one gained, GPU, cost, option) of every single change that gives more of a
    type; a second registration is in the first cost only."""
    again = 0 if node.registers_twice else tables.weights.twice
    for position, options in enumerate(tables.of_node(node)):
        if node.drafts[position].target is None:
            for option in options[1:]:
                more = option.supply[wanted] - options[0].supply[wanted]
                if more > 0 and node.change_allowed(position, option):
                    paid = option.cost + again * node.loses_type(position, option)
                    yield paid / more, position, option.cost, option
