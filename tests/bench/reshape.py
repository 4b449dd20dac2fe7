"""A live reshape against the bare procedure: the same change, the same node, paired rounds.

    scripts/bench reshape [--json]

The bare procedure (`reshape_bare.sh`) is what a careful administrator's shell script does, with
nothing around it and without touching the GPU. NVML answers at once, but for the rounds that say
otherwise. Two jobs run on the node throughout.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from slurm_mig.core import demand
from tests.bench.claims import Claim, show
from tests.testbed.cluster import A100, NodeSpec
from tests.testbed.product import CUDA_JOB, ManagedCluster

ROUNDS = 20
NODE = "a100-1"
SMALL = tuple(f"1g.5gb@{n}" for n in range(7))
LARGE = ("3g.20gb@4", "1g.5gb@0", "1g.5gb@1", "1g.5gb@2", "1g.5gb@3")
OURS = "/etc/slurm/slurm-mig"
BARE = Path(__file__).with_name("reshape_bare.sh")

DESTROY_S = {"1g.5gb": 0.21, "3g.20gb": 0.21}
"""Published times on an A100 (docs/facts.md), which the simulator's `hardware` setting uses."""
CREATE_S = {"1g.5gb": 0.16, "3g.20gb": 0.19}


def reshape(cluster: ManagedCluster, layout: tuple[str, ...]) -> dict[str, Any]:
    done = cluster.run("python", "-m", "tests.testbed.reshape_once", NODE, "1", *layout)
    record: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return record


def seconds(record: dict[str, Any]) -> float:
    return float(record["finished"] - record["started"])


def keep_files(cluster: ManagedCluster, name: str) -> None:
    """What the bare procedure will copy, and the line that it gives to slurmctld."""
    cluster.sh(f"mkdir -p /run/bare; cp {OURS}/gres.conf /run/bare/{name}-gres.conf; "
               f"cp {OURS}/nodes.conf /run/bare/{name}-nodes.conf")  # fmt: skip
    shown = cluster.node(NODE)["Gres"]
    cluster.write(f"/run/bare/{name}-shown", shown)


def bare(cluster: ManagedCluster, name: str, vanishing: str) -> float:
    """Seconds of the bare procedure to the state that was kept under this name."""
    done = cluster.run("sh", str(BARE), NODE, f"/run/bare/{name}", vanishing)
    return float(done.stdout)


def ratio(ours: list[float], theirs: list[float]) -> float:
    """Median of the paired rounds' ratios."""
    return statistics.median(b / a for b, a in zip(ours, theirs, strict=True))


def rounds(cluster: ManagedCluster) -> list[Claim]:
    reshape(cluster, LARGE)
    keep_files(cluster, "large")
    large = set(demand.parse_gres(cluster.node(NODE)["Gres"]))
    reshape(cluster, SMALL)
    keep_files(cluster, "small")
    vanishing = " ".join(sorted(large - set(demand.parse_gres(cluster.node(NODE)["Gres"]))))
    times: dict[str, list[float]] = {key: [] for key in ("b1", "b2", "a1", "a2", "c1", "c2")}
    for number in range(ROUNDS):
        print(f"round {number + 1} of {ROUNDS}", file=sys.stderr)
        times["b1"].append(seconds(reshape(cluster, LARGE)))
        times["b2"].append(seconds(reshape(cluster, SMALL)))
        times["a1"].append(bare(cluster, "large", ""))
        times["a2"].append(bare(cluster, "small", vanishing))
        cluster.run("nvml-sim", "timing", "hardware", node=NODE)
        times["c1"].append(seconds(reshape(cluster, LARGE)))
        times["c2"].append(seconds(reshape(cluster, SMALL)))
        cluster.run("nvml-sim", "timing", "none", node=NODE)
    delay_1 = 3 * DESTROY_S["1g.5gb"] + CREATE_S["3g.20gb"]
    delay_2 = DESTROY_S["3g.20gb"] + 3 * CREATE_S["1g.5gb"]
    with_delays = [
        *((c, b + delay_1) for c, b in zip(times["c1"], times["b1"], strict=True)),
        *((c, b + delay_2) for c, b in zip(times["c2"], times["b2"], strict=True)),
    ]
    middle = {key: statistics.median(values) for key, values in times.items()}
    return [
        Claim("bare_1_s", middle["a1"], "s"),
        Claim("bare_2_s", middle["a2"], "s"),
        Claim("reshape_1_s", middle["b1"], "s"),
        Claim("reshape_2_s", middle["b2"], "s"),
        Claim("reshape_over_bare_1", ratio(times["b1"], times["a1"]), "", "<= 2.5"),
        Claim("reshape_over_bare_2", ratio(times["b2"], times["a2"]), "", "<= 2.5"),
        Claim("reshape_hw_over_budget", statistics.median(c / b for c, b in with_delays), "",
              "<= 1.05"),
    ]  # fmt: skip


def cycles(cluster: ManagedCluster) -> list[Claim]:
    """A cycle that finds nothing to do: its time, and the most memory one needs."""
    times, peaks = [], []
    script = (
        "import resource, subprocess; subprocess.run(['slurm-mig', 'reconcile'], check=True, "
        "stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    for _ in range(ROUNDS):
        start = time.monotonic()
        done = cluster.run("python", "-c", script)
        times.append(time.monotonic() - start)
        peaks.append(int(done.stdout) / 1024)
    return [
        Claim("reconcile_peak_mib", max(peaks), "MiB", "<= 120"),
        Claim("idle_cycle_s", statistics.median(times), "s"),
    ]


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--json", action="store_true")
    as_json = options.parse_args().json
    with ManagedCluster(nodes=(NodeSpec(NODE, (A100, A100)),)) as cluster:
        cluster.enrol()
        jobs = [cluster.submit(CUDA_JOB, "--gres=gpu:1g.5gb:1") for _ in range(2)]
        for job in jobs:
            cluster.wait_job(job, "RUNNING")
        claims = [*rounds(cluster), *cycles(cluster)]
        for job in jobs:
            cluster.run("touch", f"/tmp/jobs/{job}.stop")
        for job in jobs:
            cluster.wait_job(job, "COMPLETED")
    return show(claims, as_json=as_json)


if __name__ == "__main__":
    sys.exit(main())
