"""Compiled geometry: the same as core/geometry, and the counts that NVIDIA's placements give."""

from __future__ import annotations

import random

import pytest

from slurm_mig.core import geometry
from slurm_mig.core.planning.shapes import Shape
from tests.unit.builders import A30, A100, gpu, models

PLAIN = ("1g.5gb", "2g.10gb", "3g.20gb", "4g.20gb", "7g.40gb")


def shape(model: str) -> Shape:
    return Shape(gpu(model).profiles)


@pytest.mark.parametrize(
    ("model", "profiles", "count"),
    [
        (A100, PLAIN, 297),
        (A100, (*PLAIN, "1g.10gb"), 722),
        (A30, ("1g.6gb", "2g.12gb", "4g.24gb"), 25),
    ],
)
def test_every_layout_with_positions(model: str, profiles: tuple[str, ...], count: int) -> None:
    found = list(shape(model).layouts(profiles))
    assert len(found) == len(set(found)) == count


@pytest.mark.parametrize("model", sorted(models()))
def test_the_same_sets_fit_as_in_the_slow_geometry(model: str) -> None:
    """Every model of our data: random sets, of which a good part fits."""
    dice, board, fast = random.Random(model), gpu(model), shape(model)
    fitting = 0
    for _ in range(300):
        chosen = dice.sample(fast.placements, dice.choice((1, 2, 2, 3, 4)))
        expected = geometry.fits(board, chosen)
        assert fast.fits(fast.code(chosen)) == expected, chosen
        fitting += expected
    assert 0 < fitting < 300


def test_every_layout_of_the_slow_geometry_and_no_other() -> None:
    fast, board = shape(A30), gpu(A30)
    assert {fast.layout(c) for c in fast.layouts()} == set(geometry.layouts(board))


def test_what_fits_beside_busy_instances() -> None:
    """By the slow geometry: a layout that has the busy ones is the busy ones and an addition."""
    dice, fast, board = random.Random(3), shape(A100), gpu(A100)
    every = [frozenset(layout) for layout in geometry.layouts(board, PLAIN)]
    among = sum(fast.of_profile[name] for name in PLAIN)
    for _ in range(20):
        busy = frozenset(dice.sample(sorted(dice.choice(every)), 1))
        found = {fast.layout(c) | busy for c in fast.additions(fast.code(busy), among)}
        assert found == {layout for layout in every if busy <= layout}


def test_compute_slices_count_where_memory_would_do() -> None:
    fast = shape(A100)
    names = {f"{p.profile}@{p.start}": p for p in fast.placements}
    full = [names["4g.20gb@0"], names["2g.10gb@4"], names["1g.10gb@6"]]
    assert fast.fits(fast.code(full))
    assert not fast.fits(fast.code([names["4g.20gb@0"], names["3g.20gb@4"], names["1g.10gb@6"]]))
    assert fast.compute_of(fast.code(full)) == 7
