"""A node that takes long to fail is left alone for a while, and for longer each time."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from slurm_mig.adapters import sessions
from slurm_mig.adapters.remote import RemoteNodes
from slurm_mig.core.records import NodeFacts
from slurm_mig.core.silence import Silences
from slurm_mig.errors import SilentError, UnreachableError

HANGS = SilentError("n1: no answer in time")


class Time:
    """A clock that is set."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_twice_as_long_each_time_and_not_for_ever() -> None:
    clock = Time()
    silences = Silences(30, {}, clock)
    rests = []
    for _ in range(7):
        silences.noted("n1", HANGS)
        rests.append(silences.known["n1"].until - clock.now)
        clock.now = silences.known["n1"].until
        assert silences.left_alone("n1") is None
    assert rests == [30, 60, 120, 240, 480, 480, 480]
    assert silences.known["n1"].since == 1000
    silences.heard("n1")
    silences.noted("n1", HANGS)
    assert silences.known["n1"].until == clock.now + 30


def test_what_is_said_of_it() -> None:
    clock = Time()
    silences = Silences(30, {}, clock)
    silences.noted("n1", HANGS)
    silences.noted("n1", HANGS)
    clock.now += 18
    assert str(silences.left_alone("n1")) == (
        "n1: no answer in time; it has kept a cycle waiting 2 times and is asked again in 42 s"
    )
    assert silences.left_alone("n2") is None


def test_a_clock_that_is_set_back_silences_nobody() -> None:
    clock = Time()
    silences = Silences(30, {}, clock)
    silences.noted("n1", HANGS)
    clock.now -= 86400
    assert silences.left_alone("n1") is None


def test_none_is_left_alone_where_the_site_does_not_want_it() -> None:
    silences = Silences(0, {}, Time())
    silences.noted("n1", HANGS)
    assert silences.left_alone("n1") is None


NODE = """\
import json, os, sys, time
name, folder = sys.argv[1:]
with open(f"{folder}/asked", "a") as log:
    log.write(name + "\\n")
if name == "refuses":
    sys.exit("no such key")
for line in sys.stdin:
    if name == "hangs" and not os.path.exists(f"{folder}/mended"):
        time.sleep(60)
    print(json.dumps({"result": {"gpus": [], "driver": name}}), flush=True)
"""


def test_only_who_hangs_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "SLOW_S", 3.0)
    script = tmp_path / "node.py"
    script.write_text(NODE)
    clock, names = Time(), ["hangs", "refuses", "n1"]
    with RemoteNodes([sys.executable, str(script), "%h", str(tmp_path)], 4) as nodes:
        nodes.silences = Silences(30, {}, clock)
        nodes.observe(names)
        second = nodes.observe(names)
        asked = (tmp_path / "asked").read_text().split()
        assert sorted(asked) == ["hangs", "n1", "refuses", "refuses"]
        assert isinstance(second["hangs"], SilentError)
        assert "asked again in 30 s" in str(second["hangs"])
        assert isinstance(second["refuses"], UnreachableError)
        (tmp_path / "mended").touch()
        clock.now += 30
        assert isinstance(nodes.observe(["hangs"])["hangs"], NodeFacts)
        assert not nodes.silences.known


def test_who_hangs_in_a_reshape_is_left_alone_by_the_next_cycle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "SLOW_S", 3.0)
    script = tmp_path / "node.py"
    script.write_text(NODE)
    with RemoteNodes([sys.executable, str(script), "%h", str(tmp_path)], 4) as nodes:
        nodes.silences = Silences(30, {}, Time())
        with pytest.raises(SilentError, match="no answer in time"):
            nodes.announce("hangs")
        assert nodes.silences.known["hangs"].times == 1
