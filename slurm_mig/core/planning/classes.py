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
from dataclasses import dataclass, replace

from slurm_mig.core.planning.fleet import Fleet
from slurm_mig.core.planning.options import Offer, Option
from slurm_mig.core.planning.parts import Parts
from slurm_mig.core.planning.programme import GpuClass, Group, Part, Programme
from slurm_mig.core.planning.tables import Tables
from slurm_mig.core.planning.units import Pools, Size, Unit
from slurm_mig.core.planning.weights import Weights

Member = tuple[int, int, tuple[Option, ...]]
"""Position of the node, of its GPU, and the options in the order of the class's offers."""

FEW = 200
"""Up to so many nodes the fine programme says on which one each job that needs several instances
goes; with more, it takes too long, and the second stage looks for nodes that have them together."""

APART = 16
"""Up to so many nodes a programme that tells every node apart is solved when the other two leave a
gap."""


@dataclass(frozen=True)
class Problem:
    """A programme and what its numbers stand for."""

    programme: Programme
    members: tuple[tuple[Member, ...], ...]
    """The GPUs of each class."""
    units: tuple[tuple[Unit, ...], ...]
    """Of each group, the most valuable first."""
    tables: Tables
    survey: _Survey

    @property
    def most(self) -> Sequence[Sequence[int]]:
        """By node, the most of each type that it could offer."""
        return self.survey.most

    @property
    def crowded(self) -> bool:
        """Some nodes' GPUs could lose more together than their hulls bear."""
        return bool(self.survey.crowded)


def problem(
    fleet: Fleet,
    pools: Pools,
    units: Sequence[Unit],
    weights: Weights,
    *,
    tight: bool = True,
    fine: bool = False,
    close: bool = False,
) -> Problem:
    """The programme for these units of demand.

    `tight`: with what is known of single nodes (what their hulls need, how often a job fits) as
    far as it can be said for a whole pool; without, the plain relaxation. `fine`: nodes whose
    hulls could be asked for too much are told apart. `close`: every node is, with its CPUs and its
    memory (for small fleets).
    """
    pools = pools.single() if close else pools
    sizes = dict.fromkeys(size for unit in units for size in unit.sizes)
    types = tuple(sorted({t for size in sizes for t, _ in size.gpus}))
    close = close and tight
    guarded = tuple(sorted(_guarded(fleet, types, fleeting=close))) if tight else ()
    tables = Tables(types, weights, guarded, tight=tight, close=close)
    several = sorted({(types.index(t), n) for size in sizes for t, n in size.gpus if n > 1})
    survey = _Survey(fleet, tables, sorted({t for t, _ in several}))
    near = fine and len(fleet.nodes) <= FEW
    parts = Parts(fleet, pools, types, survey.most, tight=tight, fine=near, close=close)
    groups = _grouped(parts, units)
    wanted = tuple(Group(parts, _tiers(found, parts)) for parts, found in groups.items())
    together = {
        (pool, t, n): sum(survey.most[at][t] // n for at in positions)
        for pool, positions in enumerate(pools.nodes)
        for t, n in several
        if tight
    }
    apart = survey.crowded if fine else set[int]()
    if near:
        able = (at for at, most in enumerate(survey.most) if any(most[t] >= n for t, n in several))
        apart = apart.union(able)
    programme, members = survey.classed(pools, wanted, together, apart)
    if close:
        programme = replace(
            programme,
            free=_free(fleet),
            growth=_growth(fleet, types),
            lasting=_lasting(fleet, tables),
            twice=weights.twice,
        )
    return Problem(programme, members, tuple(map(tuple, groups.values())), tables, survey)


def _guarded(fleet: Fleet, types: Sequence[str], *, fleeting: bool) -> set[str]:
    """The types of which it matters what is lost."""
    found = {t for node in fleet.nodes for t in node.holes}
    if fleeting:
        found |= {t for node in fleet.nodes for t in node.fleeting if t not in types}
    return found


def _lasting(fleet: Fleet, tables: Tables) -> dict[tuple[int, int, bool], int]:
    """By node, type and whether it is a wanted one (else it is a guarded one): how many there are
    of what a node registers twice without."""
    return {
        (at, (tables.types if wanted else tables.guarded).index(t), wanted): node.idle_of[t] - held
        for at, node in enumerate(fleet.nodes)
        for t, held in node.fleeting.items()
        for wanted in [t in tables.types]
    }


def _free(fleet: Fleet) -> dict[tuple[int, int], int]:
    """CPUs and memory that each node has left."""
    loads = ((node.cpus, node.memory_mib) for node in fleet.nodes)
    return {(at, n): max(0, left) for at, free in enumerate(loads) for n, left in enumerate(free)}


def _growth(fleet: Fleet, types: Sequence[str]) -> dict[tuple[int, int], int]:
    """For how many more of each type the slots of each node have room."""
    return {
        (at, n): max(0, node.growth(gres_type))
        for at, node in enumerate(fleet.nodes)
        for n, gres_type in enumerate(types)
    }


def refined(coarse: Problem, fleet: Fleet, pools: Pools, weights: Weights) -> Problem:
    """The fine programme for the same units on a fleet that has not changed since."""
    if len(fleet.nodes) <= FEW:
        units = [unit for found in coarse.units for unit in found]
        return problem(fleet, pools, units, weights, fine=True)
    of = coarse.programme
    programme, members = coarse.survey.classed(pools, of.groups, of.together, coarse.survey.crowded)
    return replace(coarse, programme=programme, members=members)


def _grouped(parts_of: Parts, units: Sequence[Unit]) -> dict[tuple[Part, ...], list[Unit]]:
    """Units that could be served at all, by what they ask for; the most valuable first."""
    lists: dict[tuple[Size, ...], list[Unit] | None] = {}
    groups: dict[tuple[Part, ...], list[Unit]] = {}
    for unit in units:
        if unit.sizes not in lists:
            parts = parts_of.of(unit.sizes)
            able = all(part.pools for part in parts)
            lists[unit.sizes] = groups.setdefault(parts, []) if able else None
        if (alike := lists[unit.sizes]) is not None:
            alike.append(unit)
    for found in groups.values():
        found.sort(key=lambda unit: -unit.value)
    return groups


def _tiers(units: Sequence[Unit], parts: Sequence[Part]) -> tuple[tuple[int, int], ...]:
    """(value, jobs) pairs; of jobs no more than could be served with nothing else there."""
    most = min((sum(p.most) // p.nodes for p in parts if p.most), default=len(units))
    tiers: Counter[int] = Counter()
    for unit in units[:most]:
        tiers[unit.value] += 1
    return tuple(tiers.items())


@dataclass(frozen=True, slots=True, eq=False)
class _Kind:
    """GPUs with the same options."""

    options: tuple[Option, ...]
    offers: tuple[Offer, ...]
    number: int
    """Equal offers have equal numbers."""
    best: tuple[tuple[int, int], ...]
    """(type, the most of it that one GPU can offer), where that is any."""
    losses: tuple[frozenset[int], ...]
    """For each type that hulls need, what the options lose of it."""
    loses: bool


class _Survey:
    """Every GPU's options, what each node could offer, and where hulls may be short."""

    def __init__(self, fleet: Fleet, tables: Tables, several: Sequence[int]) -> None:
        """`several` are the types of which single jobs want more than one."""
        self._types = len(tables.types)
        self._guarded = len(tables.guarded)
        self._budget = [node.budget.number if node.budget else -1 for node in fleet.nodes]
        self._limits = {(b.number, n): left for b in fleet.budgets for n, left in enumerate(b.left)}
        self._kinds: dict[int, _Kind] = {}
        self._numbers: dict[tuple[Offer, ...], int] = {}
        self.of_node: list[list[_Kind]] = []
        self.most: list[list[int]] = []
        """By node, the most of each type that all its GPUs could offer."""
        self.lost: list[dict[int, int]] = []
        """By node, the most that its GPUs can lose together of each type that its hulls need."""
        self.crowded: set[int] = set()
        """Nodes whose GPUs, each changed as it might be, would lose more than their hulls bear."""
        for node in fleet.nodes:
            here = [self._kind(options) for options in tables.of_node(node)]
            most = [0] * self._types
            for kind, count in Counter(here).items():
                for gres_type, best in kind.best:
                    most[gres_type] += best * count
            self.of_node.append(here)
            self.most.append(most)
            self.lost.append({})
            for n, name in enumerate(tables.guarded):
                if name in node.holes:
                    self._hull(n, node.spare(name) or 0, several)

    def _kind(self, options: tuple[Option, ...]) -> _Kind:
        # The options are kept by the tables, so that the number of one object is its own.
        found = self._kinds.get(id(options))
        if found is None:
            offers = tuple(o.offer for o in options)
            supplies, losses, *_ = zip(*offers, strict=True)
            best = map(max, *supplies) if len(supplies) > 1 else supplies[0]
            found = self._kinds[id(options)] = _Kind(
                options,
                offers,
                self._numbers.setdefault(offers, len(self._numbers)),
                tuple((n, count) for n, count in enumerate(best) if count),
                tuple(map(frozenset, zip(*losses, strict=True))),
                any(map(any, losses)),
            )
        return found

    def _hull(self, guarded: int, limit: int, several: Sequence[int]) -> None:
        """What the node last added can lose of a type that its hull needs."""
        here, at = self.of_node[-1], len(self.of_node) - 1
        losses = [kind.losses[guarded] for kind in here]
        self.lost[at][guarded] = _most_lost(losses, limit)
        if sum(map(max, losses)) > limit:
            self.crowded.add(at)
            offers = [kind.offers for kind in here]
            most = self.most[at]
            for gres_type in several:
                if most[gres_type]:
                    within = _most_within(offers, gres_type, guarded, limit)
                    most[gres_type] = min(most[gres_type], within)

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
        numbers: dict[tuple[int, int, int, int, int], int] = {}
        classes: list[tuple[int, int, int, int, _Kind]] = []
        members: list[list[Member]] = []
        for at, kinds in enumerate(self.of_node):
            pool, node = pools.of_node[at], at if at in apart else -1
            own, budget = pool if node < 0 else first + at, self._budget[at]
            for position, kind in enumerate(kinds):
                hulls = own if kind.loses else -1
                key = pool, hulls, node, budget, kind.number
                number = numbers.setdefault(key, len(members))
                if number == len(members):
                    members.append([])
                    classes.append((pool, hulls, node, budget, kind))
                members[number].append((at, position, kind.options))
        spare: Counter[tuple[int, int]] = Counter()
        for at, lost in enumerate(self.lost):
            for n, most in lost.items():
                spare[first + at if at in apart else pools.of_node[at], n] += most
        made = tuple(
            GpuClass(pool, len(found), kind.offers, hulls, node, budget)
            for (pool, hulls, node, budget, kind), found in zip(classes, members, strict=True)
        )
        programme = Programme(self._types, made, tuple(groups), dict(spare), together, self._limits)
        return programme, tuple(map(tuple, members))


def _most_within(offers: Sequence[tuple[Offer, ...]], wanted: int, hull: int, limit: int) -> int:
    """The most of one type that a node's GPUs can offer while they lose no more than the limit of
    another: by loss so far, the best supply."""
    best = {0: 0}
    for mine in offers:
        choices = {(lost[hull], supply[wanted]) for supply, lost, *_ in mine}
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


def _most_lost(losses: Sequence[frozenset[int]], limit: int) -> int:
    """The most that a node's GPUs can lose together, one loss each, within the limit."""
    reached = 1
    for choices in losses:
        step = 0
        for loss in choices:
            step |= reached << loss
        reached = step & (2 << max(limit, 0)) - 1
    return reached.bit_length() - 1
