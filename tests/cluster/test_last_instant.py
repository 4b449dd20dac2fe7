"""What changes between the plan and the step that it was made for stops that step."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest

from slurm_mig.errors import Exit
from tests.testbed.cluster import A100, NodeSpec
from tests.testbed.jobs import gres, no_jobs
from tests.testbed.product import CONFIGURATION, CUDA_JOB, ManagedCluster

NODE = "a100-1"
GRES_CONF = "/etc/slurm/slurm-mig/gres.conf"
SUBMIT = (
    "job=$(sbatch --parsable --output=/dev/null --gres=gpu:1g.5gb:1 --wrap='exec sleep 600')\n"
    'until [ -n "$(squeue -h -j $job -t RUNNING)" ]; do sleep 0.05; done\n'
    "echo $job > /tmp/jobs/last\n"
)
"""A job that computes nothing yet: only Slurm knows that its instance is used."""


@pytest.fixture(scope="module")
def node() -> Iterator[ManagedCluster]:
    configuration = CONFIGURATION.replace("policy:\n", "policy:\n  fence_deadline_s: 4\n")
    with ManagedCluster(nodes=(NodeSpec(NODE, (A100,)),), configuration=configuration) as cluster:
        cluster.enrol()
        yield cluster


@pytest.fixture
def one(node: ManagedCluster) -> Iterator[ManagedCluster]:
    """The node cut into seven, and a 7g.40gb that waits."""
    if "7g.40gb" in gres(node, NODE):
        back = node.submit("true", "--gres=gpu:1g.5gb:7")
        node.slurm_mig("reconcile")
        node.wait_job(back, "COMPLETED")
    yield node
    no_jobs(node)


def cycle_with(cluster: ManagedCluster, point: str, *command: str) -> str:
    """One cycle in which somebody runs a command at a point."""
    done = cluster.run("python", "-m", "tests.testbed.die_at", point, *command, timeout=120)
    return done.stdout + done.stderr


def untouched(cluster: ManagedCluster, created: int) -> bool:
    return bool(
        cluster.sim(NODE)["created"] == created
        and gres(cluster, NODE)["1g.5gb"] == 7
        and "DRAIN" not in cluster.node(NODE)["State"]
    )


def test_a_job_that_starts_in_the_last_instant_before_the_fence(one: ManagedCluster) -> None:
    """Slurm's allocation alone protects it: it has no process on its instance."""
    one.submit("true", "--gres=gpu:7g.40gb:1")
    created = one.sim(NODE)["created"]
    said = cycle_with(one, "before:fence", "sh", "-ec", SUBMIT)
    job = one.read("/tmp/jobs/last").strip()
    assert f"{NODE} abandoned: job {job} has 1g.5gb@0 of GPU 0" in said
    assert untouched(one, created)
    assert one.job(int(job))["JobState"] == "RUNNING"


def test_a_process_that_starts_behind_the_fence(one: ManagedCluster) -> None:
    """NVML's process list alone protects it: no job of Slurm's owns it."""
    one.submit("true", "--gres=gpu:7g.40gb:1")
    created = one.sim(NODE)["created"]
    uuid = next(i for _, i in one.instances(NODE))["compute_instances"][0]["uuid"]
    begin = (
        f"CUDA_VISIBLE_DEVICES={uuid} setsid -f fake-cuda --until-file /tmp/stop "
        ">/dev/null 2>&1 </dev/null; until nvml-sim dump | grep -q started; do sleep 0.05; done"
    )
    said = cycle_with(one, "before:reshape", "on-node", NODE, "sh", "-ec", begin)
    assert "is held by process" in said
    assert untouched(one, created)
    one.run("touch", "/tmp/stop")
    one.wait_for(lambda: not one.sim(NODE)["processes"], 10, "the process to end")


def test_a_slurmd_that_registers_something_else_is_not_released(one: ManagedCluster) -> None:
    """An old gres.conf gets in its way: the views differ, so the node stays fenced."""
    wants = one.submit(CUDA_JOB, "--gres=gpu:7g.40gb:1")
    one.sh(f"cp {GRES_CONF} /run/old-gres.conf")
    cycle_with(one, "files.write", "cp", "/run/old-gres.conf", GRES_CONF)
    assert "DRAIN" in one.node(NODE)["State"]
    assert one.job(wants)["JobState"] == "PENDING"
    assert "slurmctld to show the new Gres" in one.slurm_mig("status").stdout
    assert one.slurm_mig("reconcile").returncode == Exit.OK
    assert "DRAIN" not in one.node(NODE)["State"]
    one.wait_for(partial(one.reports, wants, "first"), 20, "the 7g job to compute")
    one.run("touch", f"/tmp/jobs/{wants}.stop")
    one.wait_job(wants, "COMPLETED")
