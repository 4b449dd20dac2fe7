"""A short soak; docs/faults.md has the long one's numbers."""

from __future__ import annotations

from itertools import islice

import pytest

from tests.soak.actions import actions
from tests.soak.run import soak


def test_a_short_soak(request: pytest.FixtureRequest) -> None:
    seed = request.config.getoption("--seed")
    it, _ = soak(30, seed)
    print(f"seed {seed}: {dict(it.counts)}, {it.watch.looks} looks")
    assert not it.watch.violations, "\n".join(it.watch.violations)
    assert it.counts["cycles"] > 1


def test_a_seed_is_a_sequence() -> None:
    assert list(islice(actions(7), 500)) == list(islice(actions(7), 500))
    assert list(islice(actions(7), 50)) != list(islice(actions(8), 50))
