"""The programme for what waits, and its best realisation on nodes, with its proof."""

from __future__ import annotations

from collections.abc import Sequence

from slurm_mig.core.changes import Quality
from slurm_mig.core.planning import highs
from slurm_mig.core.planning.classes import APART, problem
from slurm_mig.core.planning.fleet import Fleet
from slurm_mig.core.planning.parts import CLOSE
from slurm_mig.core.planning.programme import Programme, Solution
from slurm_mig.core.planning.rules import Rules
from slurm_mig.core.planning.stage import Staged, Task, close_stage, stage
from slurm_mig.core.planning.units import Pools, Unit


def best(fleet: Fleet, pools: Pools, units: Sequence[Unit], rules: Rules) -> tuple[Staged, Quality]:
    """The best plan for these units of demand, on the fleet or on a copy of it."""
    gpus = sum(len(node.drafts) for node in fleet.nodes)
    if not units:
        return Staged(fleet, rules.weights), Quality(0, 0, proven=True, gpus=gpus)

    def solve(programme: Programme, rel_gap: float) -> Solution:
        return highs.solve(programme, rules.time_limit_s, rel_gap)

    coarse = problem(fleet, pools, units, rules.weights)
    bound = solve(coarse.programme, 0.0)
    found, most = _staged(fleet, Task(pools, units, coarse, bound, rules.weights, solve))
    worth = sum(unit.value for unit in found.served)
    quality = Quality(
        found.value,
        max(found.value, most),
        bound.gap == 0,
        worth,
        worth - found.value,
        found.terms(),
        (),
        len(coarse.programme.classes),
        gpus,
        found.refused_by_hulls,
    )
    return found, quality


def _staged(fleet: Fleet, task: Task) -> tuple[Staged, int]:
    """The best realisation on nodes, and what no plan can be worth more than."""
    count, bound = len(fleet.nodes), task.bound
    most = round(bound.value * (1 + bound.gap))
    if count > CLOSE:
        return stage(fleet, task, hard_first=False), most
    found = stage(fleet.copy(), task, hard_first=False)
    if found.value < most and any(unit.several for unit in task.units):
        other = stage(fleet.copy(), task, hard_first=True)
        found = max(found, other, key=lambda staged: staged.value)
    if found.value < most and count <= APART:
        other, solution = close_stage(fleet.copy(), task)
        found = max(found, other, key=lambda staged: staged.value)
        most = min(most, round(solution.value * (1 + solution.gap)))
    return found, most
