"""Whole GPUs as a layout: MIG switched off and on for the queue, beside slots that stay busy."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.testbed.cluster import A100, H100, L40S, NodeSpec
from tests.testbed.jobs import ended_well, gres, no_jobs, reconcile_until, served
from tests.testbed.product import CONFIGURATION, CUDA_JOB, ManagedCluster

GROUPS = """\
groups:
- {nodes: mixed, whole_type: a100, mode_change: reset}
- {nodes: hopper, whole_type: h100, mode_change: resetless}
- {nodes: ampere, whole_type: a100x, mode_change: resetless}
"""
NODES = (
    NodeSpec("mixed", (A100, A100, L40S), features="mixed"),
    NodeSpec("hopper", (H100,), features="hopper"),
    NodeSpec("ampere", (A100,), features="ampere"),
)


@pytest.fixture(scope="module")
def site() -> Iterator[ManagedCluster]:
    with ManagedCluster(nodes=NODES, configuration=CONFIGURATION + GROUPS) as cluster:
        cluster.enrol()
        yield cluster


@pytest.fixture
def cluster(site: ManagedCluster) -> Iterator[ManagedCluster]:
    yield site
    no_jobs(site)


def computing(cluster: ManagedCluster, wanted: str, *options: str) -> int:
    """A job that computes until it is told to stop, after as many cycles as it takes."""
    job = cluster.submit(CUDA_JOB, f"--gres={wanted}", *options)
    reconcile_until(cluster, job)
    served(cluster, job)
    return job


def modes(cluster: ManagedCluster, node: str) -> list[bool]:
    return [gpu["mig"] for gpu in cluster.sim(node)["gpus"]]


def test_two_whole_gpus_beside_idle_small_instances(cluster: ManagedCluster) -> None:
    """And a GPU without MIG, whose job goes on through both changes of mode."""
    other = computing(cluster, "gpu:l40s:1")
    index = cluster.job(other)["GRES"]
    total = sum(gres(cluster, "mixed").values())
    whole = computing(cluster, "gpu:a100:2")
    assert modes(cluster, "mixed") == [False, False, False]
    assert gres(cluster, "mixed")["a100"] == 2
    assert sum(gres(cluster, "mixed").values()) == total
    uuids = {gpu["uuid"] for gpu in cluster.sim("mixed")["gpus"][:2]}
    assert cluster.reports(whole, "first")[0]["uuid"] in uuids
    ended_well(cluster, whole)
    small = computing(cluster, "gpu:3g.20gb:1", "-C", "mixed")
    assert sorted(modes(cluster, "mixed")) == [False, False, True]
    assert cluster.job(other)["GRES"] == index
    ended_well(cluster, small, other)


def test_a_gpu_with_a_busy_instance_stays_in_mig_mode(cluster: ManagedCluster) -> None:
    cluster.wait_job(cluster.submit("true", "--gres=gpu:l40s:1"), "COMPLETED")
    small = computing(cluster, "gpu:2g.10gb:1", "-C", "mixed")
    gpu = next(
        n for n, g in enumerate(cluster.sim("mixed")["gpus"])
        for i in g["instances"] if i["profile"] == "2g.10gb"
    )  # fmt: skip
    wants = cluster.submit("true", "--gres=gpu:a100:2", "--nice=100")
    done = cluster.slurm_mig("reconcile")
    assert f"job {small} ends" in done.stdout
    assert modes(cluster, "mixed")[gpu]
    whole = computing(cluster, "gpu:a100:1")
    assert modes(cluster, "mixed")[gpu]
    ended_well(cluster, small, whole)
    reconcile_until(cluster, wants)
    cluster.wait_job(wants, "COMPLETED")


def test_where_the_mode_changes_without_a_reset(cluster: ManagedCluster) -> None:
    whole = computing(cluster, "gpu:h100:1")
    assert modes(cluster, "hopper") == [False]
    ended_well(cluster, whole)
    small = computing(cluster, "gpu:1g.10gb:7", "-C", "hopper")
    assert modes(cluster, "hopper") == [True]
    ended_well(cluster, small)


def test_where_the_site_does_not_allow_a_reset(cluster: ManagedCluster) -> None:
    done = cluster.run("sbatch", "--gres=gpu:a100x:1", "--wrap=true", user="alice", check=False)
    assert done.returncode
    assert "no GPU of partition main can ever be gpu:a100x" in done.stderr
    assert modes(cluster, "ampere") == [True]


def test_whole_gpus_survive_a_restart_of_everything(cluster: ManagedCluster) -> None:
    whole = computing(cluster, "gpu:h100:1")
    cluster.restart_daemon("slurmctld")
    cluster.wait_for(lambda: cluster.run("sinfo", "-h", check=False).stdout, 30, "slurmctld")
    cluster.restart_daemon("slurmd", "hopper")
    cluster.register("hopper")
    assert {n["name"]: n["condition"] for n in cluster.status()["nodes"]}["hopper"] == "usable"
    ended_well(cluster, whole)
