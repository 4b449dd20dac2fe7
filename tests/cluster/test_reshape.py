"""The live reshape on the real Slurm: a waiting job is served, running jobs never notice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.testbed.cluster import A100, NodeSpec, default_nodes
from tests.testbed.jobs import computing, ended_well, gres, index_of, reconcile_until, served
from tests.testbed.product import CUDA_JOB, ManagedCluster


@pytest.fixture
def fresh() -> Iterator[ManagedCluster]:
    """One enrolled node with two A100, each cut into seven, nothing running."""
    with ManagedCluster(nodes=(NodeSpec("a100-1", (A100, A100)),)) as cluster:
        cluster.enrol()
        yield cluster


def test_a_waiting_3g_starts_inside_a_gpu_that_stays_busy(fresh: ManagedCluster) -> None:
    """Both GPUs are partly busy: the reshape happens beside running instances."""
    small = [computing(fresh, "gpu:1g.5gb:1") for _ in range(8)]
    assert [min(index_of(fresh, j)) for j in small] == list(range(8))
    before = [index_of(fresh, job) for job in small]
    wants = fresh.submit(CUDA_JOB, "--gres=gpu:3g.20gb:1")
    reconcile_until(fresh, wants)
    assert [index_of(fresh, job) for job in small] == before
    assert fresh.reports(wants, "first") or fresh.wait_for(
        lambda: fresh.reports(wants, "first"), 10, "the 3g job to compute"
    )
    assert fresh.reports(wants, "first")[0]["profile"] == "3g.20gb"
    ended_well(fresh, *small, wants)


def test_every_view_agrees_after_a_reshape(fresh: ManagedCluster) -> None:
    wants = fresh.submit(CUDA_JOB, "--gres=gpu:2g.10gb:1")
    reconcile_until(fresh, wants)
    instances = sorted(i["profile"] for _, i in fresh.instances("a100-1"))
    shown = gres(fresh)
    real = sorted(
        t for t, n in shown.items() if t not in ("off", "off1", "guard") for _ in range(n)
    )
    assert real == instances
    assert sum(shown.values()) == 15
    lines = fresh.read("/etc/slurm/slurm-mig/gres.conf").splitlines()
    types = [line.split("Type=")[1].split()[0] for line in lines if "Name=gpu" in line]
    assert types == [t for t, n in shown.items() for _ in range(n)]
    assert "NOT_RESPONDING" not in fresh.node("a100-1")["State"]
    ended_well(fresh, wants)


def test_types_busy_at_the_lowest_middle_and_highest_index(fresh: ManagedCluster) -> None:
    """Three types busy at both ends and in the middle; what is between them is reshaped."""
    first = computing(fresh, "gpu:1g.5gb:1")
    second = fresh.submit(CUDA_JOB, "--gres=gpu:3g.20gb:1")
    reconcile_until(fresh, second)
    third = fresh.submit(CUDA_JOB, "--gres=gpu:4g.20gb:1")
    reconcile_until(fresh, third)
    busy = {job: index_of(fresh, job) for job in (first, second, third)}
    fourth = fresh.submit(CUDA_JOB, "--gres=gpu:2g.10gb:1")
    reconcile_until(fresh, fourth)
    assert {job: index_of(fresh, job) for job in (first, second, third)} == busy
    served(fresh, second, third, fourth)
    ended_well(fresh, first, second, third, fourth)


def test_a_hull_over_the_whole_node_is_refused_with_that_reason(fresh: ManagedCluster) -> None:
    """1g jobs at the lowest and the highest index: every index between must stay 1g."""
    jobs = [computing(fresh, "gpu:1g.5gb:1") for _ in range(14)]
    ended_well(fresh, *jobs[1:13])
    wants = fresh.submit(CUDA_JOB, "--gres=gpu:3g.20gb:1")
    before = gres(fresh)
    done = fresh.slurm_mig("reconcile")
    assert "need every index between to stay 1g.5gb" in done.stdout
    assert gres(fresh) == before
    assert fresh.job(wants)["JobState"] == "PENDING"
    waiting = fresh.status()["waiting"]
    assert [w["job"] for w in waiting] == [wants]
    assert "need every index between" in waiting[0]["why"]
    ended_well(fresh, jobs[13])
    reconcile_until(fresh, wants)
    ended_well(fresh, jobs[0], wants)


def test_a_type_that_vanishes_under_a_running_job(fresh: ManagedCluster) -> None:
    """The last 1g goes while a 3g job runs: two registrations, and the job lives on."""
    threes = [fresh.submit(CUDA_JOB, "--gres=gpu:3g.20gb:1") for _ in range(3)]
    for job in threes:
        reconcile_until(fresh, job)
        served(fresh, job)
    four = fresh.submit(CUDA_JOB, "--gres=gpu:3g.20gb:1")
    reconcile_until(fresh, four)
    fresh.wait_for(lambda: fresh.reports(four, "first"), 10, f"job {four} to compute")
    shown = gres(fresh)
    assert shown["3g.20gb"] == 4
    assert "1g.5gb" not in shown
    assert "INVALID_REG" not in fresh.node("a100-1")["State"]
    ended_well(fresh, *threes, four)


def test_what_is_busy_is_named_and_left_alone(fresh: ManagedCluster) -> None:
    jobs = [computing(fresh, "gpu:1g.5gb:7") for _ in range(2)]
    wants = fresh.submit(CUDA_JOB, "--gres=gpu:7g.40gb:1")
    created = fresh.sim("a100-1")["created"]
    done = fresh.slurm_mig("reconcile")
    assert f"in use by job {jobs[0]}, job {jobs[1]}" in done.stdout
    assert fresh.sim("a100-1")["created"] == created
    fresh.run("scancel", str(wants))
    ended_well(fresh, *jobs)


def test_a_process_without_a_job_holds_its_instance(fresh: ManagedCluster) -> None:
    """Both sources must agree that an instance is free: Slurm's allocation and NVML's processes."""
    for gpu, instance in fresh.instances("a100-1"):
        uuid = instance["compute_instances"][0]["uuid"]
        fresh.sh(
            f"CUDA_VISIBLE_DEVICES={uuid} setsid -f fake-cuda --until-file /tmp/stop "
            f">/dev/null 2>&1 </dev/null",
            node="a100-1",
        )
        assert gpu in (0, 1)
    fresh.wait_for(lambda: len(fresh.sim("a100-1")["processes"]) == 14, 10, "the processes")
    wants = fresh.submit(CUDA_JOB, "--gres=gpu:3g.20gb:1")
    done = fresh.slurm_mig("reconcile")
    assert "in use by processes" in done.stdout
    fresh.run("touch", "/tmp/stop")
    fresh.wait_for(lambda: not fresh.sim("a100-1")["processes"], 10, "the processes to end")
    reconcile_until(fresh, wants)
    ended_well(fresh, wants)


def test_a_job_cannot_open_an_instance_made_after_it_started(fresh: ManagedCluster) -> None:
    """The guard: the job's step denies only the devices it knew, so the guard lists the rest."""
    script = (
        "until [ -e /tmp/jobs/probe ]; do sleep 0.1; done\n"
        "fake-cuda --probe $(cat /tmp/jobs/probe); echo exit $?"
    )
    old = fresh.submit(script, "--gres=gpu:1g.5gb:1")
    fresh.wait_job(old, "RUNNING")
    wants = fresh.submit(CUDA_JOB, "--gres=gpu:3g.20gb:1")
    reconcile_until(fresh, wants)
    fresh.wait_for(lambda: fresh.reports(wants, "first"), 10, "the 3g job to compute")
    uuid = fresh.reports(wants, "first")[0]["uuid"]
    fresh.sh(f"echo {uuid} > /tmp/jobs/probe.new; mv /tmp/jobs/probe.new /tmp/jobs/probe")
    fresh.wait_job(old, "COMPLETED")
    assert "denied" in fresh.output(old)
    assert "exit 0" in fresh.output(old)
    ended_well(fresh, wants)


def test_steps_launched_through_a_reshape_do_not_fail(fresh: ManagedCluster) -> None:
    """A job that launches steps without pause while its node is reshaped: one registration.

    docs/facts.md has what two registrations cost such a loop.
    """
    loop = "until [ -e /tmp/jobs/loop.stop ]; do srun true || exit 9; echo step; done"
    job = fresh.submit(loop, "--gres=gpu:1g.5gb:1")
    fresh.wait_for(lambda: "step" in fresh.output(job), 10, "the first step")
    wants = fresh.submit("true", "--gres=gpu:3g.20gb:2")
    reconcile_until(fresh, wants)
    before = fresh.output(job).count("step")
    fresh.wait_for(lambda: fresh.output(job).count("step") > before + 5, 15, "further steps")
    fresh.run("touch", "/tmp/jobs/loop.stop")
    shown = fresh.wait_job(job, "COMPLETED", "FAILED", timeout=60)
    assert shown["JobState"] == "COMPLETED", fresh.output(job)


def test_the_whole_gpu_beside_a_mig_one_is_left_alone() -> None:
    mixed = next(node for node in default_nodes() if node.name == "mixed-1")
    with ManagedCluster(nodes=(mixed,)) as cluster:
        cluster.enrol()
        whole = computing(cluster, "gpu:l40s:1")
        wants = cluster.submit(CUDA_JOB, "--gres=gpu:7g.40gb:1")
        index = index_of(cluster, whole)
        reconcile_until(cluster, wants)
        assert index_of(cluster, whole) == index
        cluster.wait_for(lambda: cluster.reports(wants, "first"), 10, "the 7g job to compute")
        ended_well(cluster, whole, wants)


def test_array_tasks_are_all_served(cluster: ManagedCluster) -> None:
    job = cluster.submit("sleep 1", "--gres=gpu:3g.20gb:1", "--array=0-2")

    def pending() -> str:
        return cluster.run("squeue", "-h", "-j", str(job), "-t", "PENDING").stdout

    for _ in range(10):
        cluster.slurm_mig("reconcile")
        if not pending():
            break
    assert not pending()


def shown_states(cluster: ManagedCluster) -> dict[str, Any]:
    return {n["name"]: n["condition"] for n in cluster.status()["nodes"]}


def test_an_administrators_drain_is_left_alone(cluster: ManagedCluster) -> None:
    for node in ("a100-1", "a100-2", "mixed-1"):
        cluster.run("scontrol", "update", f"NodeName={node}", "State=DRAIN", "Reason=my own")
    try:
        job = cluster.submit("true", "--gres=gpu:7g.40gb:2")
        done = cluster.slurm_mig("reconcile")
        assert "drained by an administrator: my own" in done.stdout
        assert cluster.node("a100-1")["Reason"].startswith("my own")
        assert shown_states(cluster)["a100-1"] == "admin"
        cluster.run("scancel", str(job))
    finally:
        for node in ("a100-1", "a100-2", "mixed-1"):
            cluster.run("scontrol", "update", f"NodeName={node}", "State=RESUME")
            cluster.sh(f"kill -HUP {cluster.pid('slurmd', node)}")
