"""Finds nodes for jobs on what is free or planned, quickly for thousands of both.

Nodes are kept by pool and type while they have a free device of it; what did not fit once is not
tried again until something was added.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Sequence

from slurm_mig.core.model import JobRequest
from slurm_mig.core.planning.fleet import Fleet
from slurm_mig.core.planning.units import Pools, Size, Unit

NOWHERE: deque[int] = deque()


class Places:
    """Where jobs go. Claims are made on the fleet's nodes."""

    def __init__(self, fleet: Fleet, pools: Pools) -> None:
        self._nodes = fleet.nodes
        self._pools = pools
        self._having: dict[tuple[int, str], deque[int]] = {}
        self._hopeless: set[Size] = set()
        self.refresh()

    def refresh(self) -> None:
        """Devices were added: look at every node again."""
        self._having = {}
        self._hopeless = set()
        for pool, positions in enumerate(self._pools.nodes):
            for position in positions:
                for gres_type, spots in self._nodes[position].free.items():
                    if spots:
                        self._having.setdefault((pool, gres_type), deque()).append(position)

    def added(self, position: int) -> None:
        """This node has more to give than it had."""
        pool = self._pools.of_node[position]
        for gres_type, spots in self._nodes[position].free.items():
            having = self._having.setdefault((pool, gres_type), deque())
            if spots and position not in having:
                having.append(position)
        self._hopeless = set()

    def place(self, unit: Unit) -> bool:
        """Claim nodes for the whole unit; False (and nothing claimed) when it does not fit."""
        if not self._hopeless.isdisjoint(unit.sizes):
            return False
        if len(unit.sizes) > 1:
            return self._together(unit)
        found = self._find(unit.sizes[0])
        if found is None:
            self._hopeless.add(unit.sizes[0])
            return False
        for position in found:
            self._claim(position, unit.requests[0])
        return True

    def place_on(self, unit: Unit, positions: Sequence[Sequence[int]]) -> bool:
        """Claim these nodes for the unit's requests; False (and nothing claimed) when one does not
        fit. No node is among them twice."""
        chosen = [
            (at, request)
            for request, mine in zip(unit.requests, positions, strict=True)
            for at in mine
        ]
        if not all(self._nodes[at].fits(request) for at, request in chosen):
            return False
        for at, request in chosen:
            self._claim(at, request)
        return True

    def _claim(self, position: int, request: JobRequest) -> None:
        node = self._nodes[position]
        if node.claim(request):
            node.serves.append(request.job_id)

    def _together(self, unit: Unit) -> bool:
        """Nodes for every component. Slurm's backfill, which alone starts heterogeneous jobs, plans
        them node by node: components never share one (docs/facts.md)."""
        chosen: list[tuple[int, JobRequest]] = []
        for request, size in zip(unit.requests, unit.sizes, strict=True):
            found = self._find(size, {position for position, _ in chosen})
            if found is None:
                return False
            chosen += [(position, request) for position in found]
        for position, request in chosen:
            self._claim(position, request)
        return True

    def _find(self, size: Size, taken: Collection[int] = ()) -> list[int] | None:
        """So many nodes as jobs of the size ask for, each of which fits its share."""
        found: list[int] = []
        for position in self._candidates(size):
            if position not in taken and self._nodes[position].fits(size.example):
                found.append(position)
                if len(found) == size.example.nodes:
                    return found
        return None

    def _candidates(self, size: Size) -> Iterator[int]:
        for pool in self._pools.eligible(size):
            lists = [(self._having.get((pool, t), NOWHERE), t) for t, _ in size.gpus]
            shortest, gres_type = min(lists, key=lambda entry: len(entry[0]))
            while shortest and not self._nodes[shortest[0]].free.get(gres_type):
                shortest.popleft()
            yield from shortest
