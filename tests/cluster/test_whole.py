"""Whole GPUs as a layout: MIG switched off and on for the queue, beside slots that stay busy."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest

from slurm_mig.core import demand
from tests.testbed.cluster import A100, H100, L40S, NodeSpec
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
    site.run("scancel", "--user=alice")
    site.wait_for(lambda: not site.run("squeue", "-h").stdout.strip(), 30, "every job to be gone")


def computing(cluster: ManagedCluster, gres: str, *options: str) -> int:
    """A job that computes until it is told to stop, after at most a few cycles."""
    job = cluster.submit(CUDA_JOB, f"--gres={gres}", *options)
    for _ in range(4):
        if cluster.job(job)["JobState"] != "PENDING":
            break
        cluster.slurm_mig("reconcile")
    cluster.wait_for(partial(cluster.reports, job, "first"), 20, f"job {job} to compute")
    return job


def stop(cluster: ManagedCluster, *jobs: int) -> None:
    """The jobs end well, on the devices that they began on."""
    for job in jobs:
        cluster.run("touch", f"/tmp/jobs/{job}.stop")
    for job in jobs:
        shown = cluster.wait_job(job, "COMPLETED", "FAILED")
        assert shown["JobState"] == "COMPLETED", cluster.output(job)
        first, second = cluster.reports(job, "first"), cluster.reports(job, "second")
        assert first[0]["uuid"] == second[0]["uuid"]


def modes(cluster: ManagedCluster, node: str) -> list[bool]:
    return [gpu["mig"] for gpu in cluster.sim(node)["gpus"]]


def gres(cluster: ManagedCluster, node: str) -> dict[str, int]:
    return demand.parse_gres(cluster.node(node)["Gres"])


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
    stop(cluster, whole)
    small = computing(cluster, "gpu:3g.20gb:1", "-C", "mixed")
    assert sorted(modes(cluster, "mixed")) == [False, False, True]
    assert cluster.job(other)["GRES"] == index
    stop(cluster, small, other)


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
    stop(cluster, small, whole)
    for _ in range(4):
        cluster.slurm_mig("reconcile")
        if cluster.job(wants)["JobState"] != "PENDING":
            break
    cluster.wait_job(wants, "COMPLETED")


def test_where_the_mode_changes_without_a_reset(cluster: ManagedCluster) -> None:
    whole = computing(cluster, "gpu:h100:1")
    assert modes(cluster, "hopper") == [False]
    stop(cluster, whole)
    small = computing(cluster, "gpu:1g.10gb:7", "-C", "hopper")
    assert modes(cluster, "hopper") == [True]
    stop(cluster, small)


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
    stop(cluster, whole)
