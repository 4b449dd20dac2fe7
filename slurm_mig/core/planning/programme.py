"""The integer programme over classes of GPUs, in numbers only: no node, no job, no solver.

For class c of N_c GPUs with options o (supply a_o, loss l_o, cost k_o) and demand group g with
parts q (instances w_q on each of n_q nodes, in the pools P_q, at most b_qp times in a pool) and
tiers t (m_t jobs of value v_t each), where the hulls h can spare S_ht instances of type t, and
the nodes of pool p can have k instances of type t together C_ptk times:

    maximise    sum_gt v_t y_gt - sum_co k_o x_co - sum_p twice v_p
    subject to  sum_o x_co = N_c                                     for each class
                sum_p z_qp = n_q sum_t y_gt,  p in P_q               for each part of a group
                sum_q w_q z_qp <= sum_co a_o x_co, c in p            for each pool and type
                sum_co l_o x_co <= S_ht, c in h                      for what hulls can spare
                sum_co u_o x_co <= L_gk, c in g                      for each limit of a node group
                sum_q floor(w_q / k) z_qp <= C_ptk                   for each pool, type and k > 1
                sum_q r_qi z_qp <= R_pi                              (see below)
                sum_co (a_o - a_stay) x_co <= G_pt                   (see below)
                sum_q in g z_qp <= sum_t y_gt                        (see below)
                sum_co (a_stay - a_o) x_co < A_pt + v_p              (see below)
                z_qp = sum_n z_qn,  sum_q w_q z_qn <= sum_co a_o x_co, c in n     (see below)
                0 <= y_gt <= m_t,  0 <= z_qp <= b_qp,  x, z whole numbers

z_qn is for the fine programme only: for parts that want several instances of a type, and each node
n that could have them. The four lines before are for the close programme only, where each pool is
one node: its CPUs and memory i, its slots' room, no two shares of a job on it, and whether it
registers twice (v_p), as none is left of the A_pt instances of a type.

docs/planner.md explains it.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import sub
from typing import NamedTuple

from slurm_mig.core.planning.options import Offer

Entries = list[tuple[int, int]]
"""(column, coefficient) of a row."""

INFINITE = float("inf")


@dataclass(frozen=True, slots=True)
class GpuClass:
    """GPUs of one pool that offer the same for the same."""

    pool: int
    count: int
    offers: tuple[Offer, ...]
    """The first is to stay as it is, which costs and loses nothing."""
    hulls: int = -1
    """Those with the same number share what hulls can spare: a pool's, or one node's."""
    node: int = -1
    """All are on this node; -1: on any of the pool."""
    budget: int = -1
    """Those with the same number share a node group's limits; -1: none."""


class Part(NamedTuple):
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
    load: tuple[int, ...] = ()
    """CPUs and memory of each share, where pools are nodes."""


class Group(NamedTuple):
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
    free: Mapping[tuple[int, int], int] = field(default_factory=dict)
    """Where each pool is one node: by pool and kind of load, how much the node has."""
    growth: Mapping[tuple[int, int], int] = field(default_factory=dict)
    """There too: by pool and type, for how many more the node's slots have room."""
    lasting: Mapping[tuple[int, int, bool], int] = field(default_factory=dict)
    """There too: by pool, type (a wanted one, or one that hulls or nobody needs) and which of these
    it is, how many must not all go, lest the node register twice."""
    twice: int = 0
    """What that costs."""


@dataclass
class Matrix:
    """Columns and rows for a solver that minimises; rows stand one after the other."""

    cost: list[float] = field(default_factory=list)
    upper: list[float] = field(default_factory=list)
    whole: list[bool] = field(default_factory=list)
    starts: list[int] = field(default_factory=lambda: [0])
    indexes: list[int] = field(default_factory=list)
    values: list[int] = field(default_factory=list)
    row_lower: list[float] = field(default_factory=list)
    row_upper: list[float] = field(default_factory=list)

    def column(self, cost: float, upper: float, *, whole: bool) -> int:
        self.cost.append(cost)
        self.upper.append(upper)
        self.whole.append(whole)
        return len(self.cost) - 1

    def row(self, lower: float, upper: float, entries: Entries) -> None:
        for column, value in entries:
            self.indexes.append(column)
            self.values.append(value)
        self.starts.append(len(self.indexes))
        self.row_lower.append(lower)
        self.row_upper.append(upper)

    @property
    def rows(self) -> Iterator[Entries]:
        """The entries of each row."""
        for start, end in itertools.pairwise(self.starts):
            here = zip(self.indexes[start:end], self.values[start:end], strict=True)
            yield list(here)


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
    """For each offer but the first: the other GPUs of the class stay as they are."""
    y: list[list[int]] = field(default_factory=list)
    z: list[list[dict[int, int]]] = field(default_factory=list)
    v: dict[int, int] = field(default_factory=dict)
    """By pool."""


Rows = dict[tuple[int, int], Entries]
"""Rows in the making, by two numbers."""


class _Building:
    """The programme as a matrix, in an order that depends on nothing but its own order."""

    def __init__(self, programme: Programme) -> None:
        self.matrix, self.columns = Matrix(), Columns()
        self._programme = programme
        self._supply: Rows = {}
        self._loss: Rows = {}
        self._use: Rows = {}
        self._supply_on: Rows = {}
        self._demand: Rows = {}
        self._demand_on: Rows = {}
        self._load: Rows = {}
        self._there: Counter[tuple[int, int]] = Counter()
        """What is offered if nothing changes, by pool and type."""
        self._there_on: Counter[tuple[int, int]] = Counter()
        """The same by node."""

    def build(self) -> None:
        for group in self._programme.classes:
            self._class(group)
        for wanted in self._programme.groups:
            self._group(wanted)
        for key in sorted(self._loss.keys() & self._programme.spare.keys()):
            self.matrix.row(-INFINITE, self._programme.spare[key], self._loss[key])
        for key in sorted(self._use):
            self.matrix.row(-INFINITE, self._programme.limits[key], self._use[key])
        for (pool, gres_type, number), most in sorted(self._programme.together.items()):
            wanting = self._demand.get((pool, gres_type), [])
            several = [(column, -n // number) for column, n in wanting if -n >= number]
            if several:
                self.matrix.row(-INFINITE, most, several)
        for key in sorted(self._load):
            self.matrix.row(-INFINITE, self._programme.free[key], self._load[key])
        for key in sorted(self._programme.growth.keys() & self._supply.keys()):
            self.matrix.row(-INFINITE, self._programme.growth[key], self._supply[key])
        if self._programme.twice:
            self._twice()
        self._balance(self._demand_on, self._supply_on, self._there_on)
        self._balance(self._demand, self._supply, self._there)

    def _twice(self) -> None:
        """A node registers twice, or something is left of each type that it offers."""
        for (pool, gres_type, wanted), there in sorted(self._programme.lasting.items()):
            rows, sign = (self._supply, 1) if wanted else (self._loss, -1)
            more = [(column, sign * n) for column, n in rows.get((pool, gres_type), ())]
            if -sum(min(0, n) * self.matrix.upper[column] for column, n in more) >= there:
                column = self.columns.v.get(pool)
                if column is None:
                    column = self.matrix.column(self._programme.twice, 1, whole=True)
                    self.columns.v[pool] = column
                self.matrix.row(1 - there, INFINITE, [*more, (column, 1)])

    def _balance(self, demand: Rows, supply: Rows, there: Mapping[tuple[int, int], int]) -> None:
        """No more is taken than is offered."""
        for key in sorted(demand):
            self.matrix.row(-there[key], INFINITE, [*supply.get(key, ()), *demand[key]])

    def _class(self, group: GpuClass) -> None:
        offered, *_ = group.offers[0]
        for n, count in enumerate(offered):
            if count:
                self._there[group.pool, n] += count * group.count
                if group.node >= 0:
                    self._there_on[group.node, n] += count * group.count
        mine = []
        for supply, lost, used, cost in group.offers[1:]:
            column = self.matrix.column(cost, group.count, whole=True)
            mine.append(column)
            more = list(map(sub, supply, offered)) if any(offered) else supply
            _note(self._supply, group.pool, more, column)
            _note(self._loss, group.hulls, lost, column)
            _note(self._use, group.budget, used, column)
            if group.node >= 0:
                _note(self._supply_on, group.node, more, column)
        self.columns.x.append(mine)
        if len(mine) > 1:
            self.matrix.row(-INFINITE, group.count, [(column, 1) for column in mine])

    def _group(self, wanted: Group) -> None:
        simple = len(wanted.parts) == 1 and wanted.parts[0].nodes == 1
        tiers = [self.matrix.column(-value, jobs, whole=not simple) for value, jobs in wanted.tiers]
        self.columns.y.append(tiers)
        most = sum(jobs for _, jobs in wanted.tiers)
        shares = [self._part(p, most * p.nodes, tiers) for p in wanted.parts]
        self.columns.z.append(shares)
        if self._programme.free and not simple:
            # No node has two shares of one job.
            for pool in sorted({pool for mine in shares for pool in mine}):
                here = [(mine[pool], 1) for mine in shares if pool in mine]
                self.matrix.row(-INFINITE, 0, [*here, *((tier, -1) for tier in tiers)])

    def _part(self, part: Part, most: int, tiers: Sequence[int]) -> dict[int, int]:
        """The shares of one part by pool: as many as its jobs have together, `most` at most."""
        limits = part.most or (most,) * len(part.pools)
        mine = {
            pool: self.matrix.column(0, min(most, limit), whole=True)
            for pool, limit in zip(part.pools, limits, strict=True)
        }
        served = ((tier, -part.nodes) for tier in tiers)
        self.matrix.row(0, 0, [*((column, 1) for column in mine.values()), *served])
        for pool, column in mine.items():
            for gres_type, count in part.wants:
                self._demand.setdefault((pool, gres_type), []).append((column, -count))
        for (pool, column), (n, load) in itertools.product(mine.items(), enumerate(part.load)):
            if load:
                self._load.setdefault((pool, n), []).append((column, load))
        for pool, nodes in zip(part.pools, part.apart, strict=False):
            here = [(node, self.matrix.column(0, most, whole=True)) for node in nodes]
            self.matrix.row(0, 0, [(mine[pool], -1), *((column, 1) for _, column in here)])
            for (node, column), (gres_type, count) in itertools.product(here, part.wants):
                self._demand_on.setdefault((node, gres_type), []).append((column, -count))
        return mine


def _note(rows: Rows, of: int, counts: Sequence[int], column: int) -> None:
    for n, count in enumerate(counts):
        if count:
            rows.setdefault((of, n), []).append((column, count))


def matrix(programme: Programme) -> tuple[Matrix, Columns]:
    """The programme as a matrix, and where its variables are in it."""
    building = _Building(programme)
    building.build()
    return building.matrix, building.columns


def solution(
    programme: Programme, columns: Columns, values: Sequence[float], gap: float, size: Matrix
) -> Solution:
    """What a solver's values mean. The value is counted again, in whole numbers."""
    amount = [round(v) for v in values]
    options = tuple(
        (group.count - sum(taken), *taken)
        for group, mine in zip(programme.classes, columns.x, strict=True)
        for taken in [[amount[c] for c in mine]]
    )
    served = tuple(sum(amount[c] for c in mine) for mine in columns.y)
    spread = tuple(
        tuple({pool: n for pool, c in part.items() if (n := amount[c])} for part in parts)
        for parts in columns.z
    )
    value = (
        sum(
            min(left, jobs) * worth
            for group, count in zip(programme.groups, served, strict=True)
            for worth, jobs, left in _tiers(group, count)
        )
        - sum(
            n * cost
            for group, taken in zip(programme.classes, options, strict=True)
            for (*_, cost), n in zip(group.offers, taken, strict=True)
        )
        - programme.twice * sum(amount[c] for c in columns.v.values())
    )
    return Solution(options, served, spread, value, gap, len(size.cost), len(size.row_lower))


def _tiers(group: Group, count: int) -> list[tuple[int, int, int]]:
    """(value, jobs, jobs still to be counted) of each tier that `count` jobs reach."""
    found = []
    for worth, jobs in group.tiers:
        found.append((worth, jobs, count))
        count -= min(count, jobs)
    return found
