"""Solves the programme with HiGHS: the only module of the core that knows a library.

One thread and a fixed seed: the same programme gives the same solution.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slurm_mig.core.planning import branching, programme
from slurm_mig.core.planning.branching import Bounds, UnclearError, Vertex
from slurm_mig.core.planning.programme import Matrix, Programme, Solution
from slurm_mig.errors import SlurmMigError

COMMON: dict[str, Any] = {"output_flag": False, "threads": 1, "random_seed": 0}

OPTIONS: dict[str, Any] = {
    **COMMON,
    "mip_abs_gap": 0.5,
    "mip_heuristic_run_feasibility_jump": False,
    "mip_heuristic_run_root_reduced_cost": False,
    "presolve": "off",
}
"""The objective is whole, so less than one point from the bound is best. To change nothing is
always feasible, so the heuristic that looks for anything feasible (most of the time for a large
cluster, measured) has nothing to find. The programme has no superfluous rows and columns: presolve
and solving smaller programmes beside it takes longer than it saves (measured from 80 to 8000 GPUs).
"""

PRIMAL: dict[str, Any] = {
    **COMMON,
    "presolve": "off",
    "simplex_strategy": 4,
    "primal_simplex_bound_perturbation_multiplier": 0.0,
}
"""For the relaxation. To change nothing is its first vertex, from where the primal method goes on.
Bounds are whole, and so are most vertices: perturbed ones only have to be mended afterwards (a
fifth of the time, measured over 60 clusters)."""

VERTICES, SMALL = 8, 400
"""So many are looked at before HiGHS's own search for whole numbers begins, where there are no more
columns than that: larger programmes were never solved by so few."""


def solve(problem: Programme, time_limit_s: float, rel_gap: float = 0.0) -> Solution:
    """The best solution, or the best found within the limit, with its gap; `rel_gap` is the share
    of the value at which it may stop.

    Raises SlurmMigError when HiGHS is not installed or finds nothing at all.
    """
    built, columns = programme.matrix(problem)
    if not built.cost:
        return programme.solution(problem, columns, (), 0.0, built)
    if len(built.cost) <= SMALL:
        relaxed = _Relaxed(built, time_limit_s)
        if values := branching.search(relaxed, built.upper, built.whole, rel_gap, VERTICES):
            return programme.solution(problem, columns, values, rel_gap, built)
    values, gap = run(built, time_limit_s, rel_gap)
    return programme.solution(problem, columns, values, gap, built)


class _Relaxed:
    """The matrix without wholeness; each vertex is reached from the one before."""

    def __init__(self, built: Matrix, time_limit_s: float) -> None:
        highspy = _library()
        self._solver = _solver(highspy, {**PRIMAL, "time_limit": time_limit_s})
        self._solver.passModel(_model(highspy, built, whole=False))
        self._status = highspy.HighsModelStatus
        self._upper = built.upper
        self._changed: set[int] = set()

    def best(self, bounds: Bounds) -> Vertex | None:
        for column in self._changed - bounds.keys():
            self._solver.changeColBounds(column, 0.0, self._upper[column])
        for column, (low, high) in bounds.items():
            self._solver.changeColBounds(column, low, high)
        self._changed = set(bounds)
        self._solver.run()
        # With other bounds a vertex is no longer within them, and the dual method mends that.
        self._solver.setOptionValue("simplex_strategy", 1)
        if (status := self._solver.getModelStatus()) == self._status.kInfeasible:
            return None
        if status != self._status.kOptimal:
            raise UnclearError
        return Vertex(
            self._solver.getInfo().objective_function_value,
            list(self._solver.getSolution().col_value),
        )


def _library() -> Any:
    try:
        import highspy
    except ImportError as error:
        raise SlurmMigError(
            "highspy is not installed", hint="pip install 'slurm-mig[controller]'"
        ) from error
    return highspy


def _solver(highspy: Any, options: Mapping[str, Any]) -> Any:
    # Not highspy.Highs, which prints a banner to standard output as soon as it is made (1.16).
    solver = highspy._Highs()
    for name, value in options.items():
        solver.setOptionValue(name, value)
    return solver


def run(
    built: Matrix, time_limit_s: float, rel_gap: float, options: Mapping[str, Any] = OPTIONS
) -> tuple[list[float], float]:
    """Values of the columns, and the gap. Raises SlurmMigError."""
    highspy = _library()
    solver = _solver(highspy, {**options, "time_limit": time_limit_s, "mip_rel_gap": rel_gap})
    solver.passModel(_model(highspy, built))
    solver.run()
    info = solver.getInfo()
    values = list(solver.getSolution().col_value)
    if not values or info.primal_solution_status != 2:
        raise SlurmMigError(
            f"HiGHS found no plan: {solver.modelStatusToString(solver.getModelStatus())}"
        )
    missing = info.objective_function_value - info.mip_dual_bound
    gap = 0.0 if missing < 1 - 1e-3 else missing / max(1.0, abs(info.objective_function_value))
    return values, gap


def _model(highspy: Any, built: Matrix, *, whole: bool = True) -> Any:
    model = highspy.HighsLp()
    model.num_col_, model.num_row_ = len(built.cost), len(built.row_lower)
    model.col_cost_ = built.cost
    model.col_lower_ = [0.0] * len(built.cost)
    model.col_upper_ = built.upper
    model.row_lower_, model.row_upper_ = built.row_lower, built.row_upper
    if whole:
        kinds = (highspy.HighsVarType.kContinuous, highspy.HighsVarType.kInteger)
        model.integrality_ = [kinds[whole] for whole in built.whole]
    model.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    model.a_matrix_.start_ = built.starts
    model.a_matrix_.index_ = built.indexes
    model.a_matrix_.value_ = built.values
    return model
