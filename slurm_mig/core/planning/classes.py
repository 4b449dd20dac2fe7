"""From nodes and jobs to the programme: pools, classes of GPUs, groups of jobs.

Nodes on which the same jobs may run form a pool; GPUs of a pool that offer the same for the same
form a class; jobs that ask for the same in the same pools form a group. So the programme grows
with how many different things there are, not with how many things.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from slurm_mig.core.model import JobRequest, SlurmNode
from slurm_mig.core.planning.fleet import Draft, Fleet
from slurm_mig.core.planning.options import Offer, Option, OptionTable, State
from slurm_mig.core.planning.programme import GpuClass, Group, Part, Programme
from slurm_mig.core.planning.weights import Weights, level

Where = tuple[str, tuple[frozenset[str], ...], frozenset[str], frozenset[str]]
"""What a job asks of a node's name and properties: partition, features, required, excluded."""

Kind = tuple[Where, frozenset[str]]
"""That, and the types that the node must be able to have."""


@dataclass(frozen=True, slots=True)
class Unit:
    """What starts together: a job, or the components of a heterogeneous job."""

    requests: tuple[JobRequest, ...]
    count: int = 1
    """Array tasks: so many units alike."""

    @property
    def job_id(self) -> int:
        return self.requests[0].job_id


@dataclass
class Problem:
    """The programme and what its numbers stand for."""

    programme: Programme
    types: tuple[str, ...]
    pools: list[list[int]]
    """Positions of the nodes of each pool."""
    members: list[list[tuple[int, int, tuple[Option, ...]]]] = field(default_factory=list)
    """Of each class: (node, GPU, its options in the order of the class's offers)."""
    units: list[list[Unit]] = field(default_factory=list)
    """Of each group, the most valuable first."""


def where(request: JobRequest) -> Where:
    return (request.partition, request.features, request.required_nodes, request.excluded_nodes)


def kind(request: JobRequest) -> Kind:
    return where(request), frozenset(request.gpus)


def admits(place: Where, node: SlurmNode) -> bool:
    """True if a job that asks for this may run on the node, its load apart."""
    partition, features, required, excluded = place
    if node.name in excluded or (required and node.name not in required):
        return False
    if not any(p in node.partitions for p in partition.split(",")):
        return False
    return not features or any(wanted <= node.features for wanted in features)


def slices_of(fleet: Fleet) -> dict[str, int]:
    """Compute slices by type; a whole GPU has all of its model, or 7 where that is unknown."""
    found: dict[str, int] = {}
    for shape in fleet.shapes:
        for name, profile in shape.profiles.items():
            found[name] = max(found.get(name, 0), profile.compute_slices)
    for node in fleet.nodes:
        for draft in node.drafts:
            if draft.whole_type:
                mine = draft.shape.compute_slices or 7
                found[draft.whole_type] = max(found.get(draft.whole_type, 0), mine)
    return found


def worth(unit: Unit, highest: int, slices: Mapping[str, int], weights: Weights) -> int:
    """Points for serving one unit."""
    size = sum(r.nodes * n * slices.get(t, 1) for r in unit.requests for t, n in r.gpus.items())
    return weights.job * level(unit.requests[0].priority, highest) * size


def problem(fleet: Fleet, units: Sequence[Unit], weights: Weights) -> Problem:
    """The programme for these units of demand, the most urgent first."""
    types = tuple(sorted({t for u in units for r in u.requests for t in r.gpus}))
    kinds = list(dict.fromkeys(kind(r) for u in units for r in u.requests))
    pool_of, pools, eligible = _pools(fleet, kinds)
    classes, members = _classes(fleet, types, pool_of, weights)
    offered = _reachable(classes, len(types))
    groups: dict[tuple[Part, ...], list[tuple[int, Unit]]] = {}
    number = {t: n for n, t in enumerate(types)}
    highest = max((u.requests[0].priority for u in units), default=0)
    slices = slices_of(fleet)
    for unit in units:
        parts = tuple(_part(r, number, eligible, offered) for r in unit.requests)
        if all(part.pools for part in parts):
            groups.setdefault(parts, []).append((worth(unit, highest, slices, weights), unit))
    wanted, sorted_units = [], []
    for parts, found in groups.items():
        found.sort(key=lambda f: -f[0])
        tiers: Counter[int] = Counter()
        for value, unit in found:
            tiers[value] += unit.count
        wanted.append(Group(parts, tuple(tiers.items())))
        sorted_units.append([unit for _, unit in found])
    programme = Programme(len(types), tuple(classes), tuple(wanted))
    return Problem(programme, types, pools, members, sorted_units)


def _pools(
    fleet: Fleet, kinds: Sequence[Kind]
) -> tuple[list[int], list[list[int]], dict[Kind, tuple[int, ...]]]:
    """The pool of each node, the nodes of each pool, and the pools that each kind may use."""
    named = frozenset(n for (_, _, required, excluded), _ in kinds for n in required | excluded)
    known: dict[tuple[object, ...], frozenset[int]] = {}
    numbers: dict[frozenset[int], int] = {}
    pool_of: list[int] = []
    pools: list[list[int]] = []
    for position, node in enumerate(fleet.nodes):
        slurm = node.view.slurm
        name = slurm.name if slurm.name in named else ""
        alike = (slurm.partitions, slurm.features, name, node.possible)
        admitted = known.get(alike)
        if admitted is None:
            admitted = known[alike] = frozenset(
                n
                for n, (place, types) in enumerate(kinds)
                if types <= node.possible and admits(place, slurm)
            )
        pool = numbers.setdefault(admitted, len(numbers))
        if pool == len(pools):
            pools.append([])
        pools[pool].append(position)
        pool_of.append(pool)
    eligible = {
        wanted: tuple(pool for admitted, pool in numbers.items() if n in admitted)
        for n, wanted in enumerate(kinds)
    }
    return pool_of, pools, eligible


def _classes(
    fleet: Fleet, types: tuple[str, ...], pool_of: Sequence[int], weights: Weights
) -> tuple[list[GpuClass], list[list[tuple[int, int, tuple[Option, ...]]]]]:
    tables: dict[int, OptionTable] = {}
    numbers: dict[tuple[int, tuple[Offer, ...]], int] = {}
    keys: list[tuple[int, tuple[Offer, ...]]] = []
    members: list[list[tuple[int, int, tuple[Option, ...]]]] = []
    offers_of: dict[int, tuple[tuple[Option, ...], tuple[Offer, ...]]] = {}
    for at, node in enumerate(fleet.nodes):
        for position, draft in enumerate(node.drafts):
            table = tables.get(id(draft.shape))
            if table is None:
                table = tables[id(draft.shape)] = OptionTable(draft.shape, types, weights)
            options = table.of(state_of(draft, types))
            known = offers_of.get(id(options))
            if known is None:
                known = offers_of[id(options)] = (
                    options, tuple((o.supply, o.cost) for o in options)
                )  # fmt: skip
            key = (pool_of[at], known[1])
            number = numbers.setdefault(key, len(numbers))
            if number == len(keys):
                keys.append(key)
                members.append([])
            members[number].append((at, position, options))
    classes = [
        GpuClass(pool, len(found), offers)
        for (pool, offers), found in zip(keys, members, strict=True)
    ]
    return classes, members


def state_of(draft: Draft, types: tuple[str, ...]) -> State:
    """A GPU as its options see it."""
    whole = types.index(draft.whole_type) if draft.whole_type in types else -1
    return State(
        fixed=draft.fixed,
        idle=draft.idle,
        baseline=draft.baseline,
        mig=draft.gpu.mig,
        whole=whole,
        whole_free=not draft.gpu.mig and not draft.whole_busy,
        switchable=draft.switchable,
        resets=draft.gpu.mode_needs_reset,
        frozen=bool(draft.frozen),
    )


def _reachable(classes: Sequence[GpuClass], types: int) -> dict[int, list[int]]:
    """By pool, the most of each type that all its GPUs could offer."""
    found: dict[int, list[int]] = {}
    for gpus in classes:
        most = found.setdefault(gpus.pool, [0] * types)
        for n in range(types):
            most[n] += gpus.count * max(supply[n] for supply, _ in gpus.offers)
    return found


def _part(
    request: JobRequest,
    number: Mapping[str, int],
    eligible: Mapping[Kind, tuple[int, ...]],
    offered: Mapping[int, Sequence[int]],
) -> Part:
    wants = tuple(sorted((number[t], n) for t, n in request.gpus.items()))
    pools = tuple(
        pool for pool in eligible[kind(request)] if all(offered[pool][t] >= n for t, n in wants)
    )
    return Part(wants, request.nodes, pools)
