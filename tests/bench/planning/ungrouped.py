"""The same problem without classes and groups: a variable for each GPU and placement, and each job.

What a straightforward model looks like, for the benchmark to compare with, with the same objective
and the same limits. Written for HiGHS and for CP-SAT alike.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from slurm_mig.core.planning import programme
from slurm_mig.core.planning.classes import Problem
from slurm_mig.core.planning.fleet import Draft, Fleet, Node
from slurm_mig.core.planning.highs import run
from slurm_mig.core.planning.programme import Entries, Group, Programme
from slurm_mig.core.planning.units import Pools
from slurm_mig.core.planning.weights import Weights


@dataclass(frozen=True)
class Answer:
    """What a solver says within its time."""

    value: int
    bound: float
    proven: bool


def _job_by_job(given: Programme) -> Programme:
    groups = tuple(
        Group(group.parts, ((value, 1),))
        for group in given.groups
        for value, count in group.tiers
        for _ in range(count)
    )
    return replace(given, groups=groups)


class Ungrouped:
    """The matrix of the ungrouped model."""

    def __init__(self, fleet: Fleet, pools: Pools, problem: Problem, weights: Weights) -> None:
        self._weights = weights
        self._tables = problem.tables
        self._supply: dict[tuple[int, int], Entries] = {}
        self._loss: dict[tuple[int, int], Entries] = {}
        # The jobs' side: a programme without classes, whose supply rows are then given ours.
        jobs = _job_by_job(problem.programme)
        empty = Programme(jobs.types, (), jobs.groups, {}, jobs.together)
        self.matrix, _ = programme.matrix(empty)
        self._rows = self._demand_rows(jobs)
        for at, node in enumerate(fleet.nodes):
            spares = self._tables.spares(node)
            for draft in node.drafts:
                self._gpu(pools.of_node[at], node, draft, spares)
        for key, entries in self._supply.items():
            if key in self._rows:
                self.matrix.rows[self._rows[key]] += entries
        for key, entries in self._loss.items():
            self.matrix.row(-float("inf"), jobs.spare[key], entries)

    def _demand_rows(self, jobs: Programme) -> dict[tuple[int, int], int]:
        """The row of each pool and type: the last ones, in sorted order."""
        keys = sorted(
            {
                (pool, gres_type)
                for group in jobs.groups
                for part in group.parts
                for pool in part.pools
                for gres_type, _ in part.wants
            }
        )
        first = len(self.matrix.rows) - len(keys)
        return {key: first + n for n, key in enumerate(keys)}

    def _gpu(self, pool: int, node: Node, draft: Draft, spares: list[int]) -> None:
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
        # Every idle one is destroyed unless it stays: the constant is in `self.constant`.
        self._fits(draft, there)
        self._changed(draft, there)
        for n in wanted:
            bits = shape.of_profile[self._tables.types[n]]
            entries = [(c, 1) for p, c in there.items() if bits >> p & 1]
            self._supply.setdefault((pool, n), []).extend(entries)
        self._hulls(pool, draft, there, spares)

    def _fits(self, draft: Draft, there: dict[int, int]) -> None:
        shape = draft.shape
        for memory in range(max(m.bit_length() for m in shape.memory)):
            entries = [(c, 1) for p, c in there.items() if shape.memory[p] >> memory & 1]
            if len(entries) > 1:
                self.matrix.row(-float("inf"), 1, entries)
        left = shape.compute_slices - shape.compute_of(draft.fixed)
        self.matrix.row(-float("inf"), left, [(c, shape.compute[p]) for p, c in there.items()])

    def _changed(self, draft: Draft, there: dict[int, int]) -> None:
        """The GPU changes if anything is created; room shrinks by what is."""
        shape, weights = draft.shape, self._weights
        new = {p: c for p, c in there.items() if not draft.idle >> p & 1}
        changed = self.matrix.column(weights.publish, 1, whole=True)
        for p, c in there.items():
            if draft.idle >> p & 1:
                # An idle one that goes: 1 - c <= changed.
                self.matrix.row(1, float("inf"), [(c, 1), (changed, 1)])
            else:
                self.matrix.row(-float("inf"), 0, [(c, 1), (changed, -1)])
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
                        self.matrix.row(-float("inf"), 1, [(free[size, mask], 1), (c, 1)])
        below = 0
        for size in sorted({size for size, _ in free}):
            # One point for each slice by which the largest free placement is larger.
            level = self.matrix.column(-weights.room * (size - below), 1, whole=True)
            able = [(c, -1) for (s, _), c in free.items() if s >= size]
            self.matrix.row(-float("inf"), 0, [(level, 1), *able])
            below = size
        self.constant += weights.room * below + weights.destroy * draft.idle.bit_count()

    constant: int = 0

    def _hulls(self, pool: int, draft: Draft, there: dict[int, int], spares: list[int]) -> None:
        for n, gres_type in enumerate(self._tables.guarded):
            bits = draft.shape.of_profile.get(gres_type, 0)
            idle = (draft.idle & bits).bit_count()
            if spares[n] < 0 or not idle:
                continue
            lost = self.matrix.column(0, min(spares[n], idle), whole=True)
            mine = [(c, 1) for p, c in there.items() if bits >> p & 1]
            # lost >= idle - what is of the type afterwards
            self.matrix.row(idle, float("inf"), [(lost, 1), *mine])
            self._loss.setdefault((pool, n), []).append((lost, 1))

    def by_highs(self, limit_s: float) -> Answer:
        values, gap = run(self.matrix, limit_s, 0.0)
        value = -self.constant - round(
            sum(c * v for c, v in zip(self.matrix.cost, values, strict=True))
        )
        return Answer(value, value * (1 + gap), gap == 0)

    def by_cp_sat(self, limit_s: float) -> Answer:
        from ortools.sat.python import cp_model

        model = cp_model.CpModel()
        columns = [
            model.new_int_var(0, int(upper), f"x{n}") for n, upper in enumerate(self.matrix.upper)
        ]
        for entries, lower, upper in zip(
            self.matrix.rows, self.matrix.row_lower, self.matrix.row_upper, strict=True
        ):
            total = sum(columns[c] * int(n) for c, n in entries)
            if lower > -float("inf"):
                model.add(total >= int(lower))
            if upper < float("inf"):
                model.add(total <= int(upper))
        costs = zip(columns, self.matrix.cost, strict=True)
        model.minimize(sum(column * int(cost) for column, cost in costs if cost))
        solver = cp_model.CpSolver()
        solver.parameters.max_time_in_seconds = limit_s
        solver.parameters.num_workers = 1
        status = solver.solve(model)
        if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            return Answer(0, float("inf"), proven=False)
        value = -self.constant - round(solver.objective_value)
        bound = -self.constant - solver.best_objective_bound
        return Answer(value, bound, status == cp_model.OPTIMAL)
