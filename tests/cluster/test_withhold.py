"""When running jobs are in the way: idle instances are withheld; a fence is the last resort."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest

from tests.testbed.cluster import A100, NodeSpec
from tests.testbed.jobs import computing, ended_well, gres, no_jobs, reconcile_until
from tests.testbed.product import CONFIGURATION, CUDA_JOB, ManagedCluster

NODE = "a100-1"
GUARD = {"guard": 1}


@pytest.fixture(scope="module")
def node() -> Iterator[ManagedCluster]:
    """One node with one A100."""
    with ManagedCluster(nodes=(NodeSpec(NODE, (A100,)),)) as cluster:
        cluster.enrol()
        yield cluster


@pytest.fixture
def one(node: ManagedCluster) -> Iterator[ManagedCluster]:
    """The node as it was enrolled: seven 1g.5gb, no job."""
    yield node
    no_jobs(node)
    node.configure(CONFIGURATION)
    node.slurm_mig("reconcile")
    node.run("rm", "-f", "/var/lib/slurm-mig/cycle.json")
    if gres(node) != {"1g.5gb": 7, **GUARD}:
        back = node.submit("true", "--gres=gpu:1g.5gb:7")
        reconcile_until(node, back)
        node.wait_job(back, "COMPLETED")


def drained(cluster: ManagedCluster) -> bool:
    return "DRAIN" in cluster.node(NODE)["State"]


def test_idle_instances_are_withheld_and_then_cut(one: ManagedCluster) -> None:
    running = computing(one, "gpu:1g.5gb:1")
    wants = one.submit(CUDA_JOB, "--gres=gpu:7g.40gb:1", "--nice=0")
    done = one.slurm_mig("reconcile")
    assert f"GPU 0 of {NODE} is kept for it until job {running} ends" in done.stdout
    assert not drained(one), "the node is released at once"
    assert gres(one) == {"1g.5gb": 1, "off1": 6, **GUARD}
    assert len(list(one.instances(NODE))) == 7, "nothing is destroyed yet"
    assert f"for job {wants}" in one.slurm_mig("status").stdout

    later = one.submit("true", "--gres=gpu:1g.5gb:1", "--nice=1000")
    before = len(one.history())
    one.slurm_mig("reconcile")
    assert one.job(later)["JobState"] == "PENDING", "what is withheld is not for others"
    assert len(one.history()) == before, "a cycle that can do nothing more changes nothing"

    ended_well(one, running)
    reconcile_until(one, wants)
    one.wait_for(partial(one.reports, wants, "first"), 10, "the 7g job to compute")
    assert one.reports(wants, "first")[0]["profile"] == "7g.40gb"
    for record in one.history()[-2:]:
        assert record["seconds"]["fenced"] < 10, "a fence lasts as long as a publish"
    ended_well(one, wants)
    reconcile_until(one, later)
    one.wait_job(later, "COMPLETED")


def test_what_nobody_waits_for_any_more_is_offered_again(one: ManagedCluster) -> None:
    running = computing(one, "gpu:1g.5gb:1")
    wants = one.submit("true", "--gres=gpu:7g.40gb:1")
    one.slurm_mig("reconcile")
    assert gres(one)["1g.5gb"] == 1
    one.run("scancel", str(wants))
    one.slurm_mig("reconcile")
    assert gres(one) == {"1g.5gb": 7, **GUARD}
    ended_well(one, running)


def test_withheld_instances_survive_a_restart_of_slurmctld(one: ManagedCluster) -> None:
    running = computing(one, "gpu:1g.5gb:1")
    wants = one.submit("true", "--gres=gpu:7g.40gb:1")
    one.slurm_mig("reconcile")
    one.restart_daemon("slurmctld")
    one.wait_for(lambda: one.run("sinfo", "-h", check=False).stdout, 20, "slurmctld to answer")
    one.slurm_mig("reconcile")
    assert gres(one)["1g.5gb"] == 1
    # A new slurmctld starts no step on a node before it has registered (docs/facts.md).
    one.register(NODE)
    ended_well(one, running)
    reconcile_until(one, wants)
    one.wait_job(wants, "COMPLETED")


def starving(cluster: ManagedCluster, fence_wait_s: int) -> tuple[list[int], int]:
    """1g jobs at the first and the last index pin everything between: nothing can be withheld."""
    text = f"cooldown_s: 0\n  withhold_s: 3\n  fence_wait_s: {fence_wait_s}"
    cluster.configure(CONFIGURATION.replace("cooldown_s: 0", text))
    jobs = [computing(cluster, "gpu:1g.5gb:1") for _ in range(7)]
    ended_well(cluster, *jobs[1:6])
    wants = cluster.submit(CUDA_JOB, "--gres=gpu:7g.40gb:1")
    done = cluster.slurm_mig("reconcile")
    assert "may serve it when job" in done.stdout
    assert gres(cluster)["1g.5gb"] == 7
    cluster.sh("sleep 3.2")
    return [jobs[0], jobs[6]], wants


def test_policy_fences_for_a_job_that_withholding_does_not_serve(one: ManagedCluster) -> None:
    running, wants = starving(one, 60)
    done = one.slurm_mig("reconcile")
    assert drained(one)
    assert f"{NODE} fenced: job {running[0]} has 1g.5gb@" in done.stdout
    assert one.slurm_mig("reconcile").returncode == 0
    assert drained(one)
    assert one.status()["transitions"][0]["waits_until"]
    others = one.submit("true", "--gres=gpu:1g.5gb:1", "--nice=100")
    one.slurm_mig("reconcile")
    assert one.job(others)["JobState"] == "PENDING"
    one.run("scancel", str(others))
    ended_well(one, *running)
    reconcile_until(one, wants)
    one.wait_for(partial(one.reports, wants, "first"), 20, "the 7g job to compute")
    assert not drained(one)
    assert one.history()[-1]["change"]["behind_fence"], "what was made for a job is left for it"
    assert one.history()[-1]["seconds"]["fenced"] > 1
    ended_well(one, wants)


def test_a_fence_stands_where_instances_are_withheld(one: ManagedCluster) -> None:
    """Cycle after cycle it is the same fence, and they stay withheld; then all of it is cut."""
    text = "cooldown_s: 0\n  withhold_s: 3\n  fence_wait_s: 60"
    one.configure(CONFIGURATION.replace("cooldown_s: 0", text))
    running = computing(one, "gpu:1g.5gb:1")
    wants = one.submit(CUDA_JOB, "--gres=gpu:7g.40gb:1")
    one.slurm_mig("reconcile")
    assert gres(one)["1g.5gb"] == 1
    one.sh("sleep 3.2")
    one.slurm_mig("reconcile")
    fence = one.node(NODE)["Reason"]
    for _ in range(2):
        one.slurm_mig("reconcile")
        assert drained(one)
        assert one.node(NODE)["Reason"] == fence
        assert gres(one)["1g.5gb"] == 1
    ended_well(one, running)
    reconcile_until(one, wants)
    one.wait_for(partial(one.reports, wants, "first"), 20, "the 7g job to compute")
    assert one.history()[-1]["change"]["behind_fence"]
    assert one.slurm_mig("reconcile").stdout.startswith("nothing to do"), "nor anything to mend"
    ended_well(one, wants)


def test_a_fence_that_waited_long_enough_comes_down(one: ManagedCluster) -> None:
    running, wants = starving(one, 9)
    one.slurm_mig("reconcile")
    assert drained(one)
    one.sh("sleep 9.2")
    done = one.slurm_mig("reconcile")
    assert not drained(one), done.stderr
    assert one.history()[-1]["phase"] == "abandoned"
    assert one.job(wants)["JobState"] == "PENDING"
    ended_well(one, *running)


def test_a_fence_for_nobody_comes_down(one: ManagedCluster) -> None:
    running, wants = starving(one, 60)
    one.slurm_mig("reconcile")
    assert drained(one)
    one.run("scancel", str(wants))
    one.slurm_mig("reconcile")
    assert not drained(one)
    assert f"job {wants} no longer waits" in one.history()[-1]["note"]
    ended_well(one, *running)


def test_an_administrators_drain_in_the_place_of_a_waiting_fence_stays(
    one: ManagedCluster,
) -> None:
    running, wants = starving(one, 60)
    one.slurm_mig("reconcile")
    one.run("scontrol", "update", f"NodeName={NODE}", "State=DRAIN", "Reason=fan is loud")
    one.slurm_mig("reconcile")
    assert drained(one)
    assert one.node(NODE)["Reason"].startswith("fan is loud")
    assert one.history()[-1]["phase"] == "abandoned"
    one.run("scancel", str(wants))
    one.run("scontrol", "update", f"NodeName={NODE}", "State=RESUME")
    one.register(NODE)
    ended_well(one, *running)
