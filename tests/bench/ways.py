"""What a live reshape costs in each way of holding Slurm's configuration.

    scripts/bench ways [--json]

One node with two A100, two jobs running on it, NVML answering at once. A reshape that brings a new
type, and one under which it vanishes again, in turn, in a cluster of each way.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from typing import Any

from tests.bench.claims import Claim, show
from tests.bench.reshape import LARGE, NODE, SMALL, reshape, seconds
from tests.testbed.cluster import A100, L40S, NodeSpec
from tests.testbed.product import CUDA_JOB, ManagedCluster
from tests.testbed.ways import OTHER, WAYS

ROUNDS = 6
NODES = (NodeSpec(NODE, (A100, A100)), NodeSpec(OTHER, (A100, L40S), partitions=("other",)))


def measure(options: dict[str, Any]) -> tuple[list[float], list[float]]:
    """Seconds of each reshape to a new type, and of each that takes it away."""
    with ManagedCluster(nodes=NODES, **options) as cluster:
        cluster.slurm_mig("enrol", NODE)
        for _ in range(2):
            job = cluster.submit(CUDA_JOB, "--gres=gpu:1g.5gb:1", "-w", NODE)
            cluster.wait_job(job, "RUNNING")
        for layout in (LARGE, SMALL):
            reshape(cluster, layout)
        times = [seconds(reshape(cluster, layout)) for layout in (LARGE, SMALL) * ROUNDS]
        return times[::2], times[1::2]


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--json", action="store_true")
    as_json = options.parse_args().json
    claims = []
    for way, made_so in WAYS.items():
        print(way, file=sys.stderr)
        comes, goes = measure(made_so)
        name = way.replace(", ", "_").replace("-", "_")
        claims += [
            Claim(f"{name}_new_type_s", statistics.median(comes), "s"),
            Claim(f"{name}_vanishing_type_s", statistics.median(goes), "s"),
        ]
    return show(claims, as_json=as_json)


if __name__ == "__main__":
    sys.exit(main())
