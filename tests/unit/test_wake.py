"""The wake file, slurmctld's two hooks, and the units that go with them."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path

import click
import pytest

from slurm_mig.adapters.store import FileStore
from slurm_mig.adapters.wake import Wake
from slurm_mig.cli import main
from slurm_mig.core import wiring
from slurm_mig.core.records import Phase, Transaction
from tests.unit.test_values import managed, transaction

ROOT = Path(__file__).parents[2]
UNITS = sorted((ROOT / "etc" / "systemd").iterdir())


def hook(name: str, *words: str, env: dict[str, str] | None = None) -> int:
    done = subprocess.run(
        ["/bin/dash", str(ROOT / "scripts" / name), *words],
        env=env or {}, capture_output=True, check=False, timeout=10,
    )  # fmt: skip
    assert done.stdout == b""
    return done.returncode


def test_a_wish_is_heard_but_not_before_the_minimum_interval(tmp_path: Path) -> None:
    wake = Wake(tmp_path / "wake", 0.3)
    start = time.monotonic()
    assert hook("slurmctld_epilog", str(wake.file)) == 0
    wake.wait(20, lambda: False)
    assert 0.3 <= time.monotonic() - start < 10
    wake.take()
    wake.take()
    start = time.monotonic()
    wake.wait(0.4, lambda: False)
    assert time.monotonic() - start >= 0.4
    wake.wait(20, lambda: True)


@pytest.mark.parametrize(("ago", "least", "most"), [(0, 0.2, 5), (9, 0, 0.2), (-9999, 0.2, 5)])
def test_a_rest_since_the_last_cycle(tmp_path: Path, ago: float, least: float, most: float) -> None:
    start = time.monotonic()
    Wake(tmp_path / "wake", 0.25).rest(time.time() - ago)
    assert least <= time.monotonic() - start < most


def test_the_slurmctld_epilog_where_nothing_is_installed(tmp_path: Path) -> None:
    assert hook("slurmctld_epilog", str(tmp_path / "none" / "wake")) == 0
    assert not (tmp_path / "none").exists()


def saved(store: FileStore, value: Transaction, phase: Phase) -> bool:
    """Is the node marked as differing once this phase has been journalled?"""
    from dataclasses import replace

    store.save_transaction(replace(value, phase=phase))
    return (store.root / "differing" / value.node).exists()


def test_a_node_is_marked_while_its_views_differ(tmp_path: Path) -> None:
    store, value = FileStore(tmp_path), transaction()
    assert not saved(store, value, Phase.FENCED)
    assert saved(store, value, Phase.RESHAPED)
    assert saved(store, value, Phase.PUBLISHED)
    store.save_managed(managed())
    assert not (tmp_path / "differing" / "n1").exists()
    assert saved(store, value, Phase.RESHAPED)
    assert not saved(store, value, Phase.ABANDONED)
    assert saved(store, value, Phase.RESHAPED)
    store.forget("n1")
    assert not (tmp_path / "differing" / "n1").exists()


@pytest.mark.parametrize(
    ("nodes", "code"),
    [("n[1-3],x", 1), ("n2", 1), ("n20", 0), ("x", 0), ("", 0), ("$(touch x)", 0), ("-h", 0),
     ("n2\nn3", 0), ("n[1-", 0), ("n" * 70000, 0), ("n[0-99999999]", 0)],
)  # fmt: skip
def test_the_slurmctld_prolog_refuses_a_node_that_differs(
    tmp_path: Path, nodes: str, code: int
) -> None:
    conf = tmp_path / "slurm.conf"
    conf.write_text("ClusterName=x\nSlurmctldHost=localhost\nNodeName=n[1-3]\n")
    env = {"SLURM_JOB_NODELIST": nodes, "SLURM_JOB_ID": "7", "SLURM_CONF": str(conf)}
    differing = tmp_path / "differing"
    differing.mkdir()
    assert hook("slurmctld_prolog", str(differing), env=env) == 0
    (differing / "n2").touch()
    assert hook("slurmctld_prolog", str(differing), env=env) == code
    assert not (ROOT / "x").exists()


@pytest.mark.parametrize("unit", UNITS, ids=lambda p: p.name)
def test_units_name_what_there_is(unit: Path) -> None:
    """Commands with their options, and for each path and timer a service."""
    text = unit.read_text()
    for line in re.findall(r"(?m)^ExecStart=/usr/bin/slurm-mig (.*)$", text):
        command: click.Command = main
        words = line.split()
        while isinstance(command, click.Group):
            command = command.commands[words.pop(0)]
        command.make_context("slurm-mig", words)
    if unit.suffix in (".path", ".timer"):
        assert unit.with_suffix(".service").exists()
    if unit.with_suffix(".path").exists():
        assert "StartLimitIntervalSec=0" in unit.with_suffix(".service").read_text()


CONFIG = """\
Configuration data as of 2026-11-24T16:00:00
DebugFlags              = NO_CONF_HASH
Epilog[0]               = /etc/slurm/epilog.d/*
Epilog[1]               = /x/epilog
JobSubmitPlugins        = (null)
Prolog                  = (null)
SchedulerParameters     = bf_interval=30
TaskProlog              = /etc/slurm/task
"""


def test_the_lines_of_slurm_conf_are_found_or_missed() -> None:
    config = wiring.parse(CONFIG)
    assert config["Epilog"] == ["/etc/slurm/epilog.d/*", "/x/epilog"]
    assert wiring.joined_directories(config) == {"Epilog": "/etc/slurm/epilog.d"}
    found = wiring.findings(config, "/x", lambda program, _: program == "/etc/slurm/task")
    there = {f.line.partition("=")[0]: f.there for f in found}
    assert there == {
        "TaskProlog": True, "Prolog": False, "Epilog": True, "PrologSlurmctld": False,
        "EpilogSlurmctld": False, "JobSubmitPlugins": False, "SchedulerParameters": False,
        "DebugFlags": True,
    }  # fmt: skip
    lines = [f.line for f in found]
    assert "SchedulerParameters=bf_interval=30,nohold_on_prolog_fail" in lines
    assert "JobSubmitPlugins=lua" in lines
