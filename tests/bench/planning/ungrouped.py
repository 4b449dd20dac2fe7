"""The same problem without classes, groups and pools: a variable for each GPU and placement, and
for each job and node.

What a straightforward model looks like, for the benchmark to compare with, with the same objective
and the same limits; CPUs, memory and what hulls can spare are each node's. Written for HiGHS and
for CP-SAT alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from slurm_mig.core.planning.fleet import Fleet
from slurm_mig.core.planning.gpudraft import Draft
from slurm_mig.core.planning.highs import run
from slurm_mig.core.planning.node import Node
from slurm_mig.core.planning.programme import Entries, Matrix
from slurm_mig.core.planning.tables import Tables
from slurm_mig.core.planning.units import Pools, Unit
from slurm_mig.core.planning.weights import Weights

INFINITE = float("inf")

AS_IT_COMES = {"output_flag": False, "threads": 1, "random_seed": 0, "mip_abs_gap": 0.5}
"""HiGHS's options for this model: its own defaults, on one thread, and the same end."""


@dataclass(frozen=True)
class Answer:
    """What a solver says within its time."""

    value: int
    bound: float
    proven: bool


class Ungrouped:
    """The matrix of the ungrouped model: a variable for each GPU and placement, and for each job
    and node."""

    def __init__(
        self, fleet: Fleet, pools: Pools, units: Sequence[Unit], tables: Tables, weights: Weights
    ) -> None:
        self.matrix = Matrix()
        self.constant = 0
        self._weights = weights
        self._tables = tables
        self._pools = pools
        self._supply: dict[tuple[int, int], Entries] = {}
        """By node and type."""
        self._loss: dict[tuple[int, int], Entries] = {}
        self._load: dict[tuple[int, str], Entries] = {}
        self._there: dict[tuple[int, str], Entries] = {}
        """What may be there afterwards, by node and fleeting type."""
        for at, node in enumerate(fleet.nodes):
            for draft in node.drafts:
                self._gpu(at, node, draft)
            self._twice(at, node)
        for unit in units:
            self._unit(fleet, unit)
        for entries in self._supply.values():
            self.matrix.row(0, INFINITE, entries)
        for (at, n), entries in self._loss.items():
            self.matrix.row(-INFINITE, fleet.nodes[at].spare(tables.guarded[n]) or 0, entries)
        for (at, what), entries in self._load.items():
            node = fleet.nodes[at]
            self.matrix.row(-INFINITE, node.cpus if what == "cpus" else node.memory_mib, entries)

    def _unit(self, fleet: Fleet, unit: Unit) -> None:
        """One job: served or not, and where."""
        number = {t: n for n, t in enumerate(self._tables.types)}
        served = self.matrix.column(-unit.value, 1, whole=True)
        for size in unit.sizes:
            request = size.example
            here: Entries = []
            for pool in self._pools.eligible(size):
                for at in self._pools.nodes[pool]:
                    column = self.matrix.column(0, 1, whole=True)
                    here.append((column, 1))
                    for t, n in size.gpus:
                        self._supply.setdefault((at, number[t]), []).append((column, -n))
                    self._load.setdefault((at, "cpus"), []).append((column, request.cpus))
                    self._load.setdefault((at, "memory"), []).append((column, request.memory_mib))
            self.matrix.row(0, 0, [*here, (served, -request.nodes)])

    def _gpu(self, at: int, node: Node, draft: Draft) -> None:
        """One GPU: a variable for each placement that may be there afterwards."""
        shape, weights = draft.shape, self._weights
        wanted = [n for n, t in enumerate(self._tables.types) if t in shape.profiles]
        among = draft.idle
        for n in wanted:
            among |= shape.of_profile[self._tables.types[n]]
        for number in shape.numbers(draft.fixed):
            among &= ~(shape.overlapping[number] | 1 << number)
        if not among:
            return
        there = {
            n: self.matrix.column(
                -weights.destroy if draft.idle >> n & 1 else weights.create, 1, whole=True
            )
            for n in shape.numbers(among)
        }
        for number, column in there.items():
            if (name := shape.placements[number].profile) in node.fleeting:
                self._there.setdefault((at, name), []).append((column, 1))
        # Every idle one is destroyed unless it stays: the constant is in `self.constant`.
        self._fits(draft, there)
        self._changed(draft, there)
        for n in wanted:
            bits = shape.of_profile[self._tables.types[n]]
            entries = [(c, 1) for p, c in there.items() if bits >> p & 1]
            self._supply.setdefault((at, n), []).extend(entries)
            self._grows(node, n, (draft.idle & bits).bit_count(), entries)
        self._hulls(at, draft, there, self._tables.spares(node))

    def _twice(self, at: int, node: Node) -> None:
        """It registers twice, or of each type that it offers some stay or come."""
        twice = None
        for gres_type, held in node.fleeting.items():
            bits = [draft.shape.of_profile.get(gres_type, 0) for draft in node.drafts]
            idle = [(d.idle & b).bit_count() for d, b in zip(node.drafts, bits, strict=True)]
            staying = node.idle_of[gres_type] - held - sum(idle)
            if staying < 1 and any(idle):
                if twice is None:
                    twice = self.matrix.column(self._weights.twice, 1, whole=True)
                entries = self._there[at, gres_type]
                self.matrix.row(1 - staying, INFINITE, [*entries, (twice, 1)])

    def _grows(self, node: Node, n: int, before: int, entries: Entries) -> None:
        """The slots have room for so many more of a type."""
        most = before + max(0, node.growth(self._tables.types[n]))
        if most < len(entries):
            self.matrix.row(-INFINITE, most, entries)

    def _fits(self, draft: Draft, there: dict[int, int]) -> None:
        shape = draft.shape
        for memory in range(max(m.bit_length() for m in shape.memory)):
            entries = [(c, 1) for p, c in there.items() if shape.memory[p] >> memory & 1]
            if len(entries) > 1:
                self.matrix.row(-INFINITE, 1, entries)
        left = shape.compute_slices - shape.compute_of(draft.fixed)
        self.matrix.row(-INFINITE, left, [(c, shape.compute[p]) for p, c in there.items()])

    def _changed(self, draft: Draft, there: dict[int, int]) -> None:
        """The GPU changes if anything is created; room shrinks by what is."""
        shape, weights = draft.shape, self._weights
        new = {p: c for p, c in there.items() if not draft.idle >> p & 1}
        changed = self.matrix.column(weights.publish, 1, whole=True)
        for p, c in there.items():
            if draft.idle >> p & 1:
                # An idle one that goes: 1 - c <= changed.
                self.matrix.row(1, INFINITE, [(c, 1), (changed, 1)])
            else:
                self.matrix.row(-INFINITE, 0, [(c, 1), (changed, -1)])
        taken = 0
        for p in shape.numbers(draft.fixed):
            taken |= shape.memory[p]
        free = {}
        for size, mask in sorted({(q.size, m) for q, m in zip(
                shape.placements, shape.memory, strict=True)}):  # fmt: skip
            if not mask & taken:
                free[size, mask] = self.matrix.column(0, 1, whole=True)
                for p, c in new.items():
                    if shape.memory[p] & mask:
                        self.matrix.row(-INFINITE, 1, [(free[size, mask], 1), (c, 1)])
        below = 0
        for size in sorted({size for size, _ in free}):
            # One point for each slice by which the largest free placement is larger.
            level = self.matrix.column(-weights.room * (size - below), 1, whole=True)
            able = [(c, -1) for (s, _), c in free.items() if s >= size]
            self.matrix.row(-INFINITE, 0, [(level, 1), *able])
            below = size
        self.constant += weights.room * below + weights.destroy * draft.idle.bit_count()

    def _hulls(self, at: int, draft: Draft, there: dict[int, int], spares: Sequence[int]) -> None:
        for n, gres_type in enumerate(self._tables.guarded):
            bits = draft.shape.of_profile.get(gres_type, 0)
            idle = (draft.idle & bits).bit_count()
            if spares[n] < 0 or not idle:
                continue
            lost = self.matrix.column(0, min(spares[n], idle), whole=True)
            mine = [(c, 1) for p, c in there.items() if bits >> p & 1]
            # lost >= idle - what is of the type afterwards
            self.matrix.row(idle, INFINITE, [(lost, 1), *mine])
            self._loss.setdefault((at, n), []).append((lost, 1))

    def by_highs(self, limit_s: float) -> Answer:
        values, gap = run(self.matrix, limit_s, 0.0, AS_IT_COMES)
        value = -self.constant - round(
            sum(c * v for c, v in zip(self.matrix.cost, values, strict=True))
        )
        return Answer(value, value * (1 + gap), gap == 0)

    def for_cp_sat(self) -> Any:
        """The same as CP-SAT's own model."""
        from ortools.sat.python import cp_model

        model = cp_model.CpModel()
        columns = [
            model.new_int_var(0, int(upper), f"x{n}") for n, upper in enumerate(self.matrix.upper)
        ]
        for entries, lower, upper in zip(
            self.matrix.rows, self.matrix.row_lower, self.matrix.row_upper, strict=True
        ):
            total = sum(columns[c] * int(n) for c, n in entries)
            if lower > -INFINITE:
                model.add(total >= int(lower))
            if upper < INFINITE:
                model.add(total <= int(upper))
        costs = zip(columns, self.matrix.cost, strict=True)
        model.minimize(sum(column * int(cost) for column, cost in costs if cost))
        return model

    def by_cp_sat(self, model: Any, limit_s: float) -> Answer:
        """`model` is from `for_cp_sat`."""
        from ortools.sat.python import cp_model

        solver = cp_model.CpSolver()
        solver.parameters.max_time_in_seconds = limit_s
        solver.parameters.num_workers = 1
        status = solver.solve(model)
        if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            return Answer(0, INFINITE, proven=False)
        value = -self.constant - round(solver.objective_value)
        bound = -self.constant - solver.best_objective_bound
        return Answer(value, bound, status == cp_model.OPTIMAL)
