"""Many nodes: what it costs to ask them, and what the others cost a change of one.

    scripts/bench fleet [--json]

20 real slurmd with simulated GPUs and 180 nodes that are replayed from a recording of a real one
(tests/testbed/fleet_cycle.py says what is replayed) are observed and planned in one cycle, which
changes one real node. The same change in a cluster of 3 real nodes, in paired rounds: without the
time that a cycle looks at nodes and queue. All 20 nodes' own programs run on this machine's cores,
which on a site is theirs to do.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from typing import Any

from tests.bench.claims import Claim, show
from tests.testbed.cluster import A100, NodeSpec
from tests.testbed.product import CONFIGURATION, ManagedCluster
from tests.testbed.replayed import LIKE, site_line

REAL, ALL, FEW = 20, 200, 3
ROUNDS = 4
PROFILES = ("3g.20gb", "7g.40gb")
PLAY = """\
#!/bin/sh
# The remote command: a real node's own, or the recording.
case $1 in
replayed-*) while read -r line; do cat /run/replayed.json; done ;;
*) exec on-node "$1" slurm-mig node serve ;;
esac
"""


def cluster_of(count: int, extra: str = "") -> ManagedCluster:
    """Nodes that are alike, but for the one that is to change."""
    nodes = tuple(
        NodeSpec(f"real-{n:02}", (A100,), cpus=8, memory_mib=4000, partitions=("main",),
                 features="first" if n == 1 else "")
        for n in range(1, count + 1)
    )  # fmt: skip
    command = '[on-node, "%h", slurm-mig, node, serve]'
    text = CONFIGURATION.replace(command, '[/run/play, "%h"]')
    return ManagedCluster(nodes=nodes, configuration=text, extra_conf=extra)


def prepare(cluster: ManagedCluster) -> None:
    cluster.write("/run/play", PLAY, mode="755")
    cluster.enrol()


def cycle(cluster: ManagedCluster, number: int, replayed: int) -> dict[str, Any]:
    """One job that the first node must be cut for, and the cycle that does it."""
    profile = PROFILES[number % len(PROFILES)]
    job = cluster.submit("true", f"--gres=gpu:{profile}:1", "--constraint=first")
    done = cluster.run(
        "python", "-m", "tests.testbed.fleet_cycle", "--replayed", str(replayed), timeout=180
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert "real-01 reshaped" in found["sentence"], found
    assert "replayed" not in found["sentence"], "nothing is done to what is not there"
    cluster.wait_job(job, "COMPLETED", timeout=60)
    return found


def rest(found: dict[str, Any]) -> float:
    """What a cycle took beside looking at nodes and queue."""
    return float(found["seconds"] - found["looked_s"])


def measure() -> list[Claim]:
    more = ALL - REAL
    with cluster_of(REAL, site_line(more)) as many, cluster_of(FEW) as few:
        prepare(many)
        prepare(few)
        many.run("python", "-m", "tests.testbed.fleet_cycle", "--record", LIKE,
                 "--replayed", str(more), timeout=120)  # fmt: skip
        ratios, looked, peak = [], [], 0.0
        for number in range(ROUNDS):
            print(f"round {number + 1} of {ROUNDS}", file=sys.stderr)
            small, large = cycle(few, number, 0), cycle(many, number, more)
            ratios.append(rest(large) / rest(small))
            print(f"  {rest(small):.2f} s and {rest(large):.2f} s", file=sys.stderr)
            looked.append(large["looked_s"])
            peak = max(peak, large["peak_mib"])
    return [
        Claim("fleet_nodes", ALL, ""),
        Claim("fleet_real_slurmd", REAL, ""),
        Claim("fleet_observe_s_per_node", statistics.median(looked) / ALL, "s"),
        Claim("fleet_peak_mib", peak, "MiB"),
        Claim("fleet_cycle_ratio", statistics.median(ratios), "", "<= 2"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    sys.exit(show(measure(), as_json=given.json))


if __name__ == "__main__":
    main()
