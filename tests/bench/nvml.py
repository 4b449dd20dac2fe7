"""`apply` between every two of a set of layouts, against destroying and creating everything.

The simulated NVML takes the time that real hardware was published to take. For every two
configurations, the second wished for by count, both ways start from the same placements, in the
same run; `apply` may keep what is there, the usual way may not. Beside both stands the least time
that any way could take which ends with the same counts, found by trying every layout that has
them. Also: how many NVML calls the inventory of a large node makes.

    scripts/bench nvml [--json] [--every N] [--pairs]
"""

from __future__ import annotations

import argparse
import math
import os
import random
import re
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from slurm_mig.adapters.gpus import NvmlGpus
from slurm_mig.core import durations, geometry
from slurm_mig.core.layouts import Wanted, agrees, parse_inline
from slurm_mig.core.model import Gpu, Layout
from slurm_mig.gpurender import inventory_json
from slurm_mig.relayout import Relayout
from tests.bench.claims import Claim, show
from tests.testbed.nvml_sim import GpuSpec, Paths, Simulator
from tests.unit import builders

A100 = "NVIDIA A100-SXM4-40GB"
H100 = "NVIDIA H100 80GB HBM3"
INSTALLED = Paths(
    Path("/usr/local/lib/libnvidia-ml.so.1"),
    Path("/usr/local/bin/nvml-sim"),
    Path("/usr/local/bin/fake-cuda"),
)

LEFT = ("4g.20gb@0", "3g.20gb@0", "2g.10gb@0,2g.10gb@2", "2g.10gb@0,1g.5gb@2,1g.5gb@3",
        "1g.5gb@0,1g.5gb@1,2g.10gb@2", "1g.5gb@0,1g.5gb@1,1g.5gb@2,1g.5gb@3")  # fmt: skip
RIGHT = ("3g.20gb@4", "2g.10gb@4,1g.5gb@6", "1g.5gb@4,1g.5gb@5,1g.5gb@6")

LAYOUTS = ("7g.40gb@0", *(f"{left},{right}" for left in LEFT for right in RIGHT))
"""The 19 full configurations of an A100 in NVIDIA's MIG user guide, at their places."""

WORKERS = 6
"""Nodes measured at the same time: each mostly sleeps, as long as its hardware would take."""

NEAR = 0.95
"""A pair that takes so much of the usual way's time is timed three times, both ways, for medians:
the largest of hundreds of single ratios would be the machine's noise."""

OTHERS = 60
"""Pairs of each other set: so many of them, evenly spread."""


@dataclass(frozen=True)
class Pair:
    """From one configuration to another, on a model."""

    model: str
    source: str
    target: str
    placed: bool = False
    """The target is wished for at its places, not by count."""

    def wanted(self, gpus: Sequence[Gpu]) -> Wanted:
        if self.placed:
            return parse_inline([f"gpu0={self.target}"], gpus)[0]
        return Wanted(devices=counts(self.target))


@dataclass(frozen=True)
class Measured:
    """Seconds."""

    pair: Pair
    applied: float
    rebuilt: float
    least: float


def counts(words: str) -> dict[str, int]:
    """A configuration as people wish it: devices by count."""
    return dict(Counter(word.partition("@")[0] for word in words.split(",")))


class Bench:
    """One GPU and the two ways."""

    def __init__(self, sim: Simulator, gpus: NvmlGpus) -> None:
        self.sim = sim
        self.gpus = gpus
        self.every = list(geometry.layouts(gpus.inventory()[0]))

    def start_from(self, words: str) -> None:
        """The configuration at its places, made without delays."""
        self.sim.timing("none")
        Relayout(self.gpus).apply(parse_inline([f"gpu0={words}"], self.gpus.inventory()))
        self.sim.timing("hardware")

    def applied(self, wanted: Wanted) -> float:
        began = time.monotonic()
        Relayout(self.gpus).apply({0: wanted})
        return time.monotonic() - began

    def rebuilt(self, wanted: Wanted) -> float:
        """The usual way: look, destroy everything, create everything, look."""
        began = time.monotonic()
        gpu = self.gpus.inventory()[0]
        given = frozenset(cut.placement for cut in wanted.cuts)
        target = given | next(geometry.ways_to_add(gpu, given, wanted.devices))
        for instance in gpu.instances:
            self.gpus.destroy(0, instance.gi)
        for placement in sorted(target):
            self.gpus.create(0, placement)
        if not agrees(self.gpus.inventory()[0], wanted):
            raise RuntimeError(f"rebuilding {wanted} went wrong")
        return time.monotonic() - began

    def least(self, wanted: Wanted) -> float:
        """By the published times alone, over every layout that is what is wanted."""
        gpu = self.gpus.inventory()[0]
        given = frozenset(cut.placement for cut in wanted.cuts)
        asked = Counter(wanted.devices) + Counter(place.profile for place in given)
        ends = [t for t in self.every if given <= t and Counter(p.profile for p in t) == asked]
        return min(duration_ms(gpu, gpu.layout, end) for end in ends) / 1000

    def measure(self, pair: Pair) -> Measured:
        self.start_from(pair.source)
        wanted = pair.wanted(self.gpus.inventory())
        least = self.least(wanted)
        rounds = [self.both(pair, wanted)]
        if rounds[0][0] > NEAR * rounds[0][1]:
            rounds += [self.both(pair, wanted) for _ in range(2)]
        applied, usual = (statistics.median(times) for times in zip(*rounds, strict=True))
        return Measured(pair, applied, usual, least)

    def both(self, pair: Pair, wanted: Wanted) -> tuple[float, float]:
        """Our time and the usual way's, each from the pair's source."""
        self.start_from(pair.source)
        usual = self.rebuilt(wanted)
        self.start_from(pair.source)
        return self.applied(wanted), usual


def duration_ms(gpu: Gpu, before: Layout, after: Layout) -> int:
    """Everything destroyed and created that differs."""
    made = sum(durations.create_ms(gpu, place.profile) for place in after - before)
    return made + len(before - after) * durations.destroy_ms(gpu)


# -- the sets --------------------------------------------------------------------------------------


def documented(model: str = A100, *, placed: bool = False) -> list[Pair]:
    """Every two configurations of NVIDIA's guide, both ways, but those that are the same by count:
    from one of them to the other `apply` has nothing to do."""
    layouts = LAYOUTS if model == A100 else [HOPPER.sub(as_hopper, words) for words in LAYOUTS]
    return [
        Pair(model, a, b, placed)
        for a in layouts for b in layouts if counts(a) != counts(b)
    ]  # fmt: skip


HOPPER = re.compile(r"(\d)g\.\d+gb")


def as_hopper(found: re.Match[str]) -> str:
    """The same slices of an H100 with 80 GB."""
    gigabytes = {"1": 10, "2": 20, "3": 40, "4": 40, "7": 80}[found[1]]
    return f"{found[1]}g.{gigabytes}gb"


MIG_PARTED = (",".join(f"1g.5gb@{n}" for n in range(7)), "2g.10gb@0,2g.10gb@2,2g.10gb@4",
              "3g.20gb@0,3g.20gb@4", "7g.40gb@0", "3g.20gb@4,2g.10gb@0,1g.5gb@2,1g.5gb@3",
              "1g.10gb@0,1g.10gb@2,1g.10gb@4,1g.10gb@6", "4g.20gb@0")  # fmt: skip
"""What mig-parted's published file has for this GPU: mostly one profile each, so little to keep."""


def published() -> list[Pair]:
    return [Pair(A100, a, b) for a in MIG_PARTED for b in MIG_PARTED if a != b]


def anything() -> list[Pair]:
    """Random layouts of all that a GPU can have, also such as leave room."""
    dice = random.Random(1)
    every = [",".join(map(str, sorted(t))) for t in geometry.layouts(builders.gpu(A100))]
    drawn = (dice.sample(every, 2) for _ in range(2 * OTHERS))
    return [Pair(A100, a, b) for a, b in drawn if counts(a) != counts(b)][:OTHERS]


def spread(pairs: Sequence[Pair]) -> list[Pair]:
    return list(pairs[:: max(1, len(pairs) // OTHERS)])


def sets() -> dict[str, list[Pair]]:
    """The first is the one that the bounds are for."""
    return {
        "documented": documented(),
        "documented_h100": spread(documented(H100)),
        "documented_at_places": spread(documented(placed=True)),
        "mig_parted": spread(published()),
        "any_layout": anything(),
    }


def measure(chosen: Sequence[Pair]) -> list[Measured]:
    """One worker: a node of its own for each model."""
    found = []
    for model in sorted({pair.model for pair in chosen}):
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            sim = Simulator(INSTALLED, root / "state")
            os.environ["NVML_SIM_STATE"] = str(sim.state)
            sim.create([GpuSpec(model, mig=True)], root=root)
            gpus = NvmlGpus(str(root / "dev" / "nvidia-caps"), str(root / "proc"))
            bench = Bench(sim, gpus)
            found += [bench.measure(pair) for pair in chosen if pair.model == model]
            gpus.close()
    return found


# -- the inventory ---------------------------------------------------------------------------------


def leaves(value: Any) -> int:
    """Single values in plain data: the facts that an inventory reports."""
    if isinstance(value, dict):
        return sum(leaves(v) for k, v in value.items() if k != "files")
    return sum(map(leaves, value)) if isinstance(value, list) else 1


def inventory_calls(root: Path) -> tuple[float, float]:
    """NVML calls and facts for each instance, of 8 GPUs with 7 instances."""
    sim = Simulator(INSTALLED, root / "state")
    os.environ["NVML_SIM_STATE"] = str(sim.state)
    sim.create([GpuSpec(A100, mig=True)] * 8, root=root)
    gpus = NvmlGpus(str(root / "dev" / "nvidia-caps"), str(root / "proc"))
    Relayout(gpus).apply({n: Wanted(devices={"1g.5gb": 7}) for n in range(8)})
    gpus.close()
    before = sim.dump()["calls"]
    fresh = NvmlGpus(str(root / "dev" / "nvidia-caps"), str(root / "proc"))
    driver, seen = fresh.driver(), fresh.inventory()
    calls = sim.dump()["calls"] - before
    fresh.close()
    return calls / 56, leaves(inventory_json(driver, seen, {}, lambda pid: pid)) / 56


def mean(values: Iterable[float]) -> float:
    """The geometric one."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs))


def claims_of(name: str, times: Sequence[Measured], *, bound: bool) -> list[Claim]:
    """What one set shows; the names of the first, which has the bounds, stand alone."""
    before = "" if bound else f"{name}: "
    ratios = [m.applied / m.rebuilt for m in times]
    return [
        Claim(f"{before}apply_over_rebuild_geomean", mean(ratios), "x", "<= 0.6" if bound else ""),
        Claim(f"{before}apply_over_rebuild_max", max(ratios), "x", "<= 1.05" if bound else ""),
        Claim(f"{before}least_over_rebuild_geomean", mean(m.least / m.rebuilt for m in times), "x"),
        Claim(f"{before}apply_over_least_geomean", mean(m.applied / m.least for m in times), "x"),
        Claim(f"{before}apply_over_least_max", max(m.applied / m.least for m in times), "x"),
        Claim(f"{before}apply_mean", sum(m.applied for m in times) / len(times), "s"),
        Claim(f"{before}rebuild_mean", sum(m.rebuilt for m in times) / len(times), "s"),
        Claim(f"{before}pairs", len(times), "n"),
    ]


def print_pairs(times: Iterable[Measured]) -> None:
    print("apply  least  rebuild  from -> to")
    for m in sorted(times, key=lambda m: m.applied / m.rebuilt):
        pair = f"{m.pair.source} -> {m.pair.target}"
        print(f"{m.applied:5.3f}  {m.least:5.3f}  {m.rebuilt:7.3f}  {pair}")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--every", type=int, default=1, help="Only every N-th pair.")
    parser.add_argument("--pairs", action="store_true", help="Each pair with its least time.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        calls, facts = inventory_calls(Path(folder))
    shown: list[Claim] = []
    with ProcessPoolExecutor(WORKERS, get_context("spawn")) as pool:
        for number, (name, pairs) in enumerate(sets().items()):
            chosen = pairs[:: options.every]
            parts = pool.map(measure, [chosen[n::WORKERS] for n in range(WORKERS)])
            times = [measured for part in parts for measured in part]
            shown += claims_of(name, times, bound=number == 0)
            if options.pairs:
                print_pairs(times)
    shown += [
        Claim("layouts", len(LAYOUTS), "n", ">= 12"),
        Claim("inventory_calls_per_instance", calls, "calls", f"<= {facts:.3f}"),
        Claim("inventory_facts_per_instance", facts, "facts"),
    ]
    return show(shown, as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
