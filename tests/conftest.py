"""Options of the whole suite."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--reshapes",
        type=int,
        default=8,
        help="How many reshapes the tests of steps and the random runs make.",
    )
    parser.addoption(
        "--layout-pairs",
        type=int,
        default=20,
        help="How many pairs of layouts of each GPU model `apply` is tried on.",
    )
    parser.addoption("--seed", type=int, default=1, help="Seed of the random runs.")
    parser.addoption(
        "--cases",
        type=int,
        default=600,
        help="How many random clusters plans on nodes are held against every possibility.",
    )
    parser.addoption(
        "--queue",
        type=int,
        default=10,
        help="How many jobs the mixed queue has; from 60 on, static layouts are compared too.",
    )
    parser.addoption("--screenshots", help="Keep the report's screenshots in this folder.")
    parser.addoption(
        "--faults",
        choices=("some", "all"),
        default="some",
        help="Each fault at some steps of a reshape, or every fault at every step.",
    )
