"""The planner as a whole: plans on nodes, policy in it, the same plan from a snapshot."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from slurm_mig.commands.snapshot import hypothetical
from slurm_mig.config import PolicySettings, Settings, SlurmSettings, WeightSettings
from slurm_mig.core import snapshot
from slurm_mig.core.changes import Plan
from slurm_mig.core.model import Allocation, JobRequest, NodeView
from slurm_mig.core.planning.plan import plan
from slurm_mig.core.planning.rules import Rules
from slurm_mig.core.planning.weights import Weights
from slurm_mig.core.policy import GroupRules, Policy, review
from slurm_mig.core.recordedrules import recorded, rules_of
from slurm_mig.core.records import ManagedNode
from slurm_mig.siterules import planning_rules
from tests.bench.planning.replay import impossible
from tests.bench.planning.sample import sample
from tests.property.test_programme import random_case
from tests.unit.builders import A100, at, gpu, job, node, ones


def served(made: Plan) -> list[int]:
    return sorted(j for change in made.changes for j in change.serves)


def value(made: Plan) -> int:
    return made.quality.value if made.quality else 0


def test_what_is_worth_more_is_served() -> None:
    """One 7g of low priority, or seven slices for jobs of high priority."""
    view = node([gpu(A100, 0, *ones())])
    jobs = [
        job(1, {"3g.20gb": 1}, priority=1000),
        job(2, {"4g.20gb": 1}, priority=1000),
        job(3, {"7g.40gb": 1}, priority=100),
    ]
    made = plan([view], jobs)
    assert served(made) == [1, 2]
    assert made.quality is not None
    assert made.quality.proven
    assert made.quality.value == made.quality.bound
    assert "worth" in made.refusals[0].reason or "no room" in made.refusals[0].reason


def test_a_heterogeneous_job_whole_or_not_at_all() -> None:
    views = [node([gpu(A100, 0, *ones())], name=name) for name in ("n1", "n2")]
    parts = [job(1, {"4g.20gb": 1}, het_job=1), job(2, {"3g.20gb": 1}, het_job=1)]
    made = plan(views, parts)
    assert served(made) == [1, 2]
    assert len(made.changes) == 2, "components never share a node"
    made = plan(views[:1], parts)
    assert not made.changes
    too_much = [job(3, {"4g.20gb": 1}), job(4, {"4g.20gb": 1}, het_job=4),
                job(5, {"4g.20gb": 1}, het_job=4)]  # fmt: skip
    made = plan(views, too_much[1:] + parts)
    assert served(made) in ([1, 2], [4, 5]), "whole or not at all"


def test_what_runs_out_soon_is_no_demand() -> None:
    view = node([gpu(A100, 0, at("3g.20gb", 0)), gpu(A100, 1, *ones())], {7: [7]})
    held = tuple(
        Allocation(7, "alice", frozenset({i}), end_time=1050)
        for i, device in enumerate(view.slots)
        if device.type == "3g.20gb"
    )
    view = replace(view, slurm=replace(view.slurm, allocations=held))
    wants = [job(1, {"3g.20gb": 1})]
    assert served(plan([view], wants, now=1000.0)) == [1]
    made = plan([view], wants, rules=Rules(soon_s=60), now=1000.0)
    assert not made.changes
    assert "starts by itself within 60 s" in made.refusals[0].reason


def test_caps_and_exclusions() -> None:
    view = node([gpu(A100, 0, *ones()), gpu(A100, 1, *ones())])
    jobs = [job(n, {"3g.20gb": 1}, user="eve", account="physics") for n in (1, 2, 3)]
    assert served(plan([view], jobs)) == [1, 2, 3]
    for rules, count, reason in (
        (Rules(per_user=2), 2, "2 job(s) of user eve may cause changes at once"),
        (Rules(per_account=1), 1, "1 job(s) of account physics may cause changes at once"),
        (Rules(exclude_users=frozenset({"eve"})), 0, "jobs of user eve cause no reshape"),
        (Rules(exclude_partitions=frozenset({"main"})), 0, "of partition main cause no reshape"),
        (Rules(frozen={"n1": "the site says so"}), 0, "n1: the site says so"),
    ):
        made = plan([view], jobs, rules=rules)
        assert len(served(made)) == count
        assert reason in made.refusals[0].reason


def test_a_gpu_that_cools_down_is_passed_over() -> None:
    view = node([gpu(A100, 0, *ones()), gpu(A100, 1, *ones())])
    made = plan([view], [job(1, {"7g.40gb": 1})], rules=Rules(frozen_gpus={("n1", 0): "cools"}))
    assert [part.gpu for part in made.changes[0].gpus] == [1]
    both = Rules(frozen_gpus={("n1", 0): "cools", ("n1", 1): "cools"})
    assert "GPU 0 cools" in plan([view], [job(1, {"7g.40gb": 1})], rules=both).refusals[0].reason


def test_an_idle_gpu_gets_its_baseline_back_when_its_time_has_come() -> None:
    view = node([gpu(A100, 0, at("7g.40gb", 0))])
    baseline = {"n1": {0: frozenset(ones())}}
    record = ManagedNode("n1", {}, view.slots, (), reshaped={0: 100.0})
    policy = Policy(baseline_after_s=600)
    assert not plan([view], [], baseline, policy.rules({"n1": record}, 600.0)).changes
    made = plan([view], [], baseline, policy.rules({"n1": record}, 701.0))
    assert made.changes[0].gpus[0].created == tuple(ones())
    wanted = [job(1, {"7g.40gb": 1})]
    assert not plan([view], wanted, baseline, policy.rules({"n1": record}, 701.0)).changes


@pytest.mark.parametrize("turn_s", [20, 90, 400])
def test_two_jobs_of_different_shapes_that_alternate_do_not_reshape_at_every_turn(
    turn_s: int,
) -> None:
    """A day of a 7g job and a 1g job in turn on one GPU, each gone after its turn."""
    policy = Policy(cooldown_s=1800)
    view, changes = node([gpu(A100, 0, *ones())]), 0
    reshaped: dict[int, float] = {}
    span = 24 * 3600
    for turn in range(span // turn_s):
        now = float(turn * turn_s)
        wants = [job(turn, {("7g.40gb", "1g.5gb")[turn % 2]: 1}, submit_time=int(now))]
        managed = {"n1": ManagedNode("n1", {}, view.slots, (), reshaped=dict(reshaped))}
        made = plan([view], wants, {}, policy.rules(managed, now), now)
        made = review(made, wants, managed, policy, now)
        for change in made.changes:
            for part in change.gpus:
                changes += 1
                reshaped[part.gpu] = now
                view = node([gpu(A100, 0, *part.target)])
    assert 2 <= changes <= span / policy.cooldown_s + 1


def test_another_gpu_is_never_worse_for_the_plan_on_nodes() -> None:
    for seed in range(60):
        views, baselines, requests = random_case(seed)
        more = replace(node([gpu(A100)], name="more"))
        more = replace(more, slurm=replace(more.slurm, partitions=frozenset({"left", "all"})))
        before = value(plan(views, requests, baselines))
        assert value(plan([*views, more], requests, baselines)) >= before, seed


def test_renaming_nodes_changes_nothing_but_names() -> None:
    for seed in range(40):
        views, baselines, requests = random_case(seed)
        names = {view.name: f"other-{len(views) - n}" for n, view in enumerate(views)}
        renamed = [
            replace(view, slurm=replace(view.slurm, name=names[view.name])) for view in views
        ]
        one = plan(views, requests, baselines)
        other = plan(renamed, requests, {names[n]: b for n, b in baselines.items()})
        assert [replace(c, node=names[c.node]) for c in one.changes] == list(other.changes), seed


def test_every_change_of_a_plan_is_possible_and_every_claim_holds() -> None:
    """On a cluster of 200 GPUs: replayed on the simulated NVML; CPUs, memory, devices counted."""
    given = sample(200, 300, seed=3)
    made = plan(given.views, given.requests)
    assert not impossible(given.views, made.changes)
    assert len(served(made)) > 20
    assert made.quality is not None
    assert made.quality.proven
    assert made.quality.gap <= 0.03
    requests = {r.job_id: r for r in given.requests}
    views = {v.name: v for v in given.views}
    for change in made.changes:
        check_claims(views[change.node], [requests[j] for j in change.serves], change.slots)


def check_claims(view: NodeView, jobs: list[JobRequest], slots: tuple[object, ...]) -> None:
    """All the jobs that a change serves on a node fit on it together, beside what runs."""
    slurm = view.slurm
    assert sum(j.cpus for j in jobs) <= slurm.cpus - slurm.cpus_alloc
    assert sum(j.memory_mib for j in jobs) <= slurm.memory_mib - slurm.memory_alloc_mib
    busy = {view.slots[i].key for i in view.busy}
    free: dict[str, int] = {}
    for device in slots:
        if device.key not in busy:  # type: ignore[attr-defined]
            name = device.type  # type: ignore[attr-defined]
            free[name] = free.get(name, 0) + 1
    for wanted in jobs:
        for gres_type, count in wanted.gpus.items():
            free[gres_type] = free.get(gres_type, 0) - count
    assert all(count >= 0 for count in free.values())
    for index in view.busy:
        assert slots[index].key == view.slots[index].key  # type: ignore[attr-defined]


def test_the_same_plan_from_a_snapshot_with_and_without_names() -> None:
    given = sample(16, 40, seed=5)
    nodes, jobs = snapshot.Nodes(1000.0, given.views), snapshot.Jobs(given.requests)
    made = plan(nodes.nodes, jobs.jobs)
    text = json.dumps([snapshot.plain(nodes), snapshot.plain(jobs)])
    there = json.loads(text)
    again = plan(
        snapshot.nodes_of(there[0], "nodes").nodes, snapshot.jobs_of(there[1], "jobs").jobs
    )
    assert again == made
    hidden_nodes, hidden_jobs = snapshot.anonymous(nodes, jobs)
    hidden = plan(hidden_nodes.nodes, hidden_jobs.jobs)
    assert served(hidden) == served(made)
    assert hidden.quality == made.quality
    shown = json.dumps([snapshot.plain(hidden_nodes), snapshot.plain(hidden_jobs)])
    assert not [word for word in ('"n0"', "someone", "nvme", '"main"', "MIG-") if word in shown]


def test_a_plan_from_files_by_another_configuration_needs_no_slurm(tmp_path: Path) -> None:
    """pyslurm, which ends a process where there is no slurm.conf, is not imported for it."""
    view = node([gpu(A100, 0, *ones())])
    wants = [replace(job(n, {"3g.20gb": 1}), user="eve") for n in (1, 2)]
    nodes, jobs, conf = (tmp_path / name for name in ("nodes", "jobs", "conf"))
    nodes.write_text(json.dumps(snapshot.plain(snapshot.Nodes(1000.0, (view,)))))
    jobs.write_text(json.dumps(snapshot.plain(snapshot.Jobs(tuple(wants)))))
    conf.write_text("policy: {max_jobs_per_user: 1}\n")
    assert served(hypothetical(None, nodes, jobs)[0]) == [1, 2]
    assert served(hypothetical(conf, nodes, jobs)[0]) == [1]


def test_a_snapshot_has_the_sites_rules_too() -> None:
    """Every rule, there and back; without names the same jobs are served and refused."""
    views = [node([gpu(A100, 0, *ones())], name=name) for name in ("n1", "n2", "n3")]
    wants = [job(n, {"3g.20gb": 1}, user="eve", account="physics") for n in range(1, 9)]
    front = GroupRules(
        "front",
        least={"1g.5gb": 3},
        most={"3g.20gb": 1},
        withhold_s=9,
        soon_s=3,
        per_user=4,
        exclude_users=frozenset({"x"}),
    )
    policy = Policy(
        cooldown_s=50,
        baseline_after_s=5,
        of_group={"n1": front, "n2": front},
        paused={"n3": "paused by root"},
        free_for="baseline",
        planning=Rules(per_user=5, soon_s=7, exclude_partitions=frozenset({"debug"})),
    )
    managed = {
        v.name: replace(ManagedNode(v.name, {}, v.slots, ()), reshaped={0: at})
        for v, at in zip(views, (995.0, 900.0, 900.0), strict=True)
    }
    rules = policy.rules(managed, 1000.0)
    nodes = snapshot.Nodes(1000.0, tuple(views), {}, recorded(rules))
    jobs = snapshot.Jobs(tuple(wants))
    again = snapshot.nodes_of(json.loads(json.dumps(snapshot.plain(nodes))), "nodes")
    assert again == nodes
    assert again.rules
    assert rules_of(again.rules) == rules
    made = plan(views, wants, {}, rules)
    assert made.changes
    assert made == plan(views, wants, {}, rules_of(again.rules))
    hidden, hidden_jobs = snapshot.anonymous(nodes, jobs)
    assert hidden.rules
    other = plan(hidden.nodes, hidden_jobs.jobs, {}, rules_of(hidden.rules))
    assert served(other) == served(made)
    assert {r.job_id for r in other.refusals} == {r.job_id for r in made.refusals}
    shown = json.dumps(snapshot.plain(hidden))
    assert not [word for word in ("front", "root", "debug", '"n1"', '"x"') if word in shown]


@pytest.mark.parametrize("order", [1, -1])
def test_of_two_nodes_alike_the_one_that_registers_once(order: int) -> None:
    """On both a 3g job runs beside idle 1g instances; on one of them they are its only ones."""
    busy = gpu(A100, 1, at("3g.20gb", 0))
    last = node([gpu(A100, 0, *ones()), busy], {9: [7]}, name="last")
    others = node([gpu(A100, 0, *ones()), busy, gpu(A100, 2, *ones())], {9: [14]}, name="others")
    assert [v.slots[min(v.busy)].type for v in (last, others)] == ["3g.20gb", "3g.20gb"]
    made = plan([last, others][::order], [job(1, {"7g.40gb": 1})])
    assert [change.node for change in made.changes] == ["others"]


def running(view: NodeView, gres_type: str) -> NodeView:
    """A job has the first instance of the type."""
    index = next(i for i, device in enumerate(view.slots) if device.type == gres_type)
    held = (Allocation(9, "alice", frozenset({index})),)
    return replace(view, slurm=replace(view.slurm, allocations=held))


@pytest.mark.parametrize(("twice", "chosen"), [(0, "last"), (3, "last"), (10, "dear")])
def test_the_weight_of_a_second_registration_decides_which_node_changes(
    twice: int, chosen: str
) -> None:
    """A 7g in place of the only two idle instances beside a running job, which go for good, or in
    place of four that are not the only ones: 8 points more, less those for the second time."""
    busy = gpu(A100, 1, at("3g.20gb", 0))
    two = [at("4g.20gb", 0), at("2g.10gb", 4)]
    last = running(node([gpu(A100, 0, *two), busy], name="last"), "3g.20gb")
    four = [at("1g.5gb", 0), at("1g.5gb", 1), at("1g.5gb", 2), at("1g.5gb", 3)]
    dear = node([gpu(A100, 0, *four), busy, gpu(A100, 2, *ones())], name="dear")
    dear = running(dear, "3g.20gb")
    rules = Rules(weights=Weights(twice=twice))
    made = plan([last, dear], [job(1, {"7g.40gb": 1})], rules=rules)
    assert [change.node for change in made.changes] == [chosen]
    assert made.quality is not None
    said = [points for words, points in made.quality.terms if "twice" in words]
    assert said == ([twice] if twice and chosen == "last" else [])
    assert made.quality.value == made.quality.bound


def test_a_node_registers_once_where_no_job_runs_and_none_does_where_slurm_reconfigures() -> None:
    view = node([gpu(A100, 0, *ones())])
    made = plan([view], [job(1, {"7g.40gb": 1})])
    assert made.quality is not None
    assert not [words for words, _ in made.quality.terms if "twice" in words]
    for publish, twice in (("node", 10), ("reconfigure", 0)):
        settings = Settings(slurm=SlurmSettings(publish=publish))
        assert planning_rules(settings).weights.twice == twice


def test_what_the_configuration_says_of_weights_and_withholding_is_what_the_planner_goes_by() -> (
    None
):
    settings = Settings(
        weights=WeightSettings(twice=7, withhold=3), policy=PolicySettings(withhold_s=99)
    )
    rules = planning_rules(settings)
    assert (rules.weights.twice, rules.weights.withhold, rules.withhold_s) == (7, 3, 99)


def test_weights_are_the_sites() -> None:
    """A change that costs more than the job is worth is not made."""
    view = node([gpu(A100, 0, *ones())])
    dear: Mapping[str, int] = {"publish": 10_000}
    made = plan([view], [job(1, {"3g.20gb": 1})], rules=Rules(weights=Weights(**dear)))
    assert not made.changes
    assert "costs more than it is worth" in made.refusals[0].reason


def test_the_same_question_gets_the_same_answer() -> None:
    given = sample(80, 150, seed=random.Random(1).randrange(100))
    assert plan(given.views, given.requests) == plan(given.views, given.requests)


def test_a_job_more_never_makes_the_plan_worth_less() -> None:
    """One that starts as it is apart: Slurm gives it what is idle, whatever the plan would do."""
    compared = 0
    for seed in range(90):
        views, baselines, requests = random_case(seed)
        before = value(plan(views, requests, baselines))
        more = [*requests, job(99, {"2g.10gb": 1}, partition="all", priority=0)]
        made = plan(views, more, baselines)
        if 99 not in made.startable:
            compared += 1
            assert value(made) >= before, seed
    assert compared > 45


def test_the_costs_are_told_by_what_is_paid_for() -> None:
    for seed in range(60):
        made = plan(*random_case(seed)[::2], random_case(seed)[1])
        assert made.quality is not None
        assert sum(points for _, points in made.quality.terms) == made.quality.cost, seed


def test_what_the_planner_believes_of_slots_is_what_can_be_arranged() -> None:
    """It counts devices by type; the slots are then arranged device by device."""
    for seed in range(300):
        views, baselines, requests = random_case(seed)
        made = plan(views, requests, baselines)
        jobs = {r.job_id for r in requests} - {r.job_id for r in made.refusals}
        given = {j for change in made.changes for j in change.serves}
        assert jobs == given | set(made.startable), seed
        for change in made.changes:
            view = next(v for v in views if v.name == change.node)
            for index in view.busy:
                assert change.slots[index].key == view.slots[index].key, seed
