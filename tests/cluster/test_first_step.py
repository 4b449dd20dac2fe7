"""The first step of a job, asked for around the end of a reshape."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from slurm_mig.core import demand
from tests.testbed.cluster import A100, NodeSpec
from tests.testbed.product import ManagedCluster

NODE = "a100-1"
FIRST_STEP = """\
until [ -e /tmp/jobs/first.$SLURM_JOB_ID ]; do sleep 0.01; done
srun --immediate=1 true && echo launched || echo refused
"""
"""A job that has launched no step yet asks for its first one when told, and does not wait for it:
an srun without `--immediate` that is told to wait asks again after two minutes."""


@pytest.fixture(scope="module")
def node() -> Iterator[ManagedCluster]:
    with ManagedCluster(nodes=(NodeSpec(NODE, (A100, A100)),)) as cluster:
        cluster.enrol()
        yield cluster


def waiting(cluster: ManagedCluster) -> int:
    """A running job that is about to launch its first step."""
    job = cluster.submit(FIRST_STEP, "--gres=gpu:1g.5gb:1")
    cluster.wait_job(job, "RUNNING")
    return job


def wanting(cluster: ManagedCluster) -> int:
    """A job for a profile that the node does not offer now."""
    shown = demand.parse_gres(cluster.node(NODE)["Gres"])
    absent = next(p for p in ("3g.20gb", "2g.10gb", "4g.20gb") if p not in shown)
    return cluster.submit("true", f"--gres=gpu:{absent}:1")


def served(cluster: ManagedCluster, job: int) -> None:
    for _ in range(4):
        cluster.slurm_mig("reconcile")
        if cluster.job(job)["JobState"] != "PENDING":
            break
    cluster.wait_job(job, "COMPLETED")


def launched(cluster: ManagedCluster, job: int) -> bool:
    """The job is told to launch; did it get its step?"""
    cluster.run("touch", f"/tmp/jobs/first.{job}")
    cluster.wait_for(lambda: cluster.output(job).endswith("ed\n"), 20, f"{job} to have its answer")
    return cluster.output(job).endswith("launched\n")


def update(cluster: ManagedCluster, *words: str) -> None:
    cluster.run("scontrol", "update", f"NodeName={NODE}", *words)


def test_what_slurm_does_on_a_node_that_was_resumed(node: ManagedCluster) -> None:
    """Out of DRAIN no job's first step starts before the node has registered; out of FAIL it does,
    as the node is never NOT_RESPONDING. A job that has had a step is not asked to wait."""
    first, later = waiting(node), waiting(node)
    before = node.submit("srun true; until [ -e /tmp/jobs/go ]; do sleep 0.01; done; "
                         "srun --immediate=1 true", "--gres=gpu:1g.5gb:1")  # fmt: skip
    node.wait_for(lambda: f"[{before}.0] done" in node.read(f"/var/log/slurm/slurmd-{NODE}.log"),
                  20, "its step")  # fmt: skip
    pid = node.pid("slurmd", NODE)
    update(node, "State=DRAIN", "Reason=test")
    node.sh(f"kill -STOP {pid}")
    try:
        update(node, "State=RESUME")
        assert "NOT_RESPONDING" in node.node(NODE)["State"]
        assert not launched(node, first)
        assert "Requested nodes are busy" in node.output(first)
    finally:
        node.sh(f"kill -CONT {pid}")
    node.register(NODE)
    update(node, "State=DRAIN", "Reason=test")
    update(node, "State=FAIL", "Reason=test")
    update(node, "State=RESUME")
    assert "NOT_RESPONDING" not in node.node(NODE)["State"]
    assert launched(node, later)
    node.run("touch", "/tmp/jobs/go")
    assert node.wait_job(before, "COMPLETED", "FAILED")["JobState"] == "COMPLETED"


@pytest.mark.parametrize("point", ["cluster.loosen", "cluster.resume"])
def test_it_starts_although_the_cycle_died_right_after(node: ManagedCluster, point: str) -> None:
    """No moment of a release leaves the node NOT_RESPONDING: nobody has to see to it quickly."""
    job = waiting(node)
    wants = wanting(node)
    died = node.run("python", "-m", "tests.testbed.die_at", point, check=False)
    assert died.returncode == -9, died.stdout + died.stderr
    assert "NOT_RESPONDING" not in node.node(NODE)["State"]
    assert launched(node, job)
    served(node, wants)
    assert "FAIL" not in node.node(NODE)["State"]


def test_no_reshape_makes_a_node_silent(node: ManagedCluster) -> None:
    """slurmctld says when a node that did not respond does again: it has nothing to say."""
    said = "Node a100-1 now responding"
    before = node.read("/var/log/slurm/slurmctld.log").count(said)
    reshaped = len(node.history())
    for _ in range(3):
        served(node, wanting(node))
    entries = node.history()[reshaped:]
    assert len(entries) >= 3
    for entry in entries:
        assert 0 < entry["seconds"]["fenced"] <= entry["finished"] - entry["started"]
    assert node.read("/var/log/slurm/slurmctld.log").count(said) == before
