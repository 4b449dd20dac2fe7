"""A node serves one request at a time, and none of an earlier command."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path

import pytest

from slurm_mig.adapters.store import FileStore
from slurm_mig.adapters.turns import Turns
from slurm_mig.errors import BusyError, TurnError
from slurm_mig.node import answer_all


def test_what_comes_late_from_an_earlier_command_is_refused(tmp_path: Path) -> None:
    turns = Turns(tmp_path)
    for turn in (7, 7, 9):
        with turns.taken(turn):
            pass
    with pytest.raises(BusyError, match="another command has taken over"), turns.taken(8):
        pass
    with turns.taken(10):
        pass


def test_one_at_a_time(tmp_path: Path) -> None:
    first, second = Turns(tmp_path), Turns(tmp_path, patience_s=0.05)
    with first.taken(3):
        with pytest.raises(BusyError, match="an earlier request is still"), second.taken(4):
            pass
        with second.taken(0):
            pass  # Who only looks, looks.
    with second.taken(4):
        pass


def test_a_request_without_a_turn_is_one_that_looks(tmp_path: Path) -> None:
    done: list[object] = []
    lines = [{"verb": "do", "data": 1, "turn": 5}, {"verb": "do", "data": 2, "turn": 4},
             {"verb": "do", "data": 3}, {"verb": "do", "data": 4, "turn": "x"}]  # fmt: skip
    answers = io.StringIO()
    answer_all({"do": done.append}, [json.dumps(x) for x in lines], answers, Turns(tmp_path).taken)
    said = [json.loads(line) for line in answers.getvalue().splitlines()]
    assert done == [1, 3]
    assert [a.get("error", {}).get("kind") for a in said] == [
        None,
        "TurnError",
        None,
        "ConfigError",
    ]


def test_turns_go_on_where_the_state_directory_was_lost(tmp_path: Path) -> None:
    """However many commands there were before in a short time."""
    seen = []
    for n in range(40):
        with (store := FileStore(tmp_path / str(n // 20))).lock():
            seen.append(store.turn)
    assert seen == sorted(set(seen))


def test_a_turn_of_a_clock_that_was_ahead_is_overtaken(tmp_path: Path) -> None:
    """The state directory was lost, and a node has heard of a turn of tomorrow; not of any turn."""
    node, store = Turns(tmp_path / "node"), FileStore(tmp_path / "state")
    tomorrow = time.time_ns() + 86400 * 10**9
    with node.taken(tomorrow):
        pass
    with store.lock():
        with pytest.raises(TurnError) as said, node.taken(store.turn):
            pass
        store.overtaken(said.value.code)
        store.overtaken(10**30)
    with store.lock():
        assert store.turn == tomorrow + 1
        with node.taken(store.turn):
            pass
