"""Where room is kept for a job that running jobs are in the way of, against looking at every place.

The price of each is counted as docs/planner.md words it.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, replace

from slurm_mig.core import geometry
from slurm_mig.core.changes import Plan
from slurm_mig.core.model import Allocation, JobRequest, NodeView
from slurm_mig.core.planning.plan import plan
from slurm_mig.core.planning.rules import Rules
from slurm_mig.core.planning.weights import Weights, level
from tests.property.test_plan_on_nodes import random_node
from tests.property.test_programme import LARGE, SLICES, SMALL
from tests.unit.builders import A30, job

CASES = 1500
NOW = 10_000.0


@dataclass(frozen=True)
class Case:
    views: list[NodeView]
    request: JobRequest
    rules: Rules

    def plan(self) -> Plan:
        return plan(self.views, [self.request], rules=self.rules, now=NOW)


@dataclass(frozen=True)
class Place:
    """A placement, and what waiting for it means."""

    node: str
    gpu: int
    price: int
    ends: float
    jobs: frozenset[int]
    slices: int
    minutes: int


def random_case(seed: int) -> Case:
    dice = random.Random(seed)
    views = [_ending(dice, random_node(dice, n)[0]) for n in range(dice.choice((1, 2, 3)))]
    types = SMALL if views[0].gpus[0].model == A30 else LARGE
    wants = job(1, {dice.choice(types[1:]): 1}, partition="all", priority=dice.choice((0, 100)))
    weights = Weights(withhold=dice.choice((0, 1, 1, 3, 20)))
    return Case(views, wants, Rules(weights=weights, withhold_s=dice.choice((600, 3600, 40_000))))


def _ending(dice: random.Random, view: NodeView) -> NodeView:
    """Each busy device is a job's of its own, with a time limit or without."""
    held = tuple(
        Allocation(100 + i, "alice", frozenset({i}), end_time=dice.choice((0, 9_000, 10_030, 11_000,
                                                                           12_345, 30_000)))
        for i in sorted(view.busy)
    )  # fmt: skip
    return replace(view, slurm=replace(view.slurm, allocations=held))


def worth(case: Case) -> int:
    request = case.request
    amount = sum(n * SLICES[t] for t, n in request.gpus.items())
    return case.rules.weights.job * level(request.priority, request.priority) * amount


def places(case: Case) -> list[Place]:
    """The cheapest place of each node, if it is jobs that are in the way there."""
    best = []
    for view in case.views:
        here = sorted(_on(case, view), key=lambda p: (p.price, p.ends, bool(p.jobs)))
        if here and here[0].jobs:
            best.append(here[0])
    return best


def _on(case: Case, view: NodeView) -> list[Place]:
    (wanted,) = case.request.gpus
    found = []
    for board in view.gpus:
        busy = {
            p: a
            for a in view.slurm.allocations
            for i in a.indexes
            if view.slots[i].gpu == board.index and (p := view.slots[i].placement)
        }
        for (new,) in geometry.ways_to_add(board, frozenset(), {wanted: 1}):
            near = {p for p in board.layout if p.overlaps(new)}
            blocking = {p: a for p, a in busy.items() if p in near}
            if not geometry.fits(board, frozenset(busy.keys() - near) | {new}):
                blocking = busy
            ends = max((a.end_time or 1e12 for a in blocking.values()), default=0.0)
            minutes = -int(-min(max(0.0, ends - NOW), case.rules.withhold_s) // 60)
            slices = sum(SLICES[p.profile] for p in near - busy.keys())
            price = minutes * case.rules.weights.withhold * slices + worth(case) * minutes // 100
            jobs = frozenset(a.job_id for a in blocking.values())
            found.append(Place(view.name, board.index, price, ends, jobs, slices, minutes))
    return found


def test_room_is_kept_where_it_costs_least() -> None:
    kept = withheld = dear = 0
    for seed in range(CASES):
        case = random_case(seed)
        made = case.plan()
        if made.startable or any(change.serves for change in made.changes):
            continue
        choices = places(case)
        assert made.quality is not None
        (refusal,) = made.refusals
        dear += "would cost more than it is worth" in refusal.reason
        if found := re.search(r"GPU (\d+) of (n\d+) (is kept for|may serve) it", refusal.reason):
            kept += 1
            least = min(place.price for place in choices)
            at = [p for p in _on(case, next(v for v in case.views if v.name == found[2]))
                  if p.gpu == int(found[1])]  # fmt: skip
            assert min(p.price for p in at) == least, seed
        else:
            assert not choices or "would cost more than it is worth" in refusal.reason, seed
        for _, points in made.quality.withheld:
            withheld += 1
            (change,) = made.changes
            (held,) = change.withheld
            slices = sum(SLICES[p.profile] for p in held.placements)
            minutes = {p.minutes for p in at}
            assert points in {case.rules.weights.withhold * slices * m for m in minutes}, seed
            assert points <= worth(case), seed
    assert kept > CASES / 6
    assert withheld > CASES / 20
    assert dear > CASES / 200
    print(f"room kept for {kept}, something withheld for {withheld}, too dear for {dear}")


def test_a_higher_weight_never_withholds_for_longer() -> None:
    """What is withheld, in slices times minutes, only shrinks."""
    for seed in range(300):
        case, before = random_case(seed), None
        for weight in (0, 1, 3, 10, 50):
            rules = replace(case.rules, weights=Weights(withhold=weight))
            made = replace(case, rules=rules).plan()
            assert made.quality is not None
            paid = sum(points for _, points in made.quality.withheld)
            if weight:
                lost = paid // weight
                assert before is None or lost <= before, seed
                before = lost
