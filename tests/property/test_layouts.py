"""From any layout to any other, with any of its instances busy: reached, or refused untouched."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace

import pytest

from slurm_mig.core import durations, geometry
from slurm_mig.core.layouts import Cut, Wanted, agrees, change, cuts_of
from slurm_mig.core.model import Gpu, Layout, Placement
from slurm_mig.errors import BusyError, GpuError
from slurm_mig.relayout import Relayout
from tests.fakes.gpus import FakeGpus, with_cuts
from tests.unit import builders


def shape(gpu: Gpu) -> tuple[object, ...]:
    """What decides which layouts there are: many models differ in names and memory only."""
    return tuple((p.compute_slices, p.starts, p.size, p.max_count) for p in gpu.profiles)


MODELS = sorted({shape(builders.gpu(name)): name for name in builders.models()}.values())
"""One model of each shape in slurm_mig/data."""

PLAIN = ("me", "me.all", "gfx")
TARGETS = 1
"""Random targets for each layout; every layout of every shape is a start."""


def layouts_of(gpu: Gpu) -> list[Layout]:
    """Every reachable layout; of RTX cards, whose attributes multiply alike, without those."""
    names = [p.name for p in gpu.profiles]
    if len(names) > 9:
        names = [p.name for p in gpu.profiles if p.attribute not in PLAIN]
    return [frozenset(), *geometry.layouts(gpu, names)]


def cases(gpu: Gpu) -> Iterator[tuple[Gpu, tuple[Placement, ...], Wanted]]:
    dice = random.Random(gpu.model)
    reachable = layouts_of(gpu)
    for start in reachable:
        for _ in range(TARGETS):
            target = dice.choice(reachable)
            busy = tuple(p for p in sorted(start) if dice.random() < 0.3)
            given = frozenset(Cut(p) for p in target if dice.random() < 0.3)
            rest = Counter(p.profile for p in sorted(target) if Cut(p) not in given)
            wish = Wanted(devices=dict(rest), cuts=given)
            yield with_cuts(gpu, [Cut(p) for p in sorted(start)], busy), busy, wish


@pytest.mark.parametrize("model", MODELS)
def test_reached_or_refused(model: str) -> None:
    reached = refused = 0
    for gpu, busy, wish in cases(builders.gpu(model)):
        gpus = FakeGpus(gpu)
        blockers = change(gpu, wish, frozenset(busy)).blockers
        if blockers:
            with pytest.raises(BusyError) as refusal:
                Relayout(gpus).apply({0: wish})
            assert all(str(p) in str(refusal.value) and p in busy for p in blockers)
            assert gpus.changes == 0
            assert gpus.gpu(0) == gpu
            refused += 1
            continue
        Relayout(gpus).apply({0: wish})
        assert agrees(gpus.gpu(0), wish)
        assert not set(gpus.touched) & set(busy)
        assert set(busy) <= gpus.gpu(0).layout
        reached += 1
    assert reached
    assert refused


@pytest.mark.parametrize("model", ["NVIDIA A100-SXM4-40GB", "NVIDIA A30"])
def test_a_failure_at_any_step_ends_where_it_began(model: str) -> None:
    """Every step of the change fails once: all of it is undone."""
    for number, (gpu, _, wish) in enumerate(cases(builders.gpu(model))):
        gpu = replace(with_cuts(gpu, sorted(cuts_of(gpu))), pids=())
        part = change(gpu, wish)
        steps = len(part.destroyed) + len(part.created) + len(part.resplit)
        if number % 11 or not steps:
            continue
        for step in range(1, steps + 1):
            gpus = FakeGpus(gpu, fail_at=step)
            with pytest.raises(GpuError, match="every GPU is again as it was"):
                Relayout(gpus).apply({0: wish})
            assert cuts_of(gpus.gpu(0)) == cuts_of(gpu)


def test_every_layout_can_be_had_by_its_counts() -> None:
    """An empty GPU becomes any layout; nothing is changed when it is there already."""
    for model in MODELS:
        gpu = builders.gpu(model)
        for target in layouts_of(gpu)[::9]:
            wish = Wanted(devices=dict(Counter(p.profile for p in sorted(target))))
            gpus = FakeGpus(with_cuts(gpu, ()))
            Relayout(gpus).apply({0: wish})
            assert agrees(gpus.gpu(0), wish)
            steps = gpus.changes
            Relayout(gpus).apply({0: wish})
            assert gpus.changes == steps


def test_no_change_to_the_same_counts_is_shorter() -> None:
    """Against every layout that has the wished instances, one by one: an Ampere, whose large
    instances take hardly longer than small ones, and a Hopper, where they take three times that."""
    for model, needs_reset in (("NVIDIA A100-SXM4-40GB", True), ("NVIDIA H100 80GB HBM3", False)):
        gpu = replace(builders.gpu(model), mode_needs_reset=needs_reset)
        dice = random.Random(model)
        reachable = layouts_of(gpu)
        for start in dice.sample(reachable, 150):
            counts = Counter(p.profile for p in dice.choice(reachable))
            part = change(with_cuts(gpu, [Cut(p) for p in sorted(start)]), Wanted(devices=counts))
            alike = [t for t in reachable if Counter(p.profile for p in t) == counts]
            took = duration_ms(gpu, part.destroyed, [c.placement for c in part.created])
            assert took == min(duration_ms(gpu, start - t, t - start) for t in alike)


def duration_ms(gpu: Gpu, destroyed: Iterable[Placement], created: Iterable[Placement]) -> int:
    made = sum(durations.create_ms(gpu, p.profile) for p in created)
    return made + sum(durations.destroy_ms(gpu) for _ in destroyed)
