"""Whole-node jobs: an `--exclusive` job has every slot, fillers and guard too."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from slurm_mig.core import demand
from tests.testbed.cluster import A100, NodeSpec
from tests.testbed.jobs import absent, gres, no_jobs, offered, reconcile_until
from tests.testbed.product import CONFIGURATION, ManagedCluster

NODE = "a100-1"
WHOLE = (("--exclusive",), ("--partition=whole",))
EXCLUSIVE_PARTITION = f"PartitionName=whole Nodes={NODE} OverSubscribe=EXCLUSIVE State=UP\n"
RUNS = """\
while [ ! -e /tmp/jobs/$SLURM_JOB_ID.stop ]; do sleep 0.1; done
srun --ntasks=1 true
"""


@pytest.fixture(scope="module")
def node() -> Iterator[ManagedCluster]:
    with ManagedCluster(nodes=(NodeSpec(NODE, (A100,)),)) as cluster:
        conf = cluster.read("/etc/slurm/slurm.conf")
        cluster.write("/etc/slurm/slurm.conf", conf + EXCLUSIVE_PARTITION)
        cluster.enrol()
        yield cluster


@pytest.fixture
def one(node: ManagedCluster) -> Iterator[ManagedCluster]:
    yield node
    no_jobs(node)


@pytest.mark.parametrize("options", WHOLE)
def test_a_node_is_frozen_under_a_whole_node_job(
    one: ManagedCluster, options: tuple[str, ...]
) -> None:
    """No reshape, and `status` says so; its steps go on; afterwards the queue is served."""
    slots = sum(gres(one, NODE).values())
    runs = one.submit(RUNS, f"--gres=gpu:{offered(one, NODE)}:1", *options)
    one.wait_job(runs, "RUNNING")
    assert len(demand.gpu_indexes(one.job(runs)["GRES"])) == slots
    wants = one.submit("true", f"--gres=gpu:{absent(one, NODE)}:1")
    made = one.sim(NODE)["created"]
    shown = one.node(NODE)["Gres"]
    one.slurm_mig("reconcile")
    assert f"job {runs} has the whole node: frozen until it ends" in one.slurm_mig("status").stdout
    assert (one.sim(NODE)["created"], one.node(NODE)["Gres"]) == (made, shown)
    one.run("touch", f"/tmp/jobs/{runs}.stop")
    one.wait_job(runs, "COMPLETED")
    reconcile_until(one, wants)
    one.wait_job(wants, "COMPLETED")
    assert one.sim(NODE)["created"] > made


@pytest.mark.parametrize("options", WHOLE)
def test_a_whole_node_job_waits_for_an_empty_node(
    one: ManagedCluster, options: tuple[str, ...]
) -> None:
    """Beside another job it could not start: no reshape for it. On the empty node there is one."""
    other = one.submit(RUNS, f"--gres=gpu:{offered(one, NODE)}:1")
    one.wait_job(other, "RUNNING")
    wants = one.submit("true", f"--gres=gpu:{absent(one, NODE)}:1", *options)
    made = one.sim(NODE)["created"]
    one.slurm_mig("reconcile")
    assert one.sim(NODE)["created"] == made
    assert "asks for whole nodes and a100-1 has other jobs" in one.slurm_mig("status").stdout
    one.run("touch", f"/tmp/jobs/{other}.stop")
    one.wait_job(other, "COMPLETED")
    reconcile_until(one, wants)
    one.wait_job(wants, "COMPLETED")


def with_policy(policy: str) -> ManagedCluster:
    configuration = CONFIGURATION.replace("submit:\n", f"submit:\n  exclusive: {policy}\n")
    return ManagedCluster(nodes=(NodeSpec(NODE, (A100,)),), configuration=configuration)


def test_explicit_gives_a_whole_node_job_what_it_asks_for() -> None:
    """Its own device, no filler, no guard; none when it asks for none; the node is not frozen."""
    with with_policy("explicit") as cluster:
        cluster.enrol()
        runs = cluster.submit(RUNS, "--gres=gpu:1g.5gb:1", "--exclusive")
        cluster.wait_job(runs, "RUNNING")
        assert demand.gpu_indexes(cluster.job(runs)["GRES"]) == {0}
        assert cluster.status()["nodes"][0]["condition"] == "usable"
        wants = cluster.submit("true", "--gres=gpu:3g.20gb:1")
        cluster.slurm_mig("reconcile")
        cluster.run("touch", f"/tmp/jobs/{runs}.stop")
        assert cluster.wait_job(runs, "COMPLETED", "FAILED")["JobState"] == "COMPLETED"
        for _ in range(3):
            cluster.slurm_mig("reconcile")
        cluster.wait_job(wants, "COMPLETED")
        none = cluster.submit(RUNS, "--exclusive")
        cluster.wait_job(none, "RUNNING")
        assert not demand.gpu_indexes(cluster.job(none).get("GRES", ""))
        cluster.run("touch", f"/tmp/jobs/{none}.stop")
        assert cluster.wait_job(none, "COMPLETED", "FAILED")["JobState"] == "COMPLETED"


def test_refuse_says_so_at_submit() -> None:
    with with_policy("refuse") as cluster:
        cluster.enrol()
        done = cluster.run("sbatch", "--exclusive", "--wrap=true", user="alice", check=False)
        assert done.returncode
        assert "a whole node of partition main can't be had (--exclusive)" in done.stderr
        shared = cluster.submit("true", "--gres=gpu:1g.5gb:1")
        cluster.wait_job(shared, "COMPLETED")
