"""Plans over random nodes of which some instances and GPUs are not Slurm's: those never change."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace

from slurm_mig.core import geometry, ownership
from slurm_mig.core.changes import Plan
from slurm_mig.core.model import Layout, NodeView, Patience, Place
from slurm_mig.core.ownership import Outside
from slurm_mig.core.planning.plan import plan
from slurm_mig.core.planning.rules import Rules
from tests.property.test_programme import random_case
from tests.unit.builders import node

CASES = 300


def given_away(view: NodeView, dice: random.Random) -> NodeView:
    """The node with some of its idle instances, and sometimes an idle GPU, given to others."""
    busy = {view.slots[i].key for i in view.busy}
    outside = []
    for gpu in view.gpus:
        if dice.random() < 0.2 and not any(place[0] == gpu.index for place in busy):
            outside.append(Outside("kubernetes", gpu.index))
            continue
        idle = sorted(p for p in gpu.layout if (gpu.index, p) not in busy)
        theirs = tuple(p for p in idle if dice.random() < 0.4)
        outside += [Outside("containers", gpu.index, theirs)] if theirs else []
    gpus = ownership.stamped(view.gpus, outside)
    fresh = node(gpus, name=view.name)
    # Jobs keep their devices: by place, as the order of the slots is another one.
    index_of = {device.key: n for n, device in enumerate(fresh.slots)}
    held = {n: [index_of[k] for k in keys] for n, keys in _jobs(view).items()}
    fresh = node(gpus, held, name=view.name)
    slurm = replace(fresh.slurm, partitions=view.slurm.partitions)
    return replace(
        view, slurm=slurm, slots=fresh.slots,
        gpus=tuple(g for g in gpus if not g.owner), outside=tuple(g for g in gpus if g.owner),
    )  # fmt: skip


def _jobs(view: NodeView) -> dict[int, list[Place]]:
    return {a.job_id: [view.slots[i].key for i in a.indexes] for a in view.slurm.allocations}


def check(view: NodeView, made: Plan, seed: int) -> int:
    """How many changes of GPUs that others have a part of."""
    gpus = {gpu.index: gpu for gpu in view.gpus}
    beside = 0
    for change in made.changes:
        for part in change.gpus:
            if change.node != view.name:
                continue
            foreign = gpus[part.gpu].foreign
            assert not foreign & set(part.destroyed), seed
            assert foreign <= part.target or not foreign, seed
            assert geometry.fits(gpus[part.gpu], part.target) or not part.mig, seed
            assert part.mig or not foreign, seed
            beside += bool(foreign)
        if change.node == view.name:
            places = {(d.gpu, d.placement) for d in change.slots}
            assert not places & {(g.index, p) for g in view.gpus for p in g.foreign}, seed
            assert not {g.index for g in view.outside} & {gpu for gpu, _ in places}, seed
            assert len(change.slots) == len(view.slots) - (not change.behind_fence), seed
    return beside


def test_no_plan_touches_what_is_not_slurms() -> None:
    beside = changed = 0
    for seed in range(CASES):
        dice = random.Random(seed)
        views, baselines, requests = random_case(seed)
        views = [given_away(view, dice) for view in views]
        patience = dice.choice(list(Patience))
        requests = [replace(r, patience=patience) for r in requests]
        back = frozenset((v.name, g.index) for v in views for g in v.gpus)
        rules = Rules(to_baseline=back if dice.random() < 0.5 else frozenset())
        theirs = {v.name: beside_them(v, baselines[v.name]) for v in views}
        made = plan(views, requests, theirs, rules)
        changed += len(made.changes)
        beside += sum(check(view, made, seed) for view in views)
    assert changed > CASES / 4
    assert beside > CASES / 20


def beside_them(view: NodeView, baselines: Mapping[int, Layout]) -> dict[int, Layout]:
    """Baselines as enrolment makes them: they were there together with what is not Slurm's."""
    return {
        gpu.index: geometry.fill(gpu, gpu.foreign, baselines[gpu.index])
        for gpu in view.gpus
        if gpu.index in baselines
    }
