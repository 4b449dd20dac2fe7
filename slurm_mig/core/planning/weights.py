"""What a plan is worth: the numbers of the objective, all whole, each tunable by the site.

A job is worth its level times its compute slices times `job`; everything else is a cost. With the
defaults the costs only choose between plans that serve the same: the dearest change of one GPU
without a mode change costs less than the cheapest job brings. docs/planner.md has the formulas.
"""

from __future__ import annotations

from dataclasses import dataclass

LEVELS = 16
"""Steps into which the priorities of the queue are divided."""


@dataclass(frozen=True)
class Weights:
    """Units are points. Whole numbers, so that equal plans are exactly equal."""

    job: int = 100
    """For each compute slice that a served job gets, times the job's level."""
    publish: int = 20
    """For each GPU that changes: the node is fenced and registers."""
    twice: int = 10
    """For each node that registers twice: a type goes from it while jobs use others."""
    create: int = 2
    """For each instance created."""
    destroy: int = 4
    """For each idle instance destroyed."""
    room: int = 2
    """For each memory slice by which the largest placement still free on the GPU shrinks."""
    baseline: int = 1
    """For each memory slice of the baseline's placements that the change is in the way of."""
    mode: int = 400
    """For switching MIG on or off."""
    reset: int = 400
    """Besides, where switching resets the GPU."""
    withhold: int = 1
    """For each minute that a compute slice of idle instances is withheld for a waiting job."""


def level(priority: int, highest: int) -> int:
    """1 to LEVELS: the job's share of the highest priority in the queue, rounded up."""
    if highest <= 0 or priority <= 0:
        return 1
    return min(LEVELS, max(1, -(-priority * LEVELS // highest)))
