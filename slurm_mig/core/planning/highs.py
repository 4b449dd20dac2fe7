"""Solves the programme with HiGHS: the only module of the core that knows a library.

One thread and a fixed seed: the same programme gives the same solution.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slurm_mig.core.planning import programme
from slurm_mig.core.planning.programme import Matrix, Programme, Solution
from slurm_mig.errors import SlurmMigError

OPTIONS: dict[str, Any] = {
    "output_flag": False,
    "threads": 1,
    "random_seed": 0,
    "mip_abs_gap": 0.5,
    "mip_heuristic_run_feasibility_jump": False,
}
"""The objective is whole, so less than one point from the bound is best. To change nothing is
always feasible, so the heuristic that looks for anything feasible (most of the time for a large
cluster, measured) has nothing to find."""


def solve(problem: Programme, time_limit_s: float, rel_gap: float = 0.0) -> Solution:
    """The best solution, or the best found within the limit, with its gap; `rel_gap` is the share
    of the value at which it may stop.

    Raises SlurmMigError when HiGHS is not installed or finds nothing at all.
    """
    built, columns = programme.matrix(problem)
    if not built.rows:
        return Solution(tuple((c.count,) for c in problem.classes), (), (), 0, 0.0)
    values, gap = run(built, time_limit_s, rel_gap)
    return programme.solution(problem, columns, values, gap, built)


def run(
    built: Matrix, time_limit_s: float, rel_gap: float, options: Mapping[str, Any] = OPTIONS
) -> tuple[list[float], float]:
    """Values of the columns, and the gap. Raises SlurmMigError."""
    try:
        import highspy
    except ImportError as error:
        raise SlurmMigError(
            "highspy is not installed", hint="pip install 'slurm-mig[controller]'"
        ) from error
    limits = {"time_limit": time_limit_s, "mip_rel_gap": rel_gap}
    # Not highspy.Highs, which prints a banner to standard output as soon as it is made (1.16).
    solver = highspy._Highs()  # type: ignore[attr-defined]
    for name, value in {**options, **limits}.items():
        solver.setOptionValue(name, value)
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


def _model(highspy: Any, built: Matrix) -> Any:
    model = highspy.HighsLp()
    model.num_col_, model.num_row_ = len(built.cost), len(built.rows)
    model.col_cost_ = built.cost
    model.col_lower_ = [0.0] * len(built.cost)
    model.col_upper_ = built.upper
    model.row_lower_, model.row_upper_ = built.row_lower, built.row_upper
    kinds = (highspy.HighsVarType.kContinuous, highspy.HighsVarType.kInteger)
    model.integrality_ = [kinds[whole] for whole in built.whole]
    model.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    starts = [0]
    for row in built.rows:
        starts.append(starts[-1] + len(row))
    model.a_matrix_.start_ = starts
    model.a_matrix_.index_ = [column for row in built.rows for column, _ in row]
    model.a_matrix_.value_ = [float(n) for row in built.rows for _, n in row]
    return model
