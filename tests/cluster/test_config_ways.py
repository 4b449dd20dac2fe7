"""The ways of holding configuration: on the running Slurm, with jobs that live through reshapes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.test_reshape import (
    computing,
    ended_well,
    gres,
    index_of,
    reconcile_until,
    served,
)
from tests.testbed.cluster import A100, L40S, NodeSpec
from tests.testbed.product import CUDA_JOB, ManagedCluster, in_way

NODE = "a100-1"
ONE = (NodeSpec(NODE, (A100, A100)),)
TWO = (*ONE, NodeSpec("mixed-1", (A100, L40S), partitions=("other",)))
SITE = ("/etc/slurm/slurm.conf", "/etc/slurm/gres.conf")
AT_ONCE = "reconfigure_interval_s: 0"

PLAIN_JOB = """\
until [ -e /tmp/jobs/$SLURM_JOB_ID.stop ]; do sleep 0.2; done
srun true
"""
"""On a node that slurm-mig does not manage: there is no slot map that its hooks could read."""

WAYS = {
    "shared, reconfigure": {"configuration": in_way("shared", "reconfigure", AT_ONCE)},
    "per-host, node": {
        "configuration": in_way("per-host", "node"),
        "own_files": ("a100-1", "mixed-1"),
    },
    "configless, reconfigure": {
        "configuration": in_way("configless", "reconfigure", AT_ONCE),
        "configless": ("a100-1", "mixed-1"),
    },
    "configless, node": {
        "configuration": in_way("configless", "node"),
        "own_files": ("a100-1",),
        "configless": ("mixed-1",),
    },
}


@pytest.fixture(scope="module", params=WAYS)
def way(request: pytest.FixtureRequest) -> Iterator[ManagedCluster]:
    """A cluster in each way, the first node enrolled; the other is the site's own."""
    with ManagedCluster(nodes=TWO, **WAYS[request.param]) as cluster:
        at_first = copies(cluster), cluster.node(NODE)["Gres"]
        cluster.slurm_mig("enrol", NODE)
        yield cluster
        # Whatever the tests did: every copy is the site's again, to the byte.
        cluster.slurm_mig("leave", NODE)
        assert (copies(cluster), cluster.node(NODE)["Gres"]) == at_first
        job = cluster.submit("true", "--gres=gpu:1g.5gb:1", "-w", NODE)
        cluster.wait_job(job, "COMPLETED")


@pytest.fixture
def cluster(way: ManagedCluster) -> Iterator[ManagedCluster]:
    """The way's cluster; afterwards no job is left."""
    yield way
    way.run("scancel", "--user=alice", check=False)
    way.wait_for(
        lambda: not way.run("squeue", "-h", check=False).stdout.strip(), 30, "every job to be gone"
    )


def copies(cluster: ManagedCluster) -> list[str]:
    """The site's files as they are on the head and where the node has its own."""
    hosts = [None, *(n for n in cluster.own_files if n == NODE)]
    return [cluster.read(path, host) for host in hosts for path in SITE]


def test_jobs_live_through_reshapes_and_a_vanishing_type(cluster: ManagedCluster) -> None:
    """1g.5gb goes to the last one while jobs of other types run, and comes back."""
    other = cluster.submit(PLAIN_JOB, "--gres=gpu:l40s:1", "-p", "other")
    cluster.wait_job(other, "RUNNING")
    first = computing(cluster, "gpu:1g.5gb:1", "-w", NODE)
    threes = [cluster.submit(CUDA_JOB, "--gres=gpu:3g.20gb:1") for _ in range(3)]
    for job in threes:
        reconcile_until(cluster, job)
        served(cluster, job)
    ended_well(cluster, first)
    busy = {job: index_of(cluster, job) for job in threes}
    four = cluster.submit(CUDA_JOB, "--gres=gpu:3g.20gb:1")
    reconcile_until(cluster, four)
    served(cluster, four)
    assert {job: index_of(cluster, job) for job in threes} == busy
    shown = gres(cluster)
    assert shown["3g.20gb"] == 4
    assert "1g.5gb" not in shown
    assert not {"INVALID_REG", "DRAIN"} & set(cluster.node(NODE)["State"].split("+"))
    assert cluster.node("mixed-1")["Gres"] == "gpu:1g.5gb:7,gpu:l40s:1"
    ended_well(cluster, *threes, four)
    cluster.run("touch", f"/tmp/jobs/{other}.stop")
    cluster.wait_job(other, "COMPLETED")
    assert cluster.slurm_mig("reconcile").stdout.startswith("nothing to do")
