"""From any layout to any other, any of its instances busy, through the library itself.

`apply` reaches it and touches no busy instance, or refuses, names the blockers and has touched
nothing; it refuses only where no layout at all has the busy instances and what is wished. The
library's own generations prove it: an instance that was made again has another one.
`--layout-pairs N` says how many pairs of each table; from the number of its layouts on (2,319 of a
GPU with seven slices) every one of them is a target.
"""

from __future__ import annotations

import random
import subprocess
from collections import Counter
from collections.abc import Iterator
from itertools import cycle, islice

import pytest

from slurm_mig.adapters.gpus import NvmlGpus
from slurm_mig.core import geometry
from slurm_mig.core.layouts import Cut, Wanted, agrees, change
from slurm_mig.core.model import Layout, Placement
from slurm_mig.errors import BusyError
from slurm_mig.relayout import Relayout
from tests.contract.nvml.conftest import Opened
from tests.testbed.nvml_sim import GpuSpec, Simulator
from tests.unit import builders

pytestmark = pytest.mark.changes_gpus

BUSY = 0.2
"""How likely an instance is held, and how likely a wish names the place of one."""


class Walk:
    """One GPU that is led from layout to layout."""

    def __init__(self, sim: Simulator, gpus: NvmlGpus, holder: int, dice: random.Random) -> None:
        self.sim = sim
        self.gpus = gpus
        self.holder = holder
        self.dice = dice
        self.reachable = [frozenset(), *geometry.layouts(gpus.gpu(0))]
        self.alike: dict[frozenset[tuple[str, int]], list[Layout]] = {}
        for layout in self.reachable:
            self.alike.setdefault(counted(layout), []).append(layout)
        self.seen: Counter[str] = Counter()

    def go(self, target: Layout) -> None:
        """With some instances busy; where that is refused, once more with none."""
        wish, busy = self.wish(target), self.hold()
        fixed = busy | {cut.placement for cut in wish.cuts}
        possible = any(fixed <= layout for layout in self.alike[counted(target)])
        assert self.tried(wish, busy) == possible
        self.sim.remove_process(self.holder)
        if not possible:
            assert self.tried(wish, frozenset())

    def wish(self, target: Layout) -> Wanted:
        """The layout, some of its instances by place, the others by count."""
        given = frozenset(Cut(p) for p in sorted(target) if self.dice.random() < BUSY)
        rest = Counter(p.profile for p in sorted(target) if Cut(p) not in given)
        return Wanted(devices=dict(rest), cuts=given)

    def hold(self) -> Layout:
        """Gives some of the instances that are there to a process."""
        there = {i.placement: i.gi for i in self.gpus.gpu(0).instances}
        busy = [place for place in sorted(there) if self.dice.random() < BUSY]
        for place in busy:
            self.sim.add_process(self.holder, 0, there[place])
        return frozenset(busy)

    def tried(self, wish: Wanted, busy: Layout) -> bool:
        """Applies it, and checks what came of it. False: it was refused."""
        blockers = change(self.gpus.gpu(0), wish, busy).blockers
        before = self.generations()
        if blockers:
            assert set(blockers) <= busy
            with pytest.raises(BusyError) as refusal:
                Relayout(self.gpus).apply({0: wish})
            assert all(str(place) in str(refusal.value) for place in blockers)
            assert self.generations() == before
            self.seen["refused"] += 1
            return False
        Relayout(self.gpus).apply({0: wish})
        assert agrees(self.gpus.gpu(0), wish)
        after = self.generations()
        assert all(after[place] == before[place] for place in busy)
        self.seen[f"reached, {'some busy' if busy else 'all idle'}"] += 1
        return True

    def generations(self) -> dict[Placement, tuple[int, ...]]:
        """What tells an instance, with its parts, from another at its place."""
        (gpu,) = self.sim.dump()["gpus"]
        return {
            Placement(i["start"], i["size"], i["profile"]): (
                i["generation"], *(c["generation"] for c in i["compute_instances"]),
            )
            for i in gpu["instances"]
        }  # fmt: skip


def counted(layout: Layout) -> frozenset[tuple[str, int]]:
    """How many instances of which profile."""
    return frozenset(Counter(place.profile for place in layout).items())


@pytest.fixture
def holder() -> Iterator[int]:
    """A process that is not ours."""
    child = subprocess.Popen(["sleep", "3600"])
    yield child.pid
    child.kill()
    child.wait()


@pytest.mark.parametrize(("number", "card"), list(enumerate(builders.models())))
def test_reached_or_refused(
    opened: Opened, sim: Simulator, holder: int, request: pytest.FixtureRequest,
    number: int, card: str,
) -> None:  # fmt: skip
    pairs: int = request.config.getoption("--layout-pairs")
    dice = random.Random(f"{request.config.getoption('--seed')} {card}")
    flipped = number % 2 and "RTX" not in card
    gpus = opened(GpuSpec(card, mig=True, layout="F" if flipped else "N"))
    walk = Walk(sim, gpus, holder, dice)
    targets = dice.sample(walk.reachable, len(walk.reachable))
    for target in islice(cycle(targets), pairs):
        walk.go(target)
    print(f"{card}: {len(targets)} layouts, {dict(walk.seen)}")
    assert set(walk.seen) == {"refused", "reached, all idle", "reached, some busy"}
