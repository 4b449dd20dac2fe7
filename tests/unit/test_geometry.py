"""What fits on a GPU."""

from __future__ import annotations

import pytest

from slurm_mig.core import geometry
from tests.unit.builders import A30, at, gpu, ones

PLAIN = ["1g.5gb", "2g.10gb", "3g.20gb", "4g.20gb", "7g.40gb"]


@pytest.mark.parametrize(
    ("model", "profiles", "count"),
    [
        ("NVIDIA A100-SXM4-40GB", PLAIN, 297),
        ("NVIDIA A100-SXM4-40GB", [*PLAIN, "1g.10gb"], 722),
        (A30, ["1g.6gb", "2g.12gb", "4g.24gb"], 25),
    ],
)
def test_every_layout_with_positions(model: str, profiles: list[str], count: int) -> None:
    found = list(geometry.layouts(gpu(model), profiles))
    assert len(found) == len(set(found)) == count


def test_memory_slices_forbid_where_compute_slices_would_not() -> None:
    both = [at("3g.20gb", 0), at("3g.20gb", 4)]
    assert geometry.fits(gpu(), both)
    assert not geometry.fits(gpu(), [*both, at("1g.5gb", 3)])


def test_compute_slices_forbid_where_memory_slices_would_not() -> None:
    """1g.10gb at 6 would leave its memory free beside 4g and 2g, and 7 of 7 slices are used."""
    seven = [at("4g.20gb", 0), at("2g.10gb", 4), at("1g.5gb", 6)]
    assert geometry.fits(gpu(), seven)
    four = [at("3g.20gb", 4), *ones(4)]
    assert geometry.fits(gpu(), four)
    assert not geometry.fits(gpu(), [at("4g.20gb", 0), at("3g.20gb", 4), at("1g.10gb", 6)])


def test_a_media_profile_exists_once() -> None:
    assert geometry.fits(gpu(), [at("1g.5gb+me", 0)])
    assert not geometry.fits(gpu(), [at("1g.5gb+me", 0), at("1g.5gb+me", 1)])


def test_ways_to_add_beside_what_stays() -> None:
    fixed = frozenset([at("1g.5gb", 0)])
    ways = list(geometry.ways_to_add(gpu(), fixed, {"3g.20gb": 1}))
    assert ways == [frozenset([at("3g.20gb", 4)])]
    assert not list(geometry.ways_to_add(gpu(), fixed, {"7g.40gb": 1}))


def test_fill_adds_only_what_still_fits() -> None:
    kept = frozenset([at("3g.20gb", 4)])
    assert geometry.fill(gpu(), kept, ones()) == frozenset(ones(4))
