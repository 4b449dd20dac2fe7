"""When a node is left alone, and for which jobs it is not; what is refused in a site's files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from slurm_mig.adapters.slurmfiles import SlurmFiles
from slurm_mig.core import conditions
from slurm_mig.core.model import Allocation, Reservation, SlurmNode
from slurm_mig.errors import ConfigError
from slurm_mig.sitefiles import refuse_unsupported, unsupported
from tests.unit.builders import gpu, job, node, ones


def shown(*states: str, **changes: object) -> SlurmNode:
    view = node([gpu()])
    return replace(view.slurm, states=frozenset(states or {"IDLE"}), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("state", sorted(conditions.NOT_TOUCHED))
def test_states_that_are_left_alone(state: str) -> None:
    assert conditions.away(shown("IDLE", state)) == f"node is {'+'.join(sorted(['IDLE', state]))}"


@pytest.mark.parametrize(
    "state",
    ["IDLE", "MIXED", "ALLOCATED", "COMPLETING", "DRAIN", "PLANNED", "CLOUD", "INVALID_REG"],
)
def test_states_that_are_not(state: str) -> None:
    assert conditions.away(shown(state)) == ""


@pytest.mark.parametrize(
    ("begins_in_s", "said"),
    [
        (0.0, "in reservation course"),
        (-5.0, "in reservation course"),
        (conditions.RESHAPE_S - 1, "reservation course begins in 59 s"),
        (conditions.RESHAPE_S, ""),
    ],
)
def test_reservations(begins_in_s: float, said: str) -> None:
    there = shown(reservations=(Reservation("course", begins_in_s),))
    assert conditions.reserved(there) == said
    assert conditions.reserved(there, {"course"}) == ""
    assert conditions.reserved(there, {"other"}) == said


@pytest.mark.parametrize(
    ("limit_s", "begins_in_s", "whole", "barred"),
    [
        (0, 3600, True, True),
        (0, 3600, False, False),
        (3600, 3600, True, True),
        (3540, 3600, True, False),
        (3541, 3600, True, True),
    ],
)
def test_a_job_may_not_reach_into_a_coming_reservation(
    limit_s: int,
    begins_in_s: float,
    *,
    whole: bool,
    barred: bool,
) -> None:
    there = shown(reservations=(Reservation("course", begins_in_s, whole=whole),))
    assert bool(conditions.barred(there, job(1, {"a": 1}, time_limit_s=limit_s))) is barred


def test_jobs_and_their_own_reservation() -> None:
    inside = shown(reservations=(Reservation("course"),))
    mine, other = job(1, {"a": 1}, reservation="course"), job(2, {"a": 1})
    assert conditions.barred(inside, mine) == ""
    assert conditions.barred(inside, other) == "n1 is in reservation course"
    assert conditions.barred(shown(), mine) == "n1 is not in reservation course now"
    coming = shown(reservations=(Reservation("course", 600.0),))
    assert conditions.barred(coming, mine) == "n1 is not in reservation course now"


def test_a_whole_node_job_needs_an_empty_node() -> None:
    wants = job(1, {"a": 1}, exclusive=True)
    assert conditions.barred(shown(), wants) == ""
    assert "has other jobs" in conditions.barred(shown(cpus_alloc=1), wants)


def test_a_node_is_frozen_under_a_job_that_has_its_guard() -> None:
    view = node([gpu("NVIDIA A100-SXM4-40GB", 0, *ones())])
    last = len(view.slots) - 1
    some = replace(view.slurm, allocations=(Allocation(7, "alice", frozenset({0, 1})),))
    every = replace(view.slurm, allocations=(Allocation(7, "alice", frozenset(range(last + 1))),))
    assert conditions.frozen(some, view.slots) == ""
    assert conditions.frozen(every, view.slots) == "job 7 has the whole node: frozen until it ends"


@pytest.mark.parametrize(
    ("gpus", "allocated", "promised"),
    [
        ({"1g.5gb": 3}, (), {0, 1, 2}),
        ({"1g.5gb": 3}, (5, 6), {0, 5, 6}),
        ({"": 2}, (), {0, 1}),
        ({"1g.5gb": 2, "": 1}, (), {0, 1, 2}),
        ({"3g.20gb": 1}, (), set()),
        ({"1g.5gb": 99}, (), {0, 1, 2, 3, 4, 5, 6}),
    ],
)
def test_gpus_of_a_coming_reservation_are_busy(
    gpus: dict[str, int], allocated: tuple[int, ...], promised: set[int]
) -> None:
    """Devices that jobs have serve too: they stay."""
    there = shown(
        gres={"1g.5gb": 7, "off": 3, "guard": 1},
        reservations=(Reservation("course", 600.0, gpus=gpus),),
        allocations=tuple(Allocation(i, "bob", frozenset({i})) for i in allocated),
    )
    assert there.promised == promised
    assert there.busy == promised | set(allocated)


def test_an_active_reservation_promises_nothing() -> None:
    """Its node is left alone altogether, or is there for the reservation's own jobs."""
    there = shown(gres={"1g.5gb": 7}, reservations=(Reservation("c", 0.0, gpus={"1g.5gb": 2}),))
    assert there.promised == frozenset()


SLURM = "GresTypes=gpu\nNodeName=n1 CPUs=4 Gres=gpu:1g.5gb:7\nNodeName=n2 CPUs=4\n"


def site(tmp_path: Path, slurm: str, gres: str = "") -> SlurmFiles:
    (tmp_path / "slurm.conf").write_text(slurm)
    (tmp_path / "gres.conf").write_text(gres)
    return SlurmFiles(tmp_path / "slurm.conf", tmp_path / "gres.conf")


@pytest.mark.parametrize(
    ("slurm", "reason"),
    [
        (SLURM, ""),
        (SLURM + "SelectType=select/linear\n", "MIG types need select/cons_tres"),
        (SLURM + "SelectType=select/cons_res\n", "MIG types need select/cons_tres"),
        (SLURM + "GresTypes=gpu,mps\n", "fillers would carry mpss too"),
        (SLURM + "GresTypes=shard,gpu\n", "fillers would carry shards too"),
        (SLURM + "GresTypes=nic\n", "lacks gpu"),
        ("NodeName=DEFAULT RestrictedCoresPerGPU=2\n" + SLURM, "n1 has RestrictedCoresPerGPU=2"),
        ("NodeName=DEFAULT RestrictedCoresPerGPU=0\n" + SLURM, ""),
    ],
)
def test_what_slurm_mig_cannot_live_with(tmp_path: Path, slurm: str, reason: str) -> None:
    """Refused by enrol, and found again in every cycle."""
    there = site(tmp_path, slurm)
    if not reason:
        refuse_unsupported(there, "n1")
        return
    with pytest.raises(ConfigError, match="nothing was changed") as refused:
        refuse_unsupported(there, "n1")
    assert reason in str(refused.value)
    managed = site(tmp_path, slurm)
    for edit in managed.manage(["n1"]):
        edit.path.write_text(edit.after)
    for name, text in (("nodes.conf", "NodeName=n1 CPUs=4\n"), ("gres.conf", "")):
        (tmp_path / "slurm-mig").mkdir(exist_ok=True)
        (tmp_path / "slurm-mig" / name).write_text(text)
    assert reason in unsupported(site_again(tmp_path), ["n1"])["n1"]


def site_again(tmp_path: Path) -> SlurmFiles:
    return SlurmFiles(tmp_path / "slurm.conf", tmp_path / "gres.conf")


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("NodeName=n1 AutoDetect=nvml\n", True),
        ("NodeName=n1 Name=gpu Type=x File=/dev/nvidia0\n", True),
        ("NodeName=n2 AutoDetect=nvml\n", False),
        ("AutoDetect=nvml\n", False),
        ("Name=gpu File=/dev/nvidia0\n", True),
    ],
)
def test_lines_that_come_back_to_gres_conf(tmp_path: Path, line: str, *, found: bool) -> None:
    """A global AutoDetect does no harm: our own line for the node turns it off there."""
    there = site(tmp_path, SLURM, "NodeName=n1 AutoDetect=nvml\n")
    for edit in there.manage(["n1"]):
        edit.path.write_text(edit.after)
    (tmp_path / "slurm-mig").mkdir()
    (tmp_path / "slurm-mig" / "nodes.conf").write_text("NodeName=n1 CPUs=4\n")
    (tmp_path / "slurm-mig" / "gres.conf").write_text("NodeName=n1 AutoDetect=off\n")
    assert unsupported(site_again(tmp_path), ["n1"]) == {}
    gres = tmp_path / "gres.conf"
    gres.write_text(gres.read_text() + line)
    try:
        said = unsupported(site_again(tmp_path), ["n1"]).get("n1", "")
    except ConfigError as error:
        said = str(error)
    assert bool(said) is found
