"""`apply` between every two of a set of layouts, against destroying and creating everything.

The simulated NVML takes the time that real hardware was published to take. For every two
configurations, the second wished for by count, both ways start from the same placements, in the
same run; `apply` may keep what is there, the usual way may not. Also: how many NVML calls the
inventory of a large node makes.

    scripts/bench nvml [--json] [--every N]
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from slurm_mig.adapters.gpus import NvmlGpus
from slurm_mig.core import geometry
from slurm_mig.core.layouts import Wanted, devices_of, parse_inline
from slurm_mig.core.model import Layout
from slurm_mig.gpurender import inventory_json
from slurm_mig.relayout import Relayout
from tests.bench.claims import Claim, show
from tests.testbed.nvml_sim import GpuSpec, Paths, Simulator

A100 = "NVIDIA A100-SXM4-40GB"
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

Pair = tuple[str, str]


def counts(words: str) -> dict[str, int]:
    """A configuration as people wish it: devices by count."""
    found: dict[str, int] = {}
    for word in words.split(","):
        profile = word.partition("@")[0]
        found[profile] = found.get(profile, 0) + 1
    return found


class Bench:
    """One A100 and the two ways."""

    def __init__(self, sim: Simulator, gpus: NvmlGpus) -> None:
        self.sim = sim
        self.gpus = gpus

    def start_from(self, words: str) -> None:
        """The configuration at its places, made without delays."""
        self.sim.timing("none")
        Relayout(self.gpus).apply(parse_inline([f"gpu0={words}"], self.gpus.inventory()))
        self.sim.timing("hardware")

    def applied(self, devices: dict[str, int]) -> float:
        began = time.monotonic()
        Relayout(self.gpus).apply({0: Wanted(devices=devices)})
        return time.monotonic() - began

    def rebuilt(self, devices: dict[str, int]) -> float:
        """The usual way: look, destroy everything, create everything, look."""
        began = time.monotonic()
        gpu = self.gpus.inventory()[0]
        target: Layout = next(geometry.ways_to_add(gpu, frozenset(), devices))
        for instance in gpu.instances:
            self.gpus.destroy(0, instance.gi)
        for placement in sorted(target):
            self.gpus.create(0, placement)
        if devices_of(self.gpus.inventory()[0]) != devices:
            raise RuntimeError(f"rebuilding {devices} went wrong")
        return time.monotonic() - began

    def times(self, source: str, target: str) -> tuple[float, float]:
        """Seconds of `apply` and of the usual way."""
        self.start_from(source)
        usual = self.rebuilt(counts(target))
        self.start_from(source)
        return self.applied(counts(target)), usual


def pairs() -> list[Pair]:
    """Every two configurations, both ways, but those that are the same by count: from one of them
    to the other `apply` has nothing to do."""
    return [(a, b) for a in LAYOUTS for b in LAYOUTS if counts(a) != counts(b)]


def measure(chosen: Sequence[Pair]) -> list[tuple[float, float]]:
    """One worker: a node of its own."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        sim = Simulator(INSTALLED, root / "state")
        os.environ["NVML_SIM_STATE"] = str(sim.state)
        sim.create([GpuSpec(A100, mig=True)], root=root)
        gpus = NvmlGpus(str(root / "dev" / "nvidia-caps"), str(root / "proc"))
        bench = Bench(sim, gpus)
        found = [bench.times(a, b) for a, b in chosen]
        gpus.close()
        return found


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


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--every", type=int, default=1, help="Only every N-th pair.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        calls, facts = inventory_calls(Path(folder))
    chosen = pairs()[:: options.every]
    with ProcessPoolExecutor(WORKERS, get_context("spawn")) as pool:
        parts = pool.map(measure, [chosen[n::WORKERS] for n in range(WORKERS)])
        times = [pair for part in parts for pair in part]
    ratios = [ours / usual for ours, usual in times]
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    middle = sorted(ratios)[len(ratios) // 2]
    return show(
        [
            Claim("apply_over_rebuild_geomean", mean, "x", "<= 0.6"),
            Claim("apply_over_rebuild_max", max(ratios), "x", "<= 1.05"),
            Claim("apply_over_rebuild_median", middle, "x"),
            Claim("apply_mean", sum(t for t, _ in times) / len(times), "s"),
            Claim("rebuild_mean", sum(t for _, t in times) / len(times), "s"),
            Claim("pairs", len(times), "n"),
            Claim("layouts", len(LAYOUTS), "n", ">= 12"),
            Claim("inventory_calls_per_instance", calls, "calls", f"<= {facts:.3f}"),
            Claim("inventory_facts_per_instance", facts, "facts"),
        ],
        as_json=options.json,
    )


if __name__ == "__main__":
    sys.exit(main())
