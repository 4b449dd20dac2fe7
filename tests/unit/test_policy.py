"""Policy: what of a plan may be done now, for all nodes or for those of one group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from slurm_mig.core import windows
from slurm_mig.core.changes import Plan
from slurm_mig.core.model import JobRequest, NodeView, Patience
from slurm_mig.core.planning.limits import Limits
from slurm_mig.core.planning.plan import plan
from slurm_mig.core.planning.rules import Rules
from slurm_mig.core.policy import GroupRules, Policy, baseline_of, review
from slurm_mig.core.records import ManagedNode
from tests.unit.builders import A30, A100, at, gpu, job, node, ones

HOUR = 3600


def served(made: Plan) -> list[int]:
    return sorted(j for change in made.changes for j in change.serves)


def reason(made: Plan, number: int) -> str:
    return next(r.reason for r in made.refusals if r.job_id == number)


def record(view: NodeView, **kept: object) -> ManagedNode:
    return replace(ManagedNode(view.name, {}, view.slots, ()), **kept)  # type: ignore[arg-type]


def pair() -> list[NodeView]:
    return [node([gpu(A100, 0, *ones())], name=name) for name in ("n1", "n2")]


def count(made: Plan, views: list[NodeView], profile: str) -> int:
    """Instances of a profile when the plan has been carried out."""
    changed = {(c.node, p.gpu): p.target for c in made.changes for p in c.gpus}
    return sum(
        p.profile == profile
        for view in views
        for g in view.gpus
        for p in changed.get((view.name, g.index), g.layout)
    )


@pytest.mark.parametrize(("least", "jobs"), [(14, 0), (10, 1), (6, 2), (0, 2)])
def test_a_group_keeps_its_minimum(least: int, jobs: int) -> None:
    """Each 3g job costs four of the fourteen 1g instances."""
    views = pair()
    limits = dict.fromkeys(("n1", "n2"), Limits("front", {"1g.5gb": least}))
    wants = [job(n, {"3g.20gb": 1}) for n in (1, 2)]
    made = plan(views, wants, rules=Rules(limits=limits))
    assert len(served(made)) == jobs
    assert count(made, views, "1g.5gb") >= least
    for refusal in made.refusals:
        assert f"group front keeps at least {least} 1g.5gb, and has 14" in refusal.reason


@pytest.mark.parametrize("most", [0, 1, 2])
def test_a_group_has_no_more_than_its_maximum(most: int) -> None:
    views = pair()
    limits = dict.fromkeys(("n1", "n2"), Limits("front", most={"3g.20gb": most}))
    wants = [job(n, {"3g.20gb": 1}) for n in (1, 2, 3)]
    baselines = {v.name: {0: frozenset({at("3g.20gb", 0), at("3g.20gb", 4)})} for v in views}
    made = plan(views, wants, baselines, Rules(limits=limits))
    assert len(served(made)) == most
    assert count(made, views, "3g.20gb") == most, "room is not filled with it either"
    assert f"group front has at most {most} 3g.20gb, and has 0" in reason(made, 3)


def test_limits_are_the_groups_own() -> None:
    views = pair()
    limits = {"n1": Limits("front", most={"7g.40gb": 0})}
    made = plan(views, [job(1, {"7g.40gb": 1})], rules=Rules(limits=limits))
    assert [change.node for change in made.changes] == ["n2"]


def test_limits_hold_for_jobs_that_need_several_instances_at_once() -> None:
    """They are placed by another way than the programme: by changes of single nodes."""
    views = pair()
    limits = dict.fromkeys(("n1", "n2"), Limits("front", {"1g.5gb": 8}))
    wants = [job(1, {"2g.10gb": 2}, nodes=2)]
    assert not plan(views, wants, rules=Rules(limits=limits)).changes
    fewer = dict.fromkeys(("n1", "n2"), Limits("front", {"1g.5gb": 6}))
    made = plan(views, wants, rules=Rules(limits=fewer))
    assert served(made) == [1, 1]
    assert count(made, views, "1g.5gb") >= 6


def test_limits_hold_when_an_idle_gpu_would_get_its_baseline() -> None:
    view = node([gpu(A100, 0, at("7g.40gb", 0))])
    baseline = {"n1": {0: frozenset(ones())}}
    rules = Rules(to_baseline=frozenset({("n1", 0)}))
    assert plan([view], [], baseline, rules).changes
    for limits in (Limits("front", {"7g.40gb": 1}), Limits("front", most={"1g.5gb": 3})):
        assert not plan([view], [], baseline, replace(rules, limits={"n1": limits})).changes


def test_limits_hold_for_a_job_for_which_instances_were_withheld() -> None:
    waits = job(1, {"3g.20gb": 1})
    busy = node([gpu(A100, 0, *ones())], {9: [0, 4]})
    made = plan([busy], [waits])
    view = replace(busy, withheld=made.changes[0].withheld, slots=made.changes[0].slots)
    view = replace(view, slurm=replace(view.slurm, allocations=()))
    assert served(plan([view], [waits])) == [1]
    limits = {"n1": Limits("front", {"1g.5gb": 7})}
    kept = plan([view], [waits], rules=Rules(limits=limits))
    assert not served(kept)
    assert "keeps at least 7 1g.5gb" in reason(kept, 1)


def test_room_that_is_left_is_for_those_who_still_wait() -> None:
    """One job of user eve may cause a change; what is left beside it has her next job's shape."""
    view = node([gpu(A100, 0, at("7g.40gb", 0))])
    baseline = {"n1": {0: frozenset(ones())}}
    wants = [job(n, {"2g.10gb": 1}, user="eve") for n in (1, 2)]
    rules = Rules(per_user=1)
    made = plan([view], wants, baseline, rules)
    assert served(made) == [1]
    assert count(made, [view], "2g.10gb") == 2
    assert count(made, [view], "1g.5gb") == 3, "the baseline has the rest"
    alone = plan([view], wants, baseline, replace(rules, only_baseline=frozenset({"n1"})))
    assert count(alone, [view], "2g.10gb") == 1
    later = plan([view], wants[:1], baseline, rules, later=[job(3, {"3g.20gb": 1}, user="bob")])
    assert count(later, [view], "3g.20gb") == 1, "it waits for something else, and comes next"


def test_no_gpu_changes_only_for_those_who_may_come() -> None:
    view = node([gpu(A100, 0, *ones())])
    assert not plan([view], [], later=[job(1, {"3g.20gb": 1})]).changes


MONDAY, SATURDAY = 0, 5 * 24 * HOUR


@pytest.mark.parametrize(
    ("text", "week_s", "is_open"),
    [
        ("Mon-Fri 18:00-07:00", MONDAY + 17 * HOUR, False),
        ("Mon-Fri 18:00-07:00", MONDAY + 18 * HOUR, True),
        ("Mon-Fri 18:00-07:00", SATURDAY + 6 * HOUR, True),
        ("Mon-Fri 18:00-07:00", SATURDAY + 7 * HOUR - 30, False),
        ("Sun 22:00-06:00", MONDAY + 5 * HOUR, True),
        ("Sat,Sun", SATURDAY + 40 * HOUR, True),
        ("Sat,Sun", MONDAY + HOUR, False),
        ("Fri-Mon", MONDAY + HOUR, True),
        ("22:00-24:00", SATURDAY + 23 * HOUR, True),
        ("22:00-24:00", SATURDAY + HOUR, False),
    ],
)
def test_windows(text: str, week_s: float, *, is_open: bool) -> None:
    why = windows.closed([windows.parse(text)], week_s, 60.0)
    assert (why == "") is is_open, why


def test_a_closed_window_says_when_it_opens() -> None:
    hours = [windows.parse("18:00-20:00"), windows.parse("Sat")]
    assert windows.closed(hours, MONDAY + 17 * HOUR + 1800, 60) == (
        "reshapes only 18:00-20:00, Sat: again in 31 min"
    )
    assert windows.closed((), 0.0, 60.0) == ""


@pytest.mark.parametrize("text", ["", "Mon-", "Foo", "18-20", "25:00-26:00", "18:70-19:00"])
def test_what_is_no_window(text: str) -> None:
    with pytest.raises(ValueError, match="should be"):
        windows.parse(text)


def test_outside_its_windows_a_group_stays_as_it_is() -> None:
    views, wants = pair(), [job(n, {"7g.40gb": 1}) for n in (1, 2)]
    group = GroupRules("front", windows=(windows.parse("Sat,Sun"),))
    policy = Policy(of_group={"n1": group})
    managed = {v.name: record(v) for v in views}
    made = plan(views, wants, rules=policy.rules(managed, 0.0, MONDAY))
    assert [change.node for change in made.changes] == ["n2"]
    assert "n1: reshapes only Sat,Sun: again in 120 h" in made.refusals[0].reason
    weekend = plan(views, wants, rules=policy.rules(managed, 0.0, SATURDAY))
    assert served(weekend) == [1, 2]


def test_the_groups_own_numbers_count() -> None:
    group = GroupRules(
        "front", min_wait_s=100, cooldown_s=50, baseline_after_s=9, withhold_s=0, fence_wait_s=5
    )
    policy = Policy(min_wait_s=1, cooldown_s=2, withhold_s=60, of_group={"n1": group})
    assert (policy.min_wait("n1"), policy.min_wait("n2")) == (100, 1)
    assert (policy.cooldown("n1"), policy.cooldown("n2")) == (50, 2)
    assert (policy.baseline_after("n1"), policy.baseline_after("n2")) == (9, 0)
    assert policy.rules({}, 0.0).patience == {"n1": (0, 5)}


def review_of(policy: Policy, since: Mapping[int, float] | None = None, **over: int) -> Plan:
    views = pair()
    wants = [job(n, {"7g.40gb": 1}, **over) for n in (1, 2)]
    return review(plan(views, wants), wants, {}, policy, 1000.0, since)


def test_a_demand_must_have_waited_and_persist() -> None:
    policy = Policy(min_wait_s=60, max_nodes_in_transition=9)
    assert len(review_of(policy).changes) == 2, "submitted long ago"
    assert len(review_of(policy, {}).changes) == 0, "seen for the first time"
    assert len(review_of(policy, {1: 900.0, 2: 990.0}).changes) == 1
    own = Policy(max_nodes_in_transition=9, of_group={"n1": GroupRules("a", min_wait_s=9999)})
    made = review_of(own, submit_time=0)
    assert [change.node for change in made.changes] == ["n2"]
    assert "waits less than min_wait_s (9999 s)" in made.refusals[0].reason


def test_budgets_of_nodes_and_gpus() -> None:
    group = GroupRules("front", max_nodes=1)
    for policy, said in (
        (Policy(), "1 node(s) in transition at once: next cycle"),
        (Policy(max_nodes_in_transition=9, max_gpus=1), "1 GPU(s) in transition at once"),
        (
            Policy(max_nodes_in_transition=9, of_group=dict.fromkeys(("n1", "n2"), group)),
            "group front: 1 node(s) in transition at once",
        ),
        (
            Policy(
                max_nodes_in_transition=9,
                of_group=dict.fromkeys(("n1", "n2"), GroupRules("front", max_gpus=1)),
            ),
            "group front: 1 GPU(s) in transition at once",
        ),
    ):
        made = review_of(policy)
        assert len(made.changes) == 1
        assert said in made.refusals[0].reason


def test_users_and_partitions_that_may_not_reshape_a_group() -> None:
    views = pair()
    managed = {v.name: record(v) for v in views}
    for group in (
        GroupRules("front", exclude_users=frozenset({"eve"})),
        GroupRules("front", exclude_partitions=frozenset({"main"})),
    ):
        policy = Policy(of_group={"n1": group})
        rules = policy.rules(managed, 0.0)
        wants = [job(n, {"7g.40gb": 1}, user="eve") for n in (1, 2)]
        made = plan(views, wants, rules=rules)
        assert [change.node for change in made.changes] == ["n2"]
        assert "n1: policy: jobs of" in made.refusals[0].reason
    ready = node([gpu(A100, 0, at("7g.40gb", 0))])
    made = plan([ready], [job(1, {"7g.40gb": 1}, user="eve")], rules=rules)
    assert made.startable == (1,), "what is there it may have"


def test_a_groups_cap_is_for_its_nodes() -> None:
    """The first job counts for the group, wherever it goes; the second one may go elsewhere."""
    views = pair()
    wants = [job(n, {"7g.40gb": 1}, user="eve", account="physics") for n in (1, 2)]
    for group, said in (
        (GroupRules("front", per_user=1), "group front: 1 job(s) of user eve may cause changes"),
        (GroupRules("front", per_account=1), "group front: 1 job(s) of account physics may"),
    ):
        rules = Policy(of_group={"n1": group}).rules({}, 0.0)
        made = plan(views, wants, rules=rules)
        assert served(made) == [1, 2], "the second job's node is the other one"
        assert {c.node: c.serves for c in made.changes} == {"n1": (1,), "n2": (2,)}
        both = Policy(of_group=dict.fromkeys(("n1", "n2"), group)).rules({}, 0.0)
        made = plan(views, wants, rules=both)
        assert len(served(made)) == 1
        assert reason(made, 2) == made.refusals[0].reason
        assert said in reason(made, 2)
        assert reason(made, 2).count(said) == 1
        others = [wants[0], replace(wants[1], user="bob", account="maths")]
        assert served(plan(views, others, rules=both)) == [1, 2]


def test_a_groups_cap_does_not_count_those_who_may_not_change_it() -> None:
    views = pair()
    first = job(1, {"7g.40gb": 1}, user="eve", partition="left")
    views = [
        replace(v, slurm=replace(v.slurm, partitions=frozenset({"main", "left"}))) for v in views
    ]
    group = GroupRules("front", per_user=1, exclude_partitions=frozenset({"left"}))
    rules = Policy(of_group={"n1": group}).rules({}, 0.0)
    made = plan(views, [first, job(2, {"7g.40gb": 1}, user="eve")], rules=rules)
    assert {c.node: c.serves for c in made.changes} == {"n1": (2,), "n2": (1,)}


def test_nothing_is_withheld_beyond_a_groups_cap() -> None:
    views = [node([gpu(A100, 0, *ones())], {9: [0]}, name="n1"),
             node([gpu(A100, 0, *ones())], {9: [0]}, name="n2")]  # fmt: skip
    wants = [job(n, {"7g.40gb": 1}, user="eve") for n in (1, 2)]
    assert len(plan(views, wants).changes) == 2
    group = GroupRules("front", per_user=1)
    rules = Policy(of_group=dict.fromkeys(("n1", "n2"), group), withhold_s=60).rules({}, 0.0)
    made = plan(views, wants, rules=rules)
    assert [w.jobs for c in made.changes for w in c.withheld] == [(1,)]
    assert "group front: 1 job(s) of user eve" in reason(made, 2)


@pytest.mark.parametrize(
    ("own", "general", "demand"),
    [(None, 0, True), (60, 0, False), (None, 60, False), (0, 60, True), (30, 60, True)],
)
def test_how_soon_a_job_starts_by_itself_is_the_nodes_groups(
    own: float | None, general: float, *, demand: bool
) -> None:
    """A 3g job that may run on both nodes; on n1 another one ends in 50 s."""
    busy = node([gpu(A100, 0, at("3g.20gb", 0))], {9: [0]}, name="n1")
    (held,) = busy.slurm.allocations
    ends = replace(busy.slurm, allocations=(replace(held, end_time=1050),))
    views = [replace(busy, slurm=ends), node([gpu(A100, 0, *ones())], name="n2")]
    policy = Policy(of_group={"n1": GroupRules("front", soon_s=own)},
                    planning=Rules(soon_s=general))  # fmt: skip
    made = plan(views, [job(1, {"3g.20gb": 1})], rules=policy.rules({}, 1000.0), now=1000.0)
    assert bool(made.changes) is demand
    if not demand:
        assert "starts by itself within 60 s, when running jobs on n1" in reason(made, 1)


def test_a_group_is_as_patient_as_it_says() -> None:
    views = [node([gpu(A100, 0, *ones())], {9: [0, 4]}, name="n1")]
    wants = [replace(job(1, {"7g.40gb": 1}), unserved_s=100.0)]
    assert plan(views, wants).changes[0].withheld
    never = Rules(patience={"n1": (0, 0)})
    assert not plan(views, wants, rules=never).changes
    fence = Rules(patience={"n1": (50, 500)})
    assert plan(views, wants, rules=fence).changes[0].behind_fence
    waited_for = [replace(wants[0], unserved_s=-1.0, patience=Patience.NONE)]
    assert not plan(views, waited_for, rules=fence).changes


def test_a_groups_baseline_is_for_its_gpus_and_what_cannot_have_it_is_named() -> None:
    views = [node([gpu(A100, 0, at("7g.40gb", 0)), gpu(A30, 1, at("4g.24gb", 0))])]
    group = GroupRules("front", baseline={"3g.20gb": 1, "1g.5gb": 4}, baseline_after_s=60)
    policy = Policy(of_group={"n1": group})
    enrolled = {0: (at("7g.40gb", 0),), 1: (at("4g.24gb", 0),)}
    managed = {"n1": record(views[0], baseline=enrolled)}
    found = policy.baselines(managed, views)
    assert found.layouts["n1"][0] == baseline_of(gpu(A100), group.baseline or {})
    assert found.layouts["n1"][1] == {at("4g.24gb", 0)}
    assert found.notes == [
        "n1 GPU 1 (NVIDIA A30) cannot have the baseline of group front: its layout at enrolment "
        "counts"
    ]
    made = plan(views, [], found.layouts, policy.rules(managed, 1000.0))
    assert [part.gpu for change in made.changes for part in change.gpus] == [0]
    assert made.changes[0].gpus[0].target == found.layouts["n1"][0]


@pytest.mark.parametrize(("shapes", "turn_s"), [(3, 50), (4, 700), (5, 3000)])
def test_demand_that_changes_its_shape_again_and_again_does_not_oscillate(
    shapes: int, turn_s: int
) -> None:
    """A week of jobs of several shapes in turn, with return to the baseline and the waiting mix:
    a GPU changes at most once per cool-down."""
    kinds = ("7g.40gb", "1g.5gb", "3g.20gb", "2g.10gb", "4g.20gb")[:shapes]
    policy = Policy(cooldown_s=1800, baseline_after_s=3600, max_nodes_in_transition=2)
    views = {v.name: v for v in pair()}
    baselines = {name: {0: frozenset(ones())} for name in views}
    reshaped: dict[str, dict[int, float]] = {name: {} for name in views}
    span, changes = 7 * 24 * HOUR, 0
    for turn in range(span // max(turn_s, 600)):
        now = 10_000.0 + turn * max(turn_s, 600)
        wants: list[JobRequest] = [job(turn, {kinds[turn % shapes]: 1}, submit_time=int(now - 100))]
        managed = {n: record(v, reshaped=dict(reshaped[n])) for n, v in views.items()}
        rules = policy.rules(managed, now)
        made = plan(list(views.values()), wants, baselines, rules, now)
        made = review(made, wants, managed, policy, now)
        for change in made.changes:
            for part in change.gpus:
                assert now - reshaped[change.node].get(part.gpu, 0.0) >= 1800
                reshaped[change.node][part.gpu] = now
                views[change.node] = node([gpu(A100, 0, *part.target)], name=change.node)
                changes += 1
    assert 2 <= changes <= 2 * (span / 1800 + 1)


def apart() -> list[NodeView]:
    """n1 is in partition main, n2 in left."""
    first, second = pair()
    return [first, replace(second, slurm=replace(second.slurm, partitions=frozenset({"left"})))]


@pytest.mark.parametrize("by_group", [True, False])
def test_a_job_of_two_partitions_causes_changes_through_the_one_that_is_not_excluded(
    *, by_group: bool
) -> None:
    """`-p left,main`, and jobs of left cause no reshape: on n1 it counts as a job of main. It may
    start on n2 as it is."""
    views = apart()
    group = GroupRules("front", exclude_partitions=frozenset({"left"}))
    policy = Policy(of_group=dict.fromkeys(("n1", "n2"), group))
    rules = policy.rules({}, 0.0) if by_group else Rules(exclude_partitions=frozenset({"left"}))
    wants = [job(n, {"7g.40gb": 1}, partition="left,main") for n in (1, 2)]
    made = plan(views, wants, rules=rules)
    assert {c.node: c.serves for c in made.changes} == {"n1": (1,)}
    assert "n2: policy: jobs of partition left cause no reshape" in reason(made, 2)
    both = replace(views[1].slurm, partitions=frozenset({"left", "main"}))
    assert served(plan([views[0], replace(views[1], slurm=both)], wants, rules=rules)) == [1, 2]
    alone = [replace(r, partition="left") for r in wants]
    assert not plan(views, alone, rules=rules).changes
    neither = replace(rules, exclude_partitions=frozenset({"left", "main"}))
    assert "policy: jobs of partition left,main cause no" in reason(
        plan(views, wants, rules=neither), 1
    )


def test_a_groups_cap_does_not_count_a_job_of_two_partitions_that_may_not_change_it() -> None:
    """n2 is in left alone, which the group excludes: the job of main and left goes to n1."""
    group = GroupRules("front", per_user=1, exclude_partitions=frozenset({"left"}))
    rules = Policy(of_group={"n2": group}).rules({}, 0.0)
    views = apart()
    views[1] = replace(views[1], slurm=replace(views[1].slurm, partitions=frozenset({"left", "r"})))
    first = job(1, {"7g.40gb": 1}, user="eve", partition="main,left")
    made = plan(views, [first, job(2, {"7g.40gb": 1}, user="eve", partition="r")], rules=rules)
    assert {c.node: c.serves for c in made.changes} == {"n1": (1,), "n2": (2,)}
