"""From what Slurm says of a job to what it needs."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from slurm_mig.core import demand
from tests.unit.builders import job


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("gres/gpu:3g.20gb:1", {"3g.20gb": 1}),
        ("gres:gpu:1g.5gb+me:2", {"1g.5gb+me": 2}),
        ("gpu:2", {"": 2}),
        ("gres/gpu", {"": 1}),
        ("gres/gpu:a100=2", {"a100": 2}),
        ("gres/gpu:1g.5gb:1,license/x:3,gres/gpu:2g.10gb:1", {"1g.5gb": 1, "2g.10gb": 1}),
        ("gres/gpu:3g.20gb", {"3g.20gb": 1}),
        ("", {}),
        (None, {}),
        ("gres/craynetwork:1", {}),
        ("gres/gpu:3g.20gb:0", {}),
        ("gres/gpu:0", {}),
        ("gres/gpu:3g.20gb:0,gres/gpu:1g.5gb:1", {"1g.5gb": 1}),
    ],
)
def test_every_spelling_of_a_request(text: str | None, wanted: dict[str, int]) -> None:
    assert demand.parse_tres(text) == wanted


def test_a_nodes_gres() -> None:
    text = "gpu:1g.5gb:7(S:0-1),gpu:off:8,craynetwork:1"
    assert demand.parse_gres(text) == {"1g.5gb": 7, "off": 8}


def test_indexes_of_a_job() -> None:
    detail = "gpu:1g.5gb:3(IDX:0-1,5),gpu:3g.20gb:1(IDX:7)"
    assert demand.gpu_indexes(detail) == {0, 1, 5, 7}
    assert demand.gpu_indexes("gpu:1g.5gb:0(IDX:N/A)") == frozenset()


RACKS = ("r1n1", "r1n2", "r2n1", "r2n2", "r2n3")
DETAILS = [f"gpu:1g.5gb:1(IDX:{index})" for index in (1, 0, 0, 2, 0)]
BY_RACK = [(name, frozenset({n})) for name, n in zip(RACKS, (1, 0, 0, 2, 0), strict=True)]


@pytest.mark.parametrize(
    "resources",
    [
        {"nodes": {"allocation": [{"index": n, "name": name} for n, name in enumerate(RACKS)]}},
        {"nodes": "r1n[1-2],r2n[1-3]", "allocated_nodes": [{"nodename": n} for n in RACKS]},
    ],
    ids=["v0.0.41 and later", "v0.0.40"],
)
def test_a_jobs_gpus_by_node(resources: Mapping[str, object]) -> None:
    """As 26.05 wrote them of a running job. Its `nodes` in another order say nothing."""
    for nodes in ("r1n[1-2],r2n[1-3]", "r2n[1-3],r1n[1-2]", "r2n3"):
        job = {"nodes": nodes, "gres_detail": DETAILS, "job_resources": resources}
        assert demand.gpus_by_node(job) == BY_RACK


@pytest.mark.parametrize("unsaid", [None, {}, {"nodes": {"allocation": []}}])
def test_all_gpus_of_a_job_are_busy_where_slurm_does_not_say_which_node_has_which(
    unsaid: Mapping[str, object] | None,
) -> None:
    job = {"nodes": "r1n[1-2],r2n[1-3]", "gres_detail": DETAILS, "job_resources": unsaid}
    assert demand.gpus_by_node(job) == [(name, frozenset({0, 1, 2})) for name in RACKS]


def test_a_job_without_gpus_has_none_anywhere() -> None:
    named = {"nodes": {"allocation": [{"name": "r1n1"}, {"name": "r1n2"}]}}
    for details in ([], ["", ""], ["gpu:1g.5gb:0(IDX:N/A)", ""]):
        job = {"nodes": "r1n[1-2]", "gres_detail": details, "job_resources": named}
        assert demand.gpus_by_node(job) == []
    assert demand.gpus_by_node({"nodes": None, "gres_detail": None}) == []


@pytest.mark.parametrize(
    ("per_node", "per_job", "per_task", "nodes", "tasks", "wanted"),
    [
        ("gpu:a:2", "", "", 2, 4, 2),
        ("", "gpu:a:3", "", 2, 4, 2),
        ("", "", "gpu:a:1", 2, 4, 2),
        ("gpu:b:0", "gpu:a:3", "", 2, 4, 2),
    ],
)
def test_counts_on_each_node(
    per_node: str, per_job: str, per_task: str, nodes: int, tasks: int, wanted: int
) -> None:
    found = demand.gpus_per_node(per_node, per_job, per_task, nodes=nodes, tasks=tasks)
    assert found == {"a": wanted}


def test_only_jobs_that_wait_for_resources_count_by_priority() -> None:
    requests = [
        job(1, {"a": 1}, reason="JobHeldUser"),
        job(2, {"a": 1}, priority=5),
        job(3, {"a": 1}, priority=9, reason="ReqNodeNotAvail"),
        job(4, {"a": 1}, reason="Dependency"),
        job(5, {}, priority=99),
    ]
    assert [r.job_id for r in demand.waiting(requests)] == [3, 2]


def test_constraints() -> None:
    assert demand.parse_constraint("a&b|c") == (frozenset({"a", "b"}), frozenset({"c"}))
    assert demand.parse_constraint("[rack1*2&rack2*4]") == (demand.NO_NODE,)
    assert demand.parse_constraint("") == ()
