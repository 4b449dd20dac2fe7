"""The integer programme over classes of GPUs, in numbers only: no node, no job, no solver.

For class c of N_c GPUs with options o (supply a_o, loss l_o, cost k_o) and demand group g with
parts q (instances w_q on each of n_q nodes, in the pools P_q, at most b_qp times in a pool) and
tiers t (m_t jobs of value v_t each), where the hulls h can spare S_ht instances of type t, and
the nodes of pool p can have k instances of type t together C_ptk times:

    maximise    sum_gt v_t y_gt - sum_co k_o x_co
    subject to  sum_o x_co = N_c                                     for each class
                sum_p z_qp = n_q sum_t y_gt,  p in P_q               for each part of a group
                sum_q w_q z_qp <= sum_co a_o x_co, c in p            for each pool and type
                sum_co l_o x_co <= S_ht, c in h                      for what hulls can spare
                sum_co u_o x_co <= L_gk, c in g                      for each limit of a node group
                sum_q floor(w_q / k) z_qp <= C_ptk                   for each pool, type and k > 1
                z_qp = sum_n z_qn,  sum_q w_q z_qn <= sum_co a_o x_co, c in n     (see below)
                0 <= y_gt <= m_t,  0 <= z_qp <= b_qp,  x, z whole numbers

The last line is for the fine programme only: for parts that want several instances of a type, and
each node n that could have them.

docs/planner.md explains it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from slurm_mig.core.planning.options import Offer

Entries = list[tuple[int, int]]
"""(column, coefficient) of a row."""


@dataclass(frozen=True, slots=True)
class GpuClass:
    """GPUs of one pool that offer the same for the same."""

    pool: int
    count: int
    offers: tuple[Offer, ...]
    hulls: int = -1
    """Those with the same number share what hulls can spare: a pool's, or one node's."""
    node: int = -1
    """All are on this node; -1: on any of the pool."""
    budget: int = -1
    """Those with the same number share a node group's limits; -1: none."""


@dataclass(frozen=True, slots=True)
class Part:
    """What one component of a job needs: `wants` on each of `nodes` nodes of these pools."""

    wants: tuple[tuple[int, int], ...]
    """(type, count) pairs."""
    nodes: int
    pools: tuple[int, ...]
    most: tuple[int, ...] = ()
    """How often it can be on the nodes of each pool at most, everything else apart; empty: not
    known."""
    apart: tuple[tuple[int, ...], ...] = ()
    """By pool, the nodes among which it chooses, where that matters."""


@dataclass(frozen=True, slots=True)
class Group:
    """Jobs that ask for the same in the same places. Only their value differs: `tiers` are
    (value, jobs) pairs, the most valuable first."""

    parts: tuple[Part, ...]
    tiers: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Programme:
    """The whole problem. `types` is how many types a supply counts."""

    types: int
    classes: tuple[GpuClass, ...]
    groups: tuple[Group, ...]
    spare: Mapping[tuple[int, int], int] = field(default_factory=dict)
    """By `hulls` and type that they need: how many instances fewer there may be."""
    together: Mapping[tuple[int, int, int], int] = field(default_factory=dict)
    """By pool, type and number: how often nodes of the pool can have so many together."""
    limits: Mapping[tuple[int, int], int] = field(default_factory=dict)
    """By budget and limit: how much may be taken."""


@dataclass
class Matrix:
    """Columns and rows for a solver that minimises."""

    cost: list[float] = field(default_factory=list)
    upper: list[float] = field(default_factory=list)
    whole: list[bool] = field(default_factory=list)
    rows: list[Entries] = field(default_factory=list)
    row_lower: list[float] = field(default_factory=list)
    row_upper: list[float] = field(default_factory=list)

    def column(self, cost: float, upper: float, *, whole: bool) -> int:
        self.cost.append(cost)
        self.upper.append(upper)
        self.whole.append(whole)
        return len(self.cost) - 1

    def row(self, lower: float, upper: float, entries: Entries) -> None:
        self.rows.append(entries)
        self.row_lower.append(lower)
        self.row_upper.append(upper)


@dataclass(frozen=True)
class Solution:
    """How many GPUs of each class get each option, and how many jobs of each group are served."""

    options: tuple[tuple[int, ...], ...]
    served: tuple[int, ...]
    spread: tuple[tuple[dict[int, int], ...], ...]
    """By group and part: nodes' shares served in each pool."""
    value: int
    """The objective."""
    gap: float
    """How far a better solution could be at most, as a share of the value; 0 is proven best."""
    columns: int = 0
    rows: int = 0


@dataclass
class Columns:
    """Where the programme's variables are in the matrix."""

    x: list[list[int]] = field(default_factory=list)
    y: list[list[int]] = field(default_factory=list)
    z: list[list[dict[int, int]]] = field(default_factory=list)


def matrix(programme: Programme) -> tuple[Matrix, Columns]:
    """The programme as a matrix, in an order that depends on nothing but its own order."""
    built, columns = Matrix(), Columns()
    supply: dict[tuple[int, int], Entries] = {}
    loss: dict[tuple[int, int], Entries] = {}
    use: dict[tuple[int, int], Entries] = {}
    of_node: dict[tuple[int, int], Entries] = {}
    for group in programme.classes:
        mine = [built.column(cost, group.count, whole=True) for *_, cost in group.offers]
        columns.x.append(mine)
        built.row(group.count, group.count, [(c, 1) for c in mine])
        for column, (offered, lost, used, _) in zip(mine, group.offers, strict=True):
            kinds = [
                (supply, offered, group.pool),
                (loss, lost, group.hulls),
                (use, used, group.budget),
            ]
            if group.node >= 0:
                kinds.append((of_node, offered, group.node))
            for rows, counts, of in kinds:
                for gres_type, count in enumerate(counts):
                    if count:
                        rows.setdefault((of, gres_type), []).append((column, count))
    for key in sorted(loss):
        built.row(-float("inf"), programme.spare[key], loss[key])
    for key in sorted(use):
        built.row(-float("inf"), programme.limits[key], use[key])
    demand: dict[tuple[int, int], Entries] = {}
    on_node: dict[tuple[int, int], Entries] = {}
    for wanted in programme.groups:
        _add_group(built, columns, wanted, demand, on_node)
    for (pool, gres_type, number), most in sorted(programme.together.items()):
        wanting = demand.get((pool, gres_type), [])
        several = [(column, n // number) for column, n in wanting if n >= number]
        if several:
            built.row(-float("inf"), most, several)
    for key in sorted(on_node):
        entries = [*of_node.get(key, []), *((c, -n) for c, n in on_node[key])]
        built.row(0, float("inf"), entries)
    for key in sorted(demand):
        built.row(0, float("inf"), [*supply.get(key, []), *((c, -n) for c, n in demand[key])])
    return built, columns


def _add_group(
    built: Matrix,
    columns: Columns,
    wanted: Group,
    demand: dict[tuple[int, int], Entries],
    on_node: dict[tuple[int, int], Entries],
) -> None:
    simple = len(wanted.parts) == 1 and wanted.parts[0].nodes == 1
    tiers = [built.column(-value, jobs, whole=not simple) for value, jobs in wanted.tiers]
    columns.y.append(tiers)
    most = sum(jobs for _, jobs in wanted.tiers)
    places: list[dict[int, int]] = []
    for part in wanted.parts:
        limits = part.most or (most * part.nodes,) * len(part.pools)
        mine = {
            pool: built.column(0, min(most * part.nodes, limit), whole=True)
            for pool, limit in zip(part.pools, limits, strict=True)
        }
        places.append(mine)
        built.row(0, 0, [*((c, 1) for c in mine.values()), *((t, -part.nodes) for t in tiers)])
        for pool, column in mine.items():
            for gres_type, count in part.wants:
                demand.setdefault((pool, gres_type), []).append((column, count))
        for pool, nodes in zip(part.pools, part.apart, strict=False):
            here = [(node, built.column(0, most, whole=True)) for node in nodes]
            built.row(0, 0, [(mine[pool], -1), *((column, 1) for _, column in here)])
            for (node, column), (gres_type, count) in itertools.product(here, part.wants):
                on_node.setdefault((node, gres_type), []).append((column, count))
    columns.z.append(places)


def solution(
    programme: Programme, columns: Columns, values: Sequence[float], gap: float, size: Matrix
) -> Solution:
    """What a solver's values mean. The value is counted again, in whole numbers."""
    amount = [round(v) for v in values]
    options = tuple(tuple(amount[c] for c in mine) for mine in columns.x)
    served = tuple(sum(amount[c] for c in mine) for mine in columns.y)
    spread = tuple(
        tuple({pool: n for pool, c in part.items() if (n := amount[c])} for part in parts)
        for parts in columns.z
    )
    value = sum(
        min(left, jobs) * worth
        for group, count in zip(programme.groups, served, strict=True)
        for worth, jobs, left in _tiers(group, count)
    ) - sum(
        n * cost
        for group, taken in zip(programme.classes, options, strict=True)
        for (*_, cost), n in zip(group.offers, taken, strict=True)
    )
    return Solution(options, served, spread, value, gap, len(size.cost), len(size.rows))


def _tiers(group: Group, count: int) -> list[tuple[int, int, int]]:
    """(value, jobs, jobs still to be counted) of each tier that `count` jobs reach."""
    found = []
    for worth, jobs in group.tiers:
        found.append((worth, jobs, count))
        count -= min(count, jobs)
    return found
