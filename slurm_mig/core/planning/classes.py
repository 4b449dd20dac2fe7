"""From nodes and jobs to the programme: classes of GPUs, groups of jobs.

GPUs of a pool that offer the same for the same form a class; jobs that ask for the same in the
same pools form a group. So the programme grows with how many different things there are, not with
how many things.

The coarse programme knows hulls only as what a whole pool can spare; its value bounds every plan.
The fine one tells apart the nodes whose hulls could be asked for more than they have, so that the
second stage can carry it out.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from slurm_mig.core.model import JobRequest
from slurm_mig.core.planning.fleet import Draft, Fleet, Node
from slurm_mig.core.planning.options import Offer, Option, OptionTable, State
from slurm_mig.core.planning.programme import GpuClass, Group, Part, Programme
from slurm_mig.core.planning.units import Pools, Unit
from slurm_mig.core.planning.weights import Weights

Member = tuple[int, int, tuple[Option, ...]]
"""Position of the node, of its GPU, and the options in the order of the class's offers."""

FEW = 200
"""Up to so many nodes the fine programme says on which one each job that needs several instances
goes; with more, it takes too long, and the second stage looks for nodes that have them together."""

CLOSE = 64
"""Up to so many nodes the programme knows how often each could bear a job's CPUs and memory; with
more, it would have a part for every combination, and the second stage finds another node."""


@dataclass(frozen=True)
class Problem:
    """A programme and what its numbers stand for."""

    programme: Programme
    members: tuple[tuple[Member, ...], ...]
    """The GPUs of each class."""
    units: tuple[tuple[Unit, ...], ...]
    """Of each group, the most valuable first."""
    tables: Tables
    most: Sequence[Sequence[int]]
    """By node, the most of each type that it could offer."""
    crowded: bool
    """Some nodes' GPUs could lose more together than their hulls bear."""


class Tables:
    """The options of every GPU for one list of wanted types, beside what hulls need."""

    def __init__(
        self,
        types: tuple[str, ...],
        weights: Weights,
        guarded: tuple[str, ...] = (),
        *,
        tight: bool = False,
    ) -> None:
        self._tight = tight
        self.types = types
        self.guarded = guarded
        self._weights = weights
        self._of_shape: dict[int, OptionTable] = {}
        self._number = {t: n for n, t in enumerate(types)}

    def options(self, node: Node, draft: Draft) -> tuple[Option, ...]:
        return self._options(draft, self.spares(node), self._growth(node))

    def of_node(self, node: Node) -> list[tuple[Option, ...]]:
        """The options of each of its GPUs, in their order."""
        spares, growth = self.spares(node), self._growth(node)
        return [self._options(draft, spares, growth) for draft in node.drafts]

    def _growth(self, node: Node) -> list[int]:
        return [max(0, node.growth(t)) for t in self.types] if self._tight else []

    def spares(self, node: Node) -> list[int]:
        """What a GPU may lose of each type; -1 where no hull of the node needs any.

        No GPU's loss is made up for by what another one of the node gains: a change must be
        possible by itself.
        """
        found = [-1] * len(self.guarded)
        for n, gres_type in enumerate(self.guarded):
            if (spare := node.spare(gres_type)) is not None:
                found[n] = max(0, spare)
        return found

    def _options(
        self, draft: Draft, spares: Sequence[int], growth: Sequence[int]
    ) -> tuple[Option, ...]:
        table = self._of_shape.get(id(draft.shape))
        if table is None:
            table = OptionTable(draft.shape, self.types, self.guarded, self._weights)
            self._of_shape[id(draft.shape)] = table
        whole = self._number.get(draft.whole_type, -1)
        return table.of(_state(draft, table, (spares, growth), whole))


def _state(
    draft: Draft, table: OptionTable, node: tuple[Sequence[int], Sequence[int]], whole: int
) -> State:
    """A GPU as its options see it. One that the plan changes already changes no more."""
    fixed, idle, done = draft.busy | draft.claimed, draft.idle, draft.target
    if done is not None:
        fixed |= draft.taken
        idle = (idle & ~done.destroyed) | (done.created & ~draft.taken)
    mig = draft.mig_after
    return State(
        fixed,
        idle,
        draft.baseline,
        mig,
        whole,
        not mig and not draft.whole_busy,
        draft.switchable,
        draft.gpu.mode_needs_reset,
        bool(draft.frozen) or done is not None,
        table.clipped(idle, node[0]),
        table.room(node[1]),
    )


def problem(
    fleet: Fleet,
    pools: Pools,
    units: Sequence[Unit],
    weights: Weights,
    *,
    tight: bool = True,
    fine: bool = False,
) -> Problem:
    """The programme for these units of demand.

    `tight`: with what is known of single nodes (what their hulls need, how often a job fits) as
    far as it can be said for a whole pool; without, the plain relaxation. `fine`: nodes whose
    hulls could be asked for too much are told apart.
    """
    types = tuple(sorted({t for u in units for r in u.requests for t in r.gpus}))
    guarded = tuple(sorted({t for node in fleet.nodes for t in node.holes})) if tight else ()
    tables = Tables(types, weights, guarded, tight=tight)
    several = sorted(
        {(types.index(t), n) for u in units for r in u.requests for t, n in r.gpus.items() if n > 1}
    )
    survey = _Survey(fleet, tables, sorted({t for t, _ in several}))
    groups = _grouped(
        _Parts(
            fleet, pools, types, survey.most, tight=tight, fine=fine and len(fleet.nodes) <= FEW
        ),
        units,
    )
    wanted = [Group(parts, _tiers(found)) for parts, found in groups.items()]
    together = {
        (pool, t, n): sum(survey.most[at][t] // n for at in positions)
        for pool, positions in enumerate(pools.nodes)
        for t, n in several
        if tight
    }

    apart = frozenset[int]()
    if fine:
        able = (at for at, most in enumerate(survey.most) if any(most[t] >= n for t, n in several))
        apart = frozenset(survey.crowded.union(able if len(fleet.nodes) <= FEW else ()))
    programme, members = survey.classed(pools, wanted, together, apart)
    grouped = tuple(map(tuple, groups.values()))
    return Problem(programme, members, grouped, tables, survey.most, bool(survey.crowded))


def _grouped(parts_of: _Parts, units: Sequence[Unit]) -> dict[tuple[Part, ...], list[Unit]]:
    """Units that could be served at all, by what they ask for; the most valuable first."""
    groups: dict[tuple[Part, ...], list[Unit]] = {}
    for unit in units:
        parts = tuple(parts_of.part(r) for r in unit.requests)
        if all(part.pools for part in parts):
            groups.setdefault(parts, []).append(unit)
    for found in groups.values():
        found.sort(key=lambda unit: -unit.value)
    return groups


def _tiers(units: Sequence[Unit]) -> tuple[tuple[int, int], ...]:
    tiers: Counter[int] = Counter()
    for unit in units:
        tiers[unit.value] += 1
    return tuple(tiers.items())


class _Survey:
    """Every GPU's options, what each node could offer, and where hulls may be short."""

    def __init__(self, fleet: Fleet, tables: Tables, several: Sequence[int]) -> None:
        """`several` are the types of which single jobs want more than one."""
        self._types = len(tables.types)
        self.entries: list[tuple[int, int, tuple[Option, ...], tuple[Offer, ...]]] = []
        self.most: list[list[int]] = []
        """By node, the most of each type that all its GPUs could offer."""
        self.lost: list[dict[int, int]] = []
        """By node, the most that its GPUs can lose together of each type that its hulls need."""
        self.crowded: set[int] = set()
        """Nodes whose GPUs, each changed as it might be, would lose more than their hulls bear."""
        known: dict[int, tuple[tuple[Offer, ...], list[int]]] = {}
        for at, node in enumerate(fleet.nodes):
            most = [0] * self._types
            first = len(self.entries)
            for position, options in enumerate(tables.of_node(node)):
                found = known.get(id(options))
                if found is None:
                    offers = tuple((o.supply, o.loss, o.cost) for o in options)
                    best = [max(o.supply[n] for o in options) for n in range(self._types)]
                    found = known[id(options)] = (offers, best)
                self.entries.append((at, position, options, found[0]))
                most = [a + b for a, b in zip(most, found[1], strict=True)]
            self.most.append(most)
            self.lost.append({})
            for n, gres_type in enumerate(tables.guarded):
                limit = node.spare(gres_type)
                if limit is not None:
                    here = [offers for *_, offers in self.entries[first:]]
                    losses = [{lost[n] for _, lost, _ in offers} for offers in here]
                    self.lost[at][n] = _most_lost(losses, limit)
                    if sum(map(max, losses)) > limit:
                        self.crowded.add(at)
                        for t in several:
                            most[t] = min(most[t], _most_within(here, t, n, limit))

    def classed(
        self,
        pools: Pools,
        groups: Sequence[Group],
        together: Mapping[tuple[int, int, int], int],
        apart: Set[int],
    ) -> tuple[Programme, tuple[tuple[Member, ...], ...]]:
        """The programme in which the nodes `apart` have classes and hulls of their own."""
        # Nodes are numbered after the pools, so that they cannot be taken for one another.
        first = len(pools.nodes)
        numbers: dict[tuple[int, int, int, tuple[Offer, ...]], int] = {}
        members: list[list[Member]] = []
        for at, position, options, offers in self.entries:
            pool, node = pools.of_node[at], at if at in apart else -1
            loses = any(any(lost) for _, lost, _ in offers)
            hulls = -1 if not loses else pool if node < 0 else first + at
            number = numbers.setdefault((pool, hulls, node, offers), len(members))
            if number == len(members):
                members.append([])
            members[number].append((at, position, options))
        spare: Counter[tuple[int, int]] = Counter()
        for at, lost in enumerate(self.lost):
            for n, most in lost.items():
                spare[first + at if at in apart else pools.of_node[at], n] += most
        classes = tuple(
            GpuClass(pool, len(found), offers, hulls, node)
            for (pool, hulls, node, offers), found in zip(numbers, members, strict=True)
        )
        programme = Programme(self._types, classes, tuple(groups), dict(spare), together)
        return programme, tuple(map(tuple, members))


def _most_within(offers: Sequence[tuple[Offer, ...]], wanted: int, hull: int, limit: int) -> int:
    """The most of one type that a node's GPUs can offer while they lose no more than the limit of
    another: by loss so far, the best supply."""
    best = {0: 0}
    for mine in offers:
        choices = {(lost[hull], supply[wanted]) for supply, lost, _ in mine}
        if len(choices) == 1:
            ((lost, supply),) = choices
            best = {loss + lost: had + supply for loss, had in best.items()}
            continue
        grown: dict[int, int] = {}
        for (loss, had), (lost, supply) in itertools.product(best.items(), choices):
            if loss + lost <= limit:
                grown[loss + lost] = max(grown.get(loss + lost, 0), had + supply)
        best = grown
    return max(best.values(), default=0)


def _most_lost(losses: Sequence[set[int]], limit: int) -> int:
    """The most that a node's GPUs can lose together, one loss each, within the limit."""
    reached = 1
    for choices in losses:
        step = 0
        for loss in choices:
            step |= reached << loss
        reached = step & (2 << max(limit, 0)) - 1
    return reached.bit_length() - 1


class _Parts:
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
    ) -> None:
        self._fine = fine
        self._fleet = fleet
        self._pools = pools
        self._number = {t: n for n, t in enumerate(types)}
        self._most = most
        self._tight = tight
        self._close = tight and len(fleet.nodes) <= CLOSE
        self._known: dict[object, Part] = {}

    def part(self, request: JobRequest) -> Part:
        wants = tuple(sorted((self._number[t], n) for t, n in request.gpus.items()))
        load = (request.cpus, request.memory_mib) if self._close else ()
        key = (self._pools.kind(request), wants, request.nodes, load)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._part(request, wants)
        return found

    def _part(self, request: JobRequest, wants: tuple[tuple[int, int], ...]) -> Part:
        often: dict[int, int] = {}
        for pool in self._pools.eligible(request):
            positions = self._pools.nodes[pool]
            if self._tight:
                times = sum(self._times(at, request, wants) for at in positions)
            else:
                times = min(sum(self._most[at][t] for at in positions) // n for t, n in wants)
            if times:
                often[pool] = times
        most = tuple(often.values()) if self._tight else ()
        apart: tuple[tuple[int, ...], ...] = ()
        if self._fine and any(n > 1 for _, n in wants):
            apart = tuple(
                tuple(at for at in self._pools.nodes[pool] if self._times(at, request, wants))
                for pool in often
            )
        return Part(wants, request.nodes, tuple(often), most, apart)

    def _times(self, at: int, request: JobRequest, wants: tuple[tuple[int, int], ...]) -> int:
        """How often one node could have the request, with nothing else on it."""
        node = self._fleet.nodes[at]
        times = min(self._most[at][t] // n for t, n in wants)
        if not self._close:
            return times
        if request.cpus:
            times = min(times, node.cpus // request.cpus)
        if request.memory_mib:
            times = min(times, node.memory_mib // request.memory_mib)
        return max(0, times)
