"""Plans on nodes against trying everything (tests/property/exhaustive.py), with CPUs, memory, slots
and the groups' limits.

`--cases N` makes it N random clusters.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace

import pytest

from slurm_mig.core.changes import Plan
from slurm_mig.core.model import JobRequest, Layout, NodeView, Placement
from slurm_mig.core.planning.limits import Limits
from slurm_mig.core.planning.plan import plan
from slurm_mig.core.planning.rules import Rules
from slurm_mig.core.planning.weights import Weights
from tests.property.exhaustive import Cluster
from tests.property.test_programme import ALL_LAYOUTS, LARGE, SMALL
from tests.unit.builders import A30, A100, gpu, job, node


@dataclass(frozen=True)
class Case:
    views: list[NodeView]
    baselines: Mapping[str, Mapping[int, Layout]]
    requests: list[JobRequest]
    limits: Limits | None
    limited: frozenset[str]
    twice: int = Weights().twice
    """What a second registration costs."""

    def plan(self) -> Plan:
        limits = {name: self.limits for name in self.limited if self.limits}
        rules = Rules(weights=Weights(twice=self.twice), limits=limits)
        return plan(self.views, self.requests, self.baselines, rules)

    def best(self) -> int:
        limits = self.limits, self.limited
        return Cluster(self.views, self.baselines, self.requests, *limits, self.twice).best()


def random_node(dice: random.Random, number: int) -> tuple[NodeView, dict[int, Layout]]:
    model = dice.choice((A30, A30, A30, A100))
    boards, baselines = [], {}
    for index in range(1 if model == A100 else dice.choice((1, 2, 2))):
        layout: tuple[Placement, ...] = tuple(dice.choice(ALL_LAYOUTS[model]))
        boards.append(gpu(model, index, *layout))
        if dice.random() < 0.3:
            baselines[index] = frozenset(dice.choice(ALL_LAYOUTS[model]))
    view = node(boards, name=f"n{number}")
    there = [i for i, d in enumerate(view.slots[:-1]) if not d.type.startswith("off")]
    taken = [i for i in there if dice.random() < 0.4]
    view = node(boards, {900: taken}, name=f"n{number}")
    slurm = replace(
        view.slurm,
        partitions=frozenset({dice.choice(("left", "right")), "all"}),
        cpus=dice.choice((2, 4, 8)),
        memory_mib=dice.choice((4000, 16_000)),
    )
    return replace(view, slurm=slurm), baselines


def random_limits(dice: random.Random, types: tuple[str, ...]) -> Limits:
    chosen = dice.sample(types, 2)
    least = {chosen[0]: dice.randrange(4)} if dice.random() < 0.7 else {}
    return Limits("group", least, {chosen[1]: dice.randrange(3)} if dice.random() < 0.7 else {})


def random_case(seed: int) -> Case:
    dice = random.Random(seed)
    made = [random_node(dice, n) for n in range(dice.choice((1, 2, 2, 3)))]
    views = [view for view, _ in made]
    types = SMALL if views[0].gpus[0].model == A30 else LARGE
    requests = [
        job(
            number + 1,
            {t: dice.choice((1, 1, 1, 2)) for t in dice.sample(types, dice.choice((1, 1, 1, 2)))},
            partition=dice.choice(("left", "right", "all", "all")),
            priority=dice.choice((0, 10, 500, 1000)),
            nodes=dice.choice((1, 1, 1, 2)),
            cpus=dice.choice((1, 1, 2, 4)),
            memory_mib=dice.choice((0, 1000, 4000)),
        )
        for number in range(dice.randint(1, 5))
    ]
    limits = random_limits(dice, types) if dice.random() < 0.5 else None
    limited = frozenset(view.name for view in views if dice.random() < 0.7)
    twice = dice.choice((0, Weights().twice, 60, 500))
    return Case(views, {view.name: b for view, b in made}, requests, limits, limited, twice)


def test_plans_on_nodes_are_the_best(request: pytest.FixtureRequest) -> None:
    """And known to be. Where jobs start as they are there is nothing to compare: Slurm gives them
    what is idle, whatever a plan would do."""
    compared = limited = leaning = decided = 0
    for seed in range(request.config.getoption("--cases")):
        case = random_case(seed)
        made = case.plan()
        if made.startable:
            continue
        best, quality = case.best(), made.quality
        assert quality is not None
        assert best <= quality.value == quality.bound, seed
        compared += 1
        limited += bool(case.limits and case.limited and best)
        # By a change that another one of its node makes room for; trying everything has none such.
        leaning += quality.value > best
        decided += differs(made, replace(case, twice=0).plan())
    assert compared > 0.5 * request.config.getoption("--cases")
    assert limited > 0.04 * compared
    assert leaning <= 1 + compared // 1000
    assert decided > 0.01 * compared
    print(f"{compared} compared, {limited} with limits, {leaning} worth more, {decided} decided "
          "by a second registration")  # fmt: skip


def test_limits_only_ever_take_away() -> None:
    for seed in range(200):
        case = random_case(seed)
        free = replace(case, limits=None).plan()
        bound = case.plan()
        if not (free.startable or bound.startable):
            assert worth(bound) <= worth(free), seed


def test_another_node_is_never_worse() -> None:
    for seed in range(200):
        case = random_case(seed)
        made = case.plan()
        more = node([gpu(A30)], name="more")
        more = replace(more, slurm=replace(more.slurm, partitions=frozenset({"left", "all"})))
        assert worth(replace(case, views=[*case.views, more]).plan()) >= worth(made), seed


def test_another_job_never_makes_a_plan_on_nodes_worth_less() -> None:
    compared = 0
    for seed in range(300):
        case = random_case(seed)
        types = {t for r in case.requests for t in r.gpus}
        more = job(99, {min(types): 1}, partition="all", priority=0, cpus=1)
        made = replace(case, requests=[*case.requests, more]).plan()
        if 99 not in made.startable:
            compared += 1
            assert worth(made) >= worth(case.plan()), seed
    assert compared > 100


def differs(one: Plan, other: Plan) -> bool:
    """What becomes of the GPUs."""
    return [(c.node, c.gpus) for c in one.changes] != [(c.node, c.gpus) for c in other.changes]


def worth(made: Plan) -> int:
    assert made.quality is not None
    return made.quality.value
