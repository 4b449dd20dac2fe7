"""What the planner does when running jobs are in the way, and when whole GPUs are asked for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from slurm_mig.core import planner, slots
from slurm_mig.core.changes import NodeChange, Plan
from slurm_mig.core.model import (
    Allocation,
    NodeCondition,
    NodeView,
    Patience,
    Placement,
    Withholding,
    is_filler,
)
from slurm_mig.core.planning.plan import plan
from slurm_mig.core.planning.rules import Rules
from slurm_mig.core.planning.weights import Weights
from slurm_mig.core.policy import Policy
from tests.unit.builders import A100, at, gpu, job, node, ones


def only(changes: tuple[NodeChange, ...]) -> NodeChange:
    assert len(changes) == 1
    return changes[0]


def after(view: NodeView, change: NodeChange) -> NodeView:
    """The node as it is once a change without reshapes is published."""
    assert not change.gpus
    by_key = {d.key: d for g in view.gpus for d in slots.devices_of(g, "")}
    arranged = tuple(d if is_filler(d.type) else by_key[d.key] for d in change.slots)
    published = slots.with_files(arranged, view.gpus, "/caps")
    return replace(view, slots=published, withheld=change.withheld)


def ended(view: NodeView, *jobs: int) -> NodeView:
    kept = tuple(a for a in view.slurm.allocations if a.job_id not in jobs)
    return replace(view, slurm=replace(view.slurm, allocations=kept))


def held(made: Plan) -> dict[str, int]:
    """How many instances each change leaves withheld, by node."""
    return {c.node: sum(len(w.placements) for w in c.withheld) for c in made.changes}


def offered(view: NodeView) -> list[str]:
    return [str(d.placement) for d in view.slots if d.placement is not None]


def test_idle_instances_in_the_way_are_withheld_then_cut() -> None:
    view = node([gpu(A100, 0, *ones())], {7: [6]})
    wants = job(1, {"7g.40gb": 1})
    found = planner.plan([view], [wants])
    change = only(found.changes)
    assert not change.gpus
    assert change.withheld == (Withholding(0, frozenset(ones(6)), (1,), 0.0),)
    assert change.serves == ()
    assert (
        "in use by job 7; GPU 0 of n1 is kept for it until job 7 ends" in found.refusals[0].reason
    )

    withheld = after(view, change)
    assert offered(withheld) == ["1g.5gb@6"]
    again = planner.plan([withheld], [wants])
    assert not again.changes, "nothing new happens while the job runs"

    free = ended(withheld, 7)
    cut = only(planner.plan([free], [wants]).changes)
    assert cut.gpus[0].created == (at("7g.40gb", 0),)
    assert cut.withheld == ()
    assert cut.serves == (1,)


def test_what_is_withheld_is_offered_again_when_nobody_needs_it() -> None:
    view = node([gpu(A100, 0, *ones())], {7: [6]})
    change = only(planner.plan([view], [job(1, {"7g.40gb": 1})]).changes)
    withheld = after(view, change)
    back = only(planner.plan([withheld], []).changes)
    assert back.withheld == ()
    assert not back.gpus
    assert sorted(offered(after(withheld, back))) == sorted(map(str, ones()))


def test_a_lower_job_does_not_take_what_is_withheld_for_a_higher_one() -> None:
    view = node([gpu(A100, 0, *ones())], {7: [6]})
    high, low = job(1, {"7g.40gb": 1}, priority=9), job(2, {"1g.5gb": 1}, priority=1)
    withheld = after(view, only(planner.plan([view], [high]).changes))
    found = planner.plan([withheld], [high, low])
    assert not found.changes
    assert [r.job_id for r in found.refusals] == [1, 2]


def test_a_higher_job_takes_back_what_is_withheld_for_a_lower_one() -> None:
    view = node([gpu(A100, 0, *ones())], {7: [6]})
    low, high = job(1, {"7g.40gb": 1}, priority=1), job(2, {"1g.5gb": 1}, priority=9)
    withheld = after(view, only(planner.plan([view], [low]).changes))
    change = only(planner.plan([withheld], [high, low]).changes)
    assert change.serves == (2,)
    kept = {p for w in change.withheld for p in w.placements}
    assert len(kept) == 5


def test_what_hulls_pin_is_not_withheld() -> None:
    """1g jobs at the first and the last index of the only GPU: all between must stay offered."""
    view = node([gpu(A100, 0, *ones())], {7: [0], 8: [6]})
    found = planner.plan([view], [job(1, {"7g.40gb": 1})])
    assert not found.changes
    assert "GPU 0 of n1 may serve it when job 7, 8 ends" in found.refusals[0].reason


def test_where_it_was_begun_goes_before_where_it_would_end_first() -> None:
    gpus = [gpu(A100, 0, *ones()), gpu(A100, 1, *ones())]
    view = node(gpus, {7: [6], 8: [7]})

    def ends(**times: int) -> NodeView:
        jobs = tuple(
            Allocation(a.job_id, a.user, a.indexes, end_time=times[f"job{a.job_id}"])
            for a in view.slurm.allocations
        )
        return replace(view, slurm=replace(view.slurm, allocations=jobs))

    wants = job(1, {"7g.40gb": 1})
    assert only(planner.plan([ends(job7=50, job8=90)], [wants]).changes).withheld[0].gpu == 0
    first = only(planner.plan([ends(job7=90, job8=50)], [wants]).changes)
    assert first.withheld[0].gpu == 1
    begun = replace(after(view, first), slurm=ends(job7=10, job8=90).slurm)
    assert not planner.plan([begun], [wants]).changes


def test_a_process_that_no_job_owns_is_not_waited_for() -> None:
    one = gpu(A100, 0, *ones())
    held = replace(one, instances=tuple(replace(i, pids=(99,)) for i in one.instances[:1]),
                   pids=(99,))  # fmt: skip
    view = node([replace(held, instances=(*held.instances, *one.instances[1:]))])
    found = planner.plan([view], [job(1, {"7g.40gb": 1})])
    assert not found.changes
    assert "in use by processes 99" in found.refusals[0].reason


def test_a_fence_waits_for_exactly_what_is_in_the_way() -> None:
    view = node([gpu(A100, 0, *ones())], {7: [6], 8: [0]})
    wants = job(1, {"3g.20gb": 2}, patience=Patience.FENCE)
    change = only(planner.plan([view], [wants]).changes)
    assert change.behind_fence
    assert change.serves == (1,)
    assert set(change.gpus[0].created) == {at("3g.20gb", 0), at("3g.20gb", 4)}
    assert (0, at("1g.5gb", 6)) in change.blocking
    none = planner.plan([view], [replace(wants, patience=Patience.NONE)])
    assert not none.changes


@pytest.mark.parametrize(
    ("unserved_s", "patience"),
    [(0, "withhold"), (59, "withhold"), (60, "fence"), (69, "fence"), (70, "none"),
     (139, "none"), (140, "withhold")],
)  # fmt: skip
def test_patience_over_time(unserved_s: float, patience: str) -> None:
    assert Policy(withhold_s=60, fence_wait_s=10).patience(unserved_s).value == patience


def test_without_withholding_nothing_is_kept() -> None:
    assert Policy().patience(5) is Patience.NONE


def switchable(gpus: Iterable[int], view: NodeView) -> NodeView:
    chosen = frozenset(gpus)
    return replace(view, whole_types=dict.fromkeys(chosen, "a100"), switchable=chosen)


def test_idle_gpus_become_whole_ones() -> None:
    """`gpu:a100:2` beside idle 1g instances; a GPU that the site does not name stays as it is."""
    gpus = [gpu(A100, n, *ones()) for n in range(4)]
    view = switchable((1, 2, 3), node(gpus, {7: [27]}))
    change = only(planner.plan([view], [job(1, {"a100": 2})]).changes)
    assert {part.gpu: part.mig for part in change.gpus} == {1: False, 2: False}
    assert all(part.created == () for part in change.gpus)
    assert [d.gpu for d in change.slots if d.type == "a100"] == [1, 2]
    assert change.slots[27].placement == at("1g.5gb", 6)


def test_a_whole_gpu_is_cut_again() -> None:
    whole = replace(gpu(A100, 0), mig=False)
    view = switchable((0,), node([whole, gpu(A100, 1)], {}))
    slots_now = tuple(replace(d, type="a100") if d.type == "whole" else d for d in view.slots)
    view = replace(view, slots=slots_now)
    change = only(planner.plan([view], [job(1, {"7g.40gb": 2})]).changes)
    assert {part.gpu: part.mig for part in change.gpus} == {0: True, 1: True}
    assert {(p.gpu, *p.created) for p in change.gpus} == {
        (0, at("7g.40gb", 0)), (1, at("7g.40gb", 0)),
    }  # fmt: skip
    assert (0, None) in change.blocking


def test_a_mode_change_is_the_last_choice() -> None:
    whole = replace(gpu(A100, 1), mig=False)
    view = switchable((1,), node([gpu(A100, 0, *ones()), whole]))
    change = only(planner.plan([view], [job(1, {"3g.20gb": 1})]).changes)
    assert [part.gpu for part in change.gpus] == [0]


def test_instances_of_a_gpu_that_shall_become_whole_are_withheld() -> None:
    view = switchable((0,), node([gpu(A100, 0, *ones())], {7: [0]}))
    change = only(planner.plan([view], [job(1, {"a100": 1})]).changes)
    kept: frozenset[Placement] = change.withheld[0].placements
    assert kept == frozenset(ones()) - {at("1g.5gb", 0)}


def test_what_is_idle_is_withheld_too_for_a_job_that_needs_more() -> None:
    """`gpu:a100:2` with one GPU idle and one busy: others must not take the idle one meanwhile."""
    gpus = [gpu(A100, 0, *ones()), gpu(A100, 1, *ones())]
    view = switchable((0, 1), node(gpus, {7: [0]}))
    change = only(planner.plan([view], [job(1, {"a100": 2})]).changes)
    assert {w.gpu: len(w.placements) for w in change.withheld} == {0: 6, 1: 7}


def ending(view: NodeView, **minutes: float) -> NodeView:
    """`job7=10`: it ends in ten minutes."""
    jobs = tuple(
        Allocation(a.job_id, a.user, a.indexes, end_time=round(60 * minutes[f"job{a.job_id}"]))
        for a in view.slurm.allocations
    )
    return replace(view, slurm=replace(view.slurm, allocations=jobs))


def two_ways() -> NodeView:
    """GPU 0: six idle slices and a job that ends in 10 min; GPU 1: full, for 30 min."""
    gpus = [gpu(A100, 0, *ones()), gpu(A100, 1, at("7g.40gb", 0))]
    return ending(node(gpus, {7: [0], 8: [7]}), job7=10, job8=30)


@pytest.mark.parametrize(
    ("withhold", "gpus", "terms"),
    [
        (0, [0], (("6 compute slice(s) withheld for 1 job(s)", 0),)),
        (1, [0], (("6 compute slice(s) withheld for 1 job(s)", 60),)),
        (4, [], ()),
    ],
)
def test_the_weight_of_withholding_decides_where_a_job_waits(
    withhold: int, gpus: list[int], terms: tuple[tuple[str, int], ...]
) -> None:
    """7g, worth 700 points: 10 min and 6 slices (70 + 60 w), or 30 min and none (210)."""
    view, wants = two_ways(), job(1, {"7g.40gb": 1}, priority=0)
    made = plan([view], [wants], rules=Rules(weights=Weights(withhold=withhold)))
    assert [w.gpu for change in made.changes for w in change.withheld] == gpus
    assert "is kept for it" in made.refusals[0].reason or "may serve it" in made.refusals[0].reason
    assert made.quality is not None
    assert made.quality.withheld == terms


def test_room_that_costs_more_than_the_job_is_worth_is_not_kept() -> None:
    """A 7g job is worth 700 points; six slices for an hour, the longest, cost 360 at one each."""
    view = ending(node([gpu(A100, 0, *ones())], {7: [3]}), job7=90)
    wants = job(1, {"7g.40gb": 1}, priority=0)
    kept = plan([view], [wants], rules=Rules(weights=Weights(withhold=1)))
    assert kept.changes[0].withheld
    dear = plan([view], [wants], rules=Rules(weights=Weights(withhold=2)))
    assert not dear.changes
    assert dear.refusals[0].reason.endswith(
        "6 compute slice(s) idle for 60 min, to keep room for it, would cost more than it is worth"
    )
    soon = plan([view], [wants], rules=Rules(weights=Weights(withhold=2)), now=60 * 60)
    assert soon.changes[0].withheld, "half an hour later it is worth it"


def begun_beside_another() -> tuple[NodeView, NodeView]:
    """Withheld on n1 for job 1, which n2 could serve as well once its job has ended."""
    view = node([gpu(A100, 0, *ones())], {7: [0]})
    other = node([gpu(A100, 0, *ones())], {9: [0]}, name="n2")
    made = plan([view, other], [job(1, {"7g.40gb": 1})], rules=Rules(frozen={"n2": "closed"}))
    return after(view, only(made.changes)), other


@pytest.mark.parametrize("slotted", [True, False])
@pytest.mark.parametrize("gone", ["drained", "full"])
def test_withholding_that_cannot_go_on_begins_anew_only_where_it_may(
    gone: str, *, slotted: bool
) -> None:
    """Its node is drained, or the job lacks CPUs there: a frozen node, or one without slots, stays
    as it is all the same."""
    begun, other = begun_beside_another()
    if gone == "drained":
        begun = replace(begun, condition=NodeCondition.ADMIN, note="drained")
    else:
        begun = ended(replace(begun, slurm=replace(begun.slurm, cpus_alloc=32)), 7)
    wants = [job(1, {"7g.40gb": 1})]
    assert held(plan([begun, other], wants))["n2"] == 6, "it does begin where it may"
    rules = Rules(frozen={"n2": "reshape: false"}) if slotted else Rules()
    made = plan([begun, replace(other, slotted=slotted)], wants, rules=rules)
    assert "n2" not in held(made)
    assert "is kept for it" not in made.refusals[0].reason


def test_withholding_goes_on_where_it_was_begun_though_nothing_new_may_begin_there() -> None:
    begun, other = begun_beside_another()
    made = plan([begun, other], [job(1, {"7g.40gb": 1})], rules=Rules(frozen={"n1": "closed"}))
    assert not made.changes
    assert "GPU 0 of n1 is kept for it until job 7 ends" in made.refusals[0].reason


def test_room_is_not_given_up_because_a_job_in_its_way_has_ended() -> None:
    """A 7g job is worth 700 points. Two slices for four hours cost 480, six of them 1440: the job
    that has ended leaves four more to keep, and is what all was waiting for."""
    rules, wants = Rules(withhold_s=4 * 3600), job(1, {"7g.40gb": 1}, priority=0)
    view = node([gpu(A100, 0, *ones())], {7: [0], 8: [1, 2, 3, 4]})
    view = after(view, only(plan([view], [wants], rules=rules).changes))
    assert len(offered(view)) == 5
    view = ended(view, 8)
    assert held(plan([view], [wants], rules=rules)) == {"n1": 6}
    fresh = replace(view, withheld=())
    assert not plan([fresh], [wants], rules=rules).changes, "nobody would begin it now"


def test_room_is_not_given_up_because_a_more_urgent_job_came() -> None:
    """The level, and so what the job is worth, is its share of the queue's highest priority."""
    rules, wants = Rules(weights=Weights(withhold=3)), job(1, {"7g.40gb": 1})
    view = node([gpu(A100, 0, *ones())], {7: [0]})
    view = after(view, only(plan([view], [wants], rules=rules).changes))
    urgent = job(5, {"3g.20gb": 1}, priority=5000, partition="elsewhere")
    made = plan([view], [urgent, wants], rules=rules)
    assert not made.changes
    assert made.refusals[-1].reason.endswith("GPU 0 of n1 is kept for it until job 7 ends")


def test_what_goes_behind_a_fence_is_withheld_no_longer() -> None:
    """What goes with the cut is no longer there to be withheld; on the other GPU it still is."""
    view = node([gpu(A100, 0, *ones()), gpu(A100, 1, *ones())], {7: [6], 8: [7]})
    first, second = job(1, {"7g.40gb": 1}, priority=9), job(2, {"7g.40gb": 1}, priority=1)
    view = after(view, only(plan([view], [first, second]).changes))
    assert {w.jobs: w.gpu for w in view.withheld} == {(1,): 1, (2,): 0}
    fence = only(plan([view], [replace(first, patience=Patience.FENCE), second]).changes)
    assert fence.behind_fence
    assert fence.gpus[0].gpu == 1
    assert [(w.gpu, w.jobs) for w in fence.withheld] == [(0, (2,))]


def test_a_job_of_several_partitions_is_waited_for_and_served_in_each() -> None:
    """`-p other,main`, and the node is in main."""
    view, wants = node([gpu(A100, 0, *ones())], {7: [0]}), job(1, {"7g.40gb": 1})
    wants = replace(wants, partition="other,main")
    for planned in (plan, planner.plan):
        found = planned([view], [wants])
        assert held(found) == {"n1": 6}
        assert "GPU 0 of n1 is kept for it until job 7 ends" in found.refusals[0].reason
        free = ended(after(view, only(found.changes)), 7)
        assert only(planned([free], [wants]).changes).serves == (1,)
    never = plan([view], [replace(wants, gpus={"9g.99gb": 1})]).refusals[0].reason
    assert "partition other,main can ever be '9g.99gb'; possible: 1g.10gb" in never
    elsewhere = plan([view], [replace(wants, partition="other,left")]).refusals[0].reason
    assert "partition other,left can ever be" in elsewhere
