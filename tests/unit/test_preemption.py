"""Whom Slurm may preempt, and which jobs that starts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from slurm_mig.core import demand, preemption
from slurm_mig.core.changes import Plan, Refusal
from slurm_mig.core.model import JobRequest
from slurm_mig.core.preemption import Candidate, Rules
from tests.unit.builders import A100, gpu, job, node, ones

QOS = "normal|low,scavenger|cluster\nlow||requeue\nscavenger||suspend\n"


@pytest.mark.parametrize(
    ("modes", "cluster_mode", "expected"),
    [
        ({"low": "REQUEUE"}, "", {2}),
        ({"low": "CANCEL"}, "", {2}),
        ({"low": "SUSPEND"}, "", set()),
        ({"low": "OFF"}, "REQUEUE", set()),
        ({"low": ""}, "REQUEUE", {2}),
        ({}, "GANG,SUSPEND", set()),
    ],
)
def test_by_partition(modes: dict[str, str], cluster_mode: str, expected: set[int]) -> None:
    rules = Rules("partition_prio", {"high": 10, "low": 1}, modes=modes, mode=cluster_mode)
    running = [Candidate(2, "low"), Candidate(3, "high")]
    assert preemption.victims(Candidate(1, "high"), running, rules) == expected
    assert preemption.victims(Candidate(1, "low"), running, rules) == frozenset()


def test_by_qos() -> None:
    lists, modes = preemption.parse_qos(QOS)
    rules = Rules("qos", lists=lists, modes=modes, mode="CANCEL")
    running = [
        Candidate(2, "p", "low"),
        Candidate(3, "p", "scavenger"),
        Candidate(4, "p", "normal"),
    ]
    assert preemption.victims(Candidate(1, "p", "normal"), running, rules) == {2}
    assert preemption.victims(Candidate(1, "p", "low"), running, rules) == frozenset()


def test_without_preemption() -> None:
    running = [Candidate(2, "low")]
    assert preemption.victims(Candidate(1, "high"), running, Rules()) == frozenset()


def test_jobs_that_preemption_starts_are_set_aside_for_a_while() -> None:
    full = node([gpu(A100, 0, *ones())], jobs={7: range(4), 8: range(4, 7)})
    may = job(1, {"1g.5gb": 3}, preempts=frozenset({7}), submit_time=100)
    assert demand.by_preemption([may], [full], now=110.0) == {
        1: "Slurm may start it by preempting job 7"
    }
    both = replace(may, partition="other,main")
    assert demand.by_preemption([both], [full], now=110.0).keys() == {1}
    late = 100 + demand.PREEMPTION_S + 1
    assert demand.by_preemption([may], [full], now=late) == {}


@pytest.mark.parametrize(
    "wants",
    [
        job(1, {"1g.5gb": 5}, preempts=frozenset({7})),
        job(1, {"3g.20gb": 1}, preempts=frozenset({7})),
        job(1, {"1g.5gb": 1}),
        job(1, {"1g.5gb": 1}, preempts=frozenset({7}), nodes=2),
        job(1, {"1g.5gb": 1}, preempts=frozenset({7}), excluded_nodes=frozenset({"n1"})),
        job(1, {"1g.5gb": 1}, preempts=frozenset({7}), partition="other"),
    ],
)
def test_what_preemption_cannot_start_is_demand(wants: JobRequest) -> None:
    """Above all an instance that is not there: a reshape may still serve it."""
    full = node([gpu(A100, 0, *ones())], jobs={7: range(4), 8: range(4, 7)})
    assert demand.by_preemption([wants], [full], now=0.0) == {}


def test_heterogeneous_jobs_wait_as_one() -> None:
    parts = [job(n, {"a": 1}, het_job=1, reason="Resources") for n in (1, 2)]
    unseen = [parts[0], job(2, {"a": 1}, het_job=1, reason="None")]
    held = [parts[0], job(2, {"a": 1}, het_job=1, reason="QOSGrpGRES")]
    assert [r.job_id for r in demand.waiting(parts)] == [1, 2]
    assert [r.job_id for r in demand.waiting(unseen)] == [1, 2]
    assert demand.waiting(held) == []


def test_no_plan_for_half_a_heterogeneous_job() -> None:
    """The components' jobs leave the plan together; others stay in it."""
    requests = [job(1, {"a": 1}, het_job=1), job(2, {"b": 1}, het_job=1), job(3, {"a": 1})]
    asked: list[list[int]] = []

    def plan(wanted: list[JobRequest]) -> Plan:
        asked.append([r.job_id for r in wanted])
        return Plan(refusals=tuple(Refusal(r.job_id, "no room") for r in wanted if "b" in r.gpus))

    made = demand.whole_jobs(plan, requests)  # type: ignore[arg-type]
    assert asked == [[1, 2, 3], [2, 3]]
    assert {r.job_id: r.reason for r in made.refusals} == {
        1: "component 2 of its heterogeneous job cannot be served",
        2: "no room",
    }
