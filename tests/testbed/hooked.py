"""Two nodes of different kinds with every hook, and what tests of jobs between the hooks ask."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.testbed.cluster import A30, A100, NodeSpec
from tests.testbed.product import ManagedCluster

NODE = "a100-1"
RUN = "/run/slurm-mig"


@contextmanager
def hooked() -> Iterator[ManagedCluster]:
    """The cluster, enrolled."""
    nodes = (
        NodeSpec(NODE, (A100,), partitions=("main", "a100"), features="a100"),
        NodeSpec("a30-1", (A30, A100), partitions=("main", "a30"), features="a30"),
    )
    with ManagedCluster(nodes=nodes, hooks=True) as cluster:
        cluster.enrol()
        yield cluster


def marks(cluster: ManagedCluster) -> dict[str, bool]:
    """Is each slot of the node clean, by UUID?"""
    found = cluster.sh(f"cd {RUN}/clean; stat -c '%n %s' *", node=NODE)
    return {name: size != "0" for name, size in map(str.split, found.splitlines())}


def check(cluster: ManagedCluster) -> str:
    """What the path unit runs once an epilog has noted a job."""
    return cluster.run("slurm-mig", "hook", "check", node=NODE, check=False).stdout


def ended(cluster: ManagedCluster, *jobs: int, state: str = "COMPLETED") -> None:
    """The jobs have ended, epilogs and all."""
    for job in jobs:
        shown = cluster.wait_job(job, "COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", timeout=60)
        assert shown["JobState"] == state, cluster.output(job)
    cluster.wait_for(lambda: "COMPLETING" not in cluster.node(NODE)["State"], 30, "the epilog")


def alive(cluster: ManagedCluster, pid: int) -> bool:
    return cluster.run("test", "-e", f"/proc/{pid}", check=False).returncode == 0
