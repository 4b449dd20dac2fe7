"""The first planner: who is served, at whose cost, and why not."""

from __future__ import annotations

from dataclasses import replace

from slurm_mig.core import planner
from slurm_mig.core.changes import NodeChange
from slurm_mig.core.model import NodeCondition
from tests.unit.builders import A30, A100, at, gpu, job, node, ones


def only(changes: tuple[NodeChange, ...]) -> NodeChange:
    assert len(changes) == 1
    return changes[0]


def test_a_job_that_fits_as_it_is_changes_nothing() -> None:
    found = planner.plan([node([gpu(A100, 0, *ones())])], [job(1, {"1g.5gb": 1})])
    assert not found.changes
    assert found.startable == (1,)


def test_a_3g_beside_busy_small_instances_of_the_same_gpu() -> None:
    view = node([gpu(A100, 0, *ones())], {7: [0, 1]})
    change = only(planner.plan([view], [job(1, {"3g.20gb": 1})]).changes)
    part = change.gpus[0]
    assert part.created == (at("3g.20gb", 4),)
    assert set(part.kept) >= {at("1g.5gb", 0), at("1g.5gb", 1)}
    assert change.serves == (1,)
    assert [change.slots[i].placement for i in (0, 1)] == [at("1g.5gb", 0), at("1g.5gb", 1)]


def test_what_is_busy_everywhere_is_named() -> None:
    view = node([gpu(A100, 0, *ones())], {7: range(4), 8: range(4, 7)})
    found = planner.plan([view], [job(1, {"3g.20gb": 1})])
    assert not found.changes
    assert "in use by job 7, job 8" in found.refusals[0].reason


def test_a_hull_is_named() -> None:
    view = node([gpu(A100, 0, *ones()), gpu(A100, 1, *ones())], {7: [0], 8: [13]})
    found = planner.plan([view], [job(1, {"3g.20gb": 1})])
    assert not found.changes
    assert "need every index between to stay 1g.5gb" in found.refusals[0].reason


def test_an_impossible_profile_names_the_possible_ones() -> None:
    found = planner.plan([node([gpu(A30, 0)])], [job(1, {"3g.20gb": 1})])
    assert "can ever be '3g.20gb'" in found.refusals[0].reason
    assert "2g.12gb" in found.refusals[0].reason


def test_a_drained_node_is_left_alone() -> None:
    view = node([gpu(A100, 0, *ones())])
    view = replace(view, condition=NodeCondition.ADMIN, note="drained by an administrator: fan")
    found = planner.plan([view], [job(1, {"3g.20gb": 1})])
    assert not found.changes
    assert "drained by an administrator: fan" in found.refusals[0].reason


def test_what_a_higher_job_was_promised_is_not_taken_by_a_lower_one() -> None:
    view = node([gpu(A100, 0, *ones())])
    found = planner.plan([view], [job(1, {"1g.5gb": 7}), job(2, {"7g.40gb": 1})])
    assert found.startable == (1,)
    assert [r.job_id for r in found.refusals] == [2]


def test_the_fewest_idle_instances_go() -> None:
    view = node([gpu(A100, 0, *ones()), gpu(A100, 1)])
    change = only(planner.plan([view], [job(1, {"4g.20gb": 1})]).changes)
    assert [part.gpu for part in change.gpus] == [1]
    assert change.gpus[0].destroyed == ()


def test_an_array_counts_its_tasks() -> None:
    view = node([gpu(A100, 0, *ones()), gpu(A100, 1, *ones())])
    change = only(planner.plan([view], [job(1, {"3g.20gb": 1}, tasks=3)]).changes)
    created = [p for part in change.gpus for p in part.created if p.profile == "3g.20gb"]
    assert len(created) == 3


def test_several_nodes_are_all_reshaped_or_none() -> None:
    views = [node([gpu(A100, 0, *ones())], name=name) for name in ("a", "b")]
    both = planner.plan(views, [job(1, {"7g.40gb": 1}, nodes=2)])
    assert [c.node for c in both.changes] == ["a", "b"]
    busy = [views[0], node([gpu(A100, 0, *ones())], {7: [0]}, name="b")]
    none = planner.plan(busy, [job(1, {"7g.40gb": 1}, nodes=2)])
    assert not none.changes
    assert none.refusals


def test_cpus_memory_and_constraints_are_respected() -> None:
    view = node([gpu(A100, 0, *ones())])
    for change, reason in (
        ({"cpus": 64}, "has 32 CPUs, the job needs 64"),
        ({"memory_mib": 10**6}, "has 64000 MiB of memory, the job needs 1000000"),
        ({"features": (frozenset({"nvme"}),)}, "lacks the job's constraint nvme"),
        ({"excluded_nodes": frozenset({"n1"})}, "excludes n1"),
        ({"required_nodes": frozenset({"n2"})}, "asks for other nodes"),
    ):
        found = planner.plan([view], [job(1, {"3g.20gb": 1}, **change)])
        assert reason in found.refusals[0].reason


def test_room_that_nobody_asked_for_is_filled_from_the_baseline() -> None:
    view = node([gpu(A100, 0, at("7g.40gb", 0))])
    baseline = {"n1": {0: frozenset(ones())}}
    change = only(planner.plan([view], [job(1, {"3g.20gb": 1})], baseline).changes)
    created = sorted(p.profile for p in change.gpus[0].created)
    # Below 3g.20gb@4 there is room for four; above 3g.20gb@0 for three, as 7g has no place 7.
    assert created in (["1g.5gb"] * 4 + ["3g.20gb"], ["1g.5gb"] * 3 + ["3g.20gb"])


def test_the_same_inputs_give_the_same_plan() -> None:
    views = [node([gpu(A100, 0, *ones()), gpu(A100, 1, *ones())], {7: [3]})]
    jobs = [job(1, {"3g.20gb": 1}), job(2, {"2g.10gb": 2})]
    assert planner.plan(views, jobs) == planner.plan(views, jobs)
