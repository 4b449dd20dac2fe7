"""A node is reshaped only when nothing on it is starting or ending."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from slurm_mig.errors import Exit
from tests.testbed.cluster import A100, NodeSpec
from tests.testbed.jobs import absent, no_jobs
from tests.testbed.product import CONFIGURATION, CUDA_JOB, ManagedCluster

NODE = "a100-1"
HOOK = "#!/bin/sh\n[ -e /tmp/jobs/slow-{0} ] && sleep $(cat /tmp/jobs/slow-{0})\nexit 0\n"


@pytest.fixture(scope="module")
def hooked() -> Iterator[ManagedCluster]:
    """A node whose prolog and epilog are as slow as a file says."""
    conf = "Prolog=/etc/slurm/prolog\nEpilog=/etc/slurm/epilog\nPrologFlags=Alloc\n"
    conf += "BatchStartTimeout=1\n"
    files = {name: HOOK.format(name) for name in ("prolog", "epilog")}
    with ManagedCluster(
        nodes=(NodeSpec(NODE, (A100, A100)),), extra_conf=conf, files=files
    ) as cluster:
        cluster.sh("chmod 755 /etc/slurm/prolog /etc/slurm/epilog")
        cluster.enrol()
        yield cluster


@pytest.fixture
def one(hooked: ManagedCluster) -> Iterator[ManagedCluster]:
    yield hooked
    hooked.sh("rm -f /tmp/jobs/slow-*")
    hooked.configure(CONFIGURATION)
    no_jobs(hooked)


def slow(cluster: ManagedCluster, hook: str, seconds: int) -> None:
    cluster.sh(f"echo {seconds} > /tmp/jobs/slow-{hook}")


def wanting(cluster: ManagedCluster) -> int:
    """A job for a profile that the node does not offer now."""
    return cluster.submit("true", f"--gres=gpu:{absent(cluster, NODE)}:1")


def test_a_prolog_that_runs_is_waited_for(one: ManagedCluster) -> None:
    slow(one, "prolog", 6)
    wants = wanting(one)
    starting = one.submit(CUDA_JOB, "--gres=gpu:1g.5gb:1")
    one.wait_job(starting, "RUNNING", "CONFIGURING")
    one.slurm_mig("reconcile")

    one.wait_for(lambda: one.reports(starting, "first"), 20, "the starting job to compute")
    one.wait_job(wants, "COMPLETED")
    one.run("touch", f"/tmp/jobs/{starting}.stop")
    one.wait_job(starting, "COMPLETED")
    assert one.history()[-1]["phase"] == "released"
    assert one.history()[-1]["seconds"]["fence"] > 0.5


def test_an_epilog_that_runs_is_waited_for(one: ManagedCluster) -> None:
    ending = one.submit("true", "--gres=gpu:1g.5gb:1")
    slow(one, "epilog", 2)
    one.wait_job(ending, "COMPLETING")
    wants = wanting(one)
    one.slurm_mig("reconcile")
    assert one.job(ending)["JobState"] == "COMPLETED"
    one.wait_job(wants, "COMPLETED")
    assert one.history()[-1]["phase"] == "released"


def test_a_node_that_does_not_settle_is_released_as_it_was(one: ManagedCluster) -> None:
    one.configure(CONFIGURATION.replace("cooldown_s: 0", "cooldown_s: 0\n  settle_s: 0.5"))
    ending = one.submit("true", "--gres=gpu:1g.5gb:1")
    slow(one, "epilog", 10)
    one.wait_job(ending, "COMPLETING")
    before = one.node(NODE)["Gres"]
    wants = wanting(one)
    done = one.slurm_mig("reconcile")
    assert f"did not settle: job {ending} is COMPLETING" in done.stdout
    assert one.node(NODE)["Gres"] == before
    assert "DRAIN" not in one.node(NODE)["State"]
    assert one.history()[-1]["phase"] == "abandoned"
    one.wait_job(ending, "COMPLETED")
    one.slurm_mig("reconcile")
    one.wait_job(wants, "COMPLETED", timeout=60)


def test_a_job_whose_end_was_forgotten_does_not_hold_the_node(one: ManagedCluster) -> None:
    """As after a slurmctld that was killed: it runs for slurmctld, and nothing of it is there."""
    one.configure(CONFIGURATION.replace("cooldown_s: 0", "cooldown_s: 0\n  settle_s: 0.5"))
    forgotten = one.submit(CUDA_JOB, "--gres=gpu:1g.5gb:1", "--no-requeue")
    one.wait_for(lambda: one.reports(forgotten, "first"), 20, "the job to compute")
    one.sh(f"pkill -9 -f 'slurmstepd: .{forgotten}[.]'; pkill -9 fake-cuda; true")
    wants = wanting(one)
    done = one.slurm_mig("reconcile")
    assert f"did not settle: job {forgotten} has no slurmstepd yet" in done.stdout
    one.sh("sleep 12")  # BatchStartTimeout and ten seconds: before, it could be on its way
    one.slurm_mig("reconcile")
    one.wait_job(forgotten, "FAILED", "NODE_FAIL", "CANCELLED")
    one.slurm_mig("reconcile")
    one.wait_job(wants, "COMPLETED")


def test_a_suspended_job_keeps_its_device(one: ManagedCluster) -> None:
    job = one.submit(CUDA_JOB, "--gres=gpu:1g.5gb:1")
    one.wait_for(lambda: one.reports(job, "first"), 20, "the job to compute")
    index = one.job(job)["GRES"]
    one.run("scontrol", "suspend", str(job))
    wants = wanting(one)
    one.slurm_mig("reconcile")
    one.wait_job(wants, "COMPLETED")
    assert one.job(job)["GRES"] == index
    one.run("scontrol", "resume", str(job))
    one.run("touch", f"/tmp/jobs/{job}.stop")
    one.wait_job(job, "COMPLETED")
    assert one.reports(job, "first")[0]["uuid"] == one.reports(job, "second")[0]["uuid"]


def hang(cluster: ManagedCluster) -> tuple[int, int]:
    """A job computes, another waits for a reshape, slurmd hangs: the first job and slurmd's pid."""
    text = CONFIGURATION.replace("node:\n", "node:\n  restart_deadline_s: 1\n")
    cluster.configure(text)
    job = cluster.submit(CUDA_JOB, "--gres=gpu:1g.5gb:1")
    cluster.wait_for(lambda: cluster.reports(job, "first"), 20, "the job to compute")
    pid = cluster.pid("slurmd", NODE)
    wanting(cluster)
    cluster.sh(f"kill -STOP {pid}")
    return job, pid


def ends_well(cluster: ManagedCluster, job: int) -> None:
    cluster.run("touch", f"/tmp/jobs/{job}.stop")
    assert cluster.wait_job(job, "COMPLETED", "FAILED")["JobState"] == "COMPLETED"
    assert cluster.reports(job, "first")[0]["uuid"] == cluster.reports(job, "second")[0]["uuid"]


def test_a_slurmd_that_remembers_prologs_is_not_killed(one: ManagedCluster) -> None:
    """PrologFlags=Alloc: killed, it would forget, and the job's next step would fail."""
    job, pid = hang(one)
    done = one.slurm_mig("reconcile", check=False)
    assert done.returncode == Exit.ATTENTION
    assert "it was not killed: PrologFlags=Alloc" in done.stdout
    one.sh(f"kill -CONT {pid}")
    one.slurm_mig("reconcile")
    assert "DRAIN" not in one.node(NODE)["State"]
    ends_well(one, job)


def test_a_slurmd_that_hangs_is_killed_at_its_deadline() -> None:
    """Its steps live on; one with a prolog or epilog is not killed (tests/unit/test_system.py)."""
    with ManagedCluster(nodes=(NodeSpec(NODE, (A100, A100)),)) as cluster:
        cluster.enrol()
        job, pid = hang(cluster)
        cluster.slurm_mig("reconcile")
        assert not cluster.sh(f"kill -0 {pid} 2>/dev/null && echo alive || true")
        assert "DRAIN" not in cluster.node(NODE)["State"]
        ends_well(cluster, job)
