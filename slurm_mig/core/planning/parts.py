"""Requests as the programme sees them: where they could be had, and how often."""

from __future__ import annotations

from collections.abc import Sequence

from slurm_mig.core.model import JobRequest
from slurm_mig.core.planning.fleet import Fleet
from slurm_mig.core.planning.programme import Part
from slurm_mig.core.planning.units import Pools, Size

CLOSE = 64
"""Up to so many nodes the programme knows how often each could bear a job's CPUs and memory; with
more, it would have a part for every combination, and the second stage finds another node."""


class Parts:
    """Requests as the programme sees them; each kind of request is worked out once."""

    def __init__(
        self,
        fleet: Fleet,
        pools: Pools,
        types: Sequence[str],
        most: Sequence[Sequence[int]],
        *,
        tight: bool,
        fine: bool,
        close: bool,
    ) -> None:
        self._fine = fine
        self._loaded = close
        self._fleet = fleet
        self._pools = pools
        self._number = {t: n for n, t in enumerate(types)}
        self._most = most
        self._tight = tight
        self._close = tight and len(fleet.nodes) <= CLOSE
        self._known: dict[object, Part] = {}
        self._often: dict[object, int] = {}
        self._having: dict[object, list[int]] = {}

    def of(self, sizes: Sequence[Size]) -> tuple[Part, ...]:
        return tuple(map(self._part, sizes))

    def _part(self, size: Size) -> Part:
        request = size.example
        wants = tuple(sorted((self._number[t], n) for t, n in size.gpus))
        load = (request.cpus, request.memory_mib) if self._close else ()
        key = (size.kind, wants, request.nodes, load)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._made(size, wants)
        return found

    def _made(self, size: Size, wants: tuple[tuple[int, int], ...]) -> Part:
        request = size.example
        load = (request.cpus, request.memory_mib) if self._close else ()
        often: dict[int, int] = {}
        for pool in self._pools.eligible(size):
            key = (pool, wants, load)
            times = self._often.get(key)
            if times is None:
                times = self._often[key] = self._in_pool(pool, request, wants)
            if times:
                often[pool] = times
        most = tuple(often.values()) if self._tight else ()
        apart: tuple[tuple[int, ...], ...] = ()
        if self._fine and any(n > 1 for _, n in wants):
            apart = tuple(
                tuple(at for at in self._pools.nodes[pool] if self._times(at, request, wants))
                for pool in often
            )
        loads = (request.cpus, request.memory_mib) if self._loaded else ()
        return Part(wants, request.nodes, tuple(often), most, apart, loads)

    def _in_pool(self, pool: int, request: JobRequest, wants: tuple[tuple[int, int], ...]) -> int:
        """How often the nodes of a pool could have the request at most."""
        if self._tight:
            return sum(self._times(at, request, wants) for at in self._able(pool, wants))
        positions = self._pools.nodes[pool]
        return min(sum(self._most[at][t] for at in positions) // n for t, n in wants)

    def _able(self, pool: int, wants: tuple[tuple[int, int], ...]) -> Sequence[int]:
        """The nodes of a pool that could have it at all."""
        found = self._having.get((pool, wants))
        if found is None:
            found = self._having[pool, wants] = [
                at
                for at in self._pools.nodes[pool]
                if all(self._most[at][t] >= n for t, n in wants)
            ]
        return found

    def _times(self, at: int, request: JobRequest, wants: tuple[tuple[int, int], ...]) -> int:
        """How often one node could have the request, with nothing else on it."""
        most, times = self._most[at], 1 << 20
        for t, n in wants:
            times = min(times, most[t] // n)
        if not self._close or not times:
            return times
        node = self._fleet.nodes[at]
        if request.cpus:
            times = min(times, node.cpus // request.cpus)
        if request.memory_mib:
            times = min(times, node.memory_mib // request.memory_mib)
        return max(0, times)
