"""Branch and bound over a relaxation, for programmes that need next to no branching.

The programme over classes often has a whole solution at the first or one of the next vertices. To
see that takes a few steps of the simplex method, where a solver for whole numbers begins with much
more. What is not proven best within a few vertices is left to that one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

NEARLY = 1e-6
"""What counts as whole: solvers compute in floating point."""

ROUNDS = 1e-3
"""By so much an objective may be off."""

Bounds = Mapping[int, tuple[float, float]]
"""By column, where they differ from the programme's own."""


class Vertex(NamedTuple):
    """A best solution of the relaxation."""

    objective: float
    values: Sequence[float]


class UnclearError(Exception):
    """The relaxation could not be solved to its end."""


class Relaxation(Protocol):
    """The programme without wholeness."""

    def best(self, bounds: Bounds) -> Vertex | None:
        """A vertex of the least objective within the bounds; None where there is none. Raises
        UnclearError."""


def search(
    relaxation: Relaxation, upper: Sequence[float], whole: Sequence[bool], gap: float, most: int
) -> list[float] | None:
    """Values of the columns that no solution beats by a point, or by the share `gap`; None when
    that is not known after `most` vertices.

    The objective is minimised, and whole wherever the columns marked `whole` are.
    """
    columns = [n for n, needed in enumerate(whole) if needed]
    found, reached = None, math.inf
    todo: list[tuple[dict[int, tuple[float, float]], float]] = [({}, -math.inf)]
    while todo:
        bounds, least = todo.pop()
        if least > reached - max(1.0, gap * abs(reached)):
            continue
        if not most:
            return None
        most -= 1
        try:
            vertex = relaxation.best(bounds)
        except UnclearError:
            return None
        if vertex is None:
            continue
        least = math.ceil(vertex.objective - ROUNDS)
        column = _least_whole(vertex.values, columns)
        if column is None:
            if least < reached:
                found, reached = list(vertex.values), least
            continue
        value = vertex.values[column]
        low, high = bounds.get(column, (0.0, upper[column]))
        down = {**bounds, column: (low, math.floor(value))}, least
        up = {**bounds, column: (math.ceil(value), high)}, least
        # The last one is looked at next.
        todo += [down, up] if value % 1 > 0.5 else [up, down]
    return found


def _least_whole(values: Sequence[float], columns: Sequence[int]) -> int | None:
    """The column that is farthest from whole, or None."""
    off = ((abs(values[c] - round(values[c])), -c) for c in columns)
    most, column = max(off, default=(0.0, 0))
    return -column if most > NEARLY else None
