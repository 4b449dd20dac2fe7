"""Every kind of job through reshapes: what counts as demand, what is served, what stays alive."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest

from slurm_mig.core.demand import WAITS_FOR_RESOURCES
from slurm_mig.core.model import is_filler
from tests.testbed.cluster import A30, A100, L40S, NodeSpec
from tests.testbed.jobs import gres, no_jobs
from tests.testbed.product import CONFIGURATION, CUDA_JOB, ManagedCluster

TWO, ONE, ALL, BIG = "a100-1", "a100-2", "all-1", "big-1"
NODES = (
    NodeSpec(TWO, (A100, A100)),
    NodeSpec(ONE, (A100,)),
    NodeSpec(ALL, (A100, A30, L40S)),
    NodeSpec(BIG, (A100,) * 8, cpus=64),
)
PREEMPTION = f"""\
PreemptType=preempt/partition_prio
PreemptMode=SUSPEND,GANG
PartitionName=requeue Nodes={TWO} PreemptMode=REQUEUE PriorityTier=1 State=UP
PartitionName=cancel Nodes={TWO} PreemptMode=CANCEL PriorityTier=1 State=UP
PartitionName=suspend Nodes={TWO} PreemptMode=SUSPEND PriorityTier=1 State=UP
PartitionName=urgent Nodes={TWO} PriorityTier=10 State=UP
"""
RULES = CONFIGURATION + "catalog: {nodes: 2}\n"
"""A job of two nodes for an absent type queues only beside as many catalog records."""

WAITS = "until [ -e /tmp/jobs/$SLURM_JOB_ID.stop ]; do sleep 0.1; done\n"
PROFILES = ("3g.20gb", "2g.10gb", "1g.10gb", "4g.20gb")
"""Beside a busy 1g.5gb there is always room for one of the first three on its GPU."""


@pytest.fixture(scope="module")
def lab() -> Iterator[ManagedCluster]:
    with ManagedCluster(nodes=NODES, extra_conf=PREEMPTION, configuration=RULES) as cluster:
        cluster.enrol()
        yield cluster


@pytest.fixture
def site(lab: ManagedCluster) -> Iterator[ManagedCluster]:
    yield lab
    no_jobs(lab)


def on(*nodes: str) -> str:
    """The option that leaves a job these nodes only; `-w` would be refused for an absent type."""
    return f"--exclude={','.join(n.name for n in NODES if n.name not in nodes)}"


def present(cluster: ManagedCluster, node: str) -> tuple[str, int]:
    """The type that a node has most of, and how many."""
    shown = gres(cluster, node)
    return max(((t, n) for t, n in shown.items() if not is_filler(t)), key=lambda item: item[1])


def absent(cluster: ManagedCluster, *nodes: str) -> str:
    shown = [gres(cluster, node) for node in nodes]
    return next(p for p in PROFILES if not any(types.get(p) for types in shown))


def made(cluster: ManagedCluster) -> dict[str, int]:
    return {node.name: cluster.sim(node.name)["created"] for node in cluster.nodes}


def why(cluster: ManagedCluster, job: int) -> str:
    return next((str(w["why"]) for w in cluster.status()["waiting"] if w["job"] == job), "")


def waiting(cluster: ManagedCluster, *jobs: int) -> bool:
    """Slurm has looked at all of them, and they wait for resources alone."""
    return all(cluster.job(job)["Reason"] in WAITS_FOR_RESOURCES for job in jobs)


def served(cluster: ManagedCluster, *jobs: int) -> None:
    """Cycles until the jobs have ended well."""
    for _ in range(8):
        cluster.slurm_mig("reconcile")
        if all(cluster.job(job)["JobState"] != "PENDING" for job in jobs):
            break
    for job in jobs:
        cluster.wait_job(job, "COMPLETED", timeout=60)


def agreed(cluster: ManagedCluster, node: str) -> bool:
    """slurmctld offers what the GPUs have."""
    shown = gres(cluster, node)
    offered = sorted(t for t, n in shown.items() for _ in range(n) if not is_filler(t))
    return offered == sorted(i["profile"] for _, i in cluster.instances(node))


@pytest.mark.parametrize("mode", ["requeue", "cancel"])
def test_what_preemption_starts_is_no_demand(site: ManagedCluster, mode: str) -> None:
    kind, count = present(site, TWO)
    victim = site.submit(WAITS, f"--gres=gpu:{kind}:{count}", f"--partition={mode}")
    site.wait_job(victim, "RUNNING")
    before = made(site)
    urgent = site.submit("true", f"--gres=gpu:{kind}:1", "--partition=urgent")
    site.slurm_mig("reconcile")
    site.wait_job(urgent, "COMPLETED")
    assert made(site) == before
    assert site.job(victim)["JobState"] in ("PREEMPTED", "PENDING", "COMPLETING")


def test_suspending_frees_no_gpu(site: ManagedCluster) -> None:
    """A job that may only suspend others gets no gpu by it: it is demand, and here has no room."""
    kind, count = present(site, TWO)
    holder = site.submit(WAITS, f"--gres=gpu:{kind}:{count}", "--partition=suspend")
    site.wait_job(holder, "RUNNING")
    urgent = site.submit("true", f"--gres=gpu:{kind}:1", "--partition=urgent")
    said = site.slurm_mig("reconcile").stdout
    assert f"job {urgent} (" in said
    assert "preempting" not in said
    assert site.job(urgent)["JobState"] == "PENDING"
    assert site.job(holder)["JobState"] == "RUNNING"


@pytest.mark.parametrize(
    ("hand", "point"),
    [
        ("requeue", "nodes.reshape"),
        ("requeue", "nodes.publish"),
        ("suspend", "cluster.drain"),
        ("cancel", "nodes.publish"),
    ],
)
def test_a_running_job_is_taken_away_in_the_middle(
    site: ManagedCluster, hand: str, point: str
) -> None:
    """What preemption does to a job, done by hand at every point of a reshape of its node."""
    job = site.submit(CUDA_JOB, "--gres=gpu:1g.5gb:1", on(ONE))
    site.wait_for(lambda: site.reports(job, "first"), 20, f"job {job} to compute")
    wants = site.submit("true", f"--gres=gpu:{absent(site, ONE)}:1", on(ONE))
    command = ("scancel", str(job)) if hand == "cancel" else ("scontrol", hand, str(job))
    site.run("python", "-m", "tests.testbed.die_at", point, *command, timeout=120)
    if hand == "suspend":
        site.wait_job(job, "SUSPENDED")
    served(site, wants)
    assert agreed(site, ONE)
    assert "INVALID_REG" not in site.node(ONE)["State"]
    if hand == "suspend":
        first = site.reports(job, "first")
        site.run("scontrol", "resume", str(job))
        site.run("touch", f"/tmp/jobs/{job}.stop")
        site.wait_job(job, "COMPLETED")
        assert site.reports(job, "second")[0]["uuid"] == first[0]["uuid"]
    elif hand == "cancel":
        site.wait_job(job, "CANCELLED")
    else:
        assert site.wait_job(job, "PENDING", "RUNNING")["Restarts"] == "1"


def test_arrays(site: ManagedCluster) -> None:
    """Every task is a job; what `%2` allows at once is what is made room for."""
    profile = absent(site, TWO)
    array = site.submit("sleep 1", f"--gres=gpu:{profile}:1", "--array=1-4%2", on(TWO))
    for _ in range(8):
        site.slurm_mig("reconcile")
        if not site.run("squeue", "-h").stdout.strip():
            break
    site.wait_for(lambda: not site.run("squeue", "-h").stdout.strip(), 30, "the tasks to end")
    states = site.run("scontrol", "show", "job", str(array), "-o").stdout
    assert states.count("JobState=COMPLETED") == 4


def test_jobs_that_ask_for_no_gpu_at_all(site: ManagedCluster) -> None:
    """Slurm queues them like any other, shows the request as it was written, and starts them
    without a gpu: they are no demand, and no cycle stumbles over them."""
    holder = site.submit(WAITS, "--gres=gpu:1g.5gb:1", "--cpus-per-task=32", on(ONE))
    site.wait_job(holder, "RUNNING")
    profile = absent(site, ONE)
    options = f"--gres=gpu:{profile}:0", f"--gpus-per-node={profile}:0", "--gres=gpu:0"
    none = [site.submit("echo gpus:$SLURM_JOB_GPUS.", option, on(ONE)) for option in options]
    site.wait_for(partial(waiting, site, *none), 20, "all of them to wait for CPUs")
    assert all(site.job(job)["TresPerNode"].endswith(":0") for job in none)
    before = made(site)
    assert site.slurm_mig("reconcile").returncode == 0
    assert not any(why(site, job) for job in none)
    assert made(site) == before
    site.run("touch", f"/tmp/jobs/{holder}.stop")
    for job in none:
        site.wait_job(job, "COMPLETED")
        assert site.output(job).strip() == "gpus:."


def het(cluster: ManagedCluster, *components: tuple[str, ...]) -> int:
    words: list[str] = []
    for options in components:
        words += [":", *options] if words else [*options]
    done = cluster.run("sbatch", "--parsable", "--chdir=/tmp/jobs", *words, user="alice",
                       stdin="#!/bin/sh\ntrue\n")  # fmt: skip
    return int(done.stdout.split(";")[0])


def test_a_heterogeneous_job_is_served_whole_or_not_at_all(site: ManagedCluster) -> None:
    holder = site.submit(WAITS, "--gres=gpu:1g.5gb:1", on(ONE))
    site.wait_job(holder, "RUNNING")
    before = made(site)
    half = absent(site, TWO)
    first = het(site, (f"--gres=gpu:{half}:1", on(TWO)), ("--gres=gpu:7g.40gb:1", on(ONE)))
    site.slurm_mig("reconcile")
    assert made(site) == before
    # The component that could be served alone is refused for what the other lacks.
    assert "no room for 7g.40gb" in why(site, first)
    assert "no room for 7g.40gb" in why(site, first + 1)
    site.run("touch", f"/tmp/jobs/{holder}.stop")
    site.wait_job(holder, "COMPLETED")
    served(site, first, first + 1)


def test_a_job_of_two_nodes(site: ManagedCluster) -> None:
    profile = absent(site, TWO, ONE)
    wants = site.submit("srun hostname", "--nodes=2", f"--gres=gpu:{profile}:1", on(TWO, ONE))
    served(site, wants)
    assert set(site.output(wants).split()) == {TWO, ONE}


def test_a_job_of_two_nodes_with_other_indexes_on_the_second(site: ManagedCluster) -> None:
    """More slots are taken on one node than the other has: each task gets its own node's UUID."""
    holder = site.submit(WAITS, "--gres=gpu:1g.5gb:20", on(BIG))
    site.wait_job(holder, "RUNNING")
    step = "srun fake-cuda --seconds 0.1 --report /tmp/jobs/$SLURM_JOB_ID.first"
    words = ("--nodes=2", "--ntasks-per-node=1", "--gres=gpu:1g.5gb:1")
    wants = site.submit(step, *words, on(TWO, BIG))
    served(site, wants)
    reports = site.reports(wants, "first")
    assert [r["profile"] for r in reports] == ["1g.5gb"] * 2
    assert reports[0]["uuid"] != reports[1]["uuid"]


def test_salloc_with_steps_across_a_reshape(site: ManagedCluster) -> None:
    script = (
        "srun fake-cuda --seconds 0.1 --report /tmp/jobs/salloc.first\n"
        "until [ -e /tmp/jobs/salloc.stop ]; do sleep 0.1; done\n"
        "srun fake-cuda --seconds 0.1 --report /tmp/jobs/salloc.second\n"
        "touch /tmp/jobs/salloc.done\n"
    )
    site.write("/tmp/jobs/salloc.sh", script, mode="755")
    site.sh(
        f"setsid -f salloc --gres=gpu:1g.5gb:1 {on(TWO)} sh -e /tmp/jobs/salloc.sh "
        ">/tmp/jobs/salloc.out 2>&1 </dev/null",
        user="alice",
    )
    site.wait_for(lambda: site.sh("cat /tmp/jobs/salloc.first || true"), 20, "the first step")
    served(site, site.submit("true", f"--gres=gpu:{absent(site, TWO)}:1", on(TWO)))
    site.run("touch", "/tmp/jobs/salloc.stop")
    site.wait_for(lambda: site.sh("ls /tmp/jobs/salloc.done || true"), 30, "salloc to end")
    first, second = (site.read(f"/tmp/jobs/salloc.{n}") for n in ("first", "second"))
    assert first.split('"uuid"')[1].split(",")[0] == second.split('"uuid"')[1].split(",")[0]


def test_three_kinds_of_gpu_on_one_node(site: ManagedCluster) -> None:
    """An A100 and an A30 are cut at once under a job on the L40S beside them."""
    whole = site.submit(CUDA_JOB, "--gres=gpu:l40s:1", on(ALL))
    site.wait_for(lambda: site.reports(whole, "first"), 20, "the L40S to compute")
    jobs = [site.submit("true", f"--gres=gpu:{p}:1", on(ALL)) for p in ("3g.20gb", "2g.12gb")]
    served(site, *jobs)
    both = site.submit("true", "--gres=gpu:4g.20gb:1,gpu:4g.24gb:1", on(ALL))
    served(site, both)
    site.run("touch", f"/tmp/jobs/{whole}.stop")
    site.wait_job(whole, "COMPLETED")
    assert site.reports(whole, "first")[0]["uuid"] == site.reports(whole, "second")[0]["uuid"]


def test_eight_gpus_with_nearly_every_slot_busy(site: ManagedCluster) -> None:
    """56 slots, 51 of them busy: the one reshape that is possible is made, and disturbs none."""
    jobs = [site.submit(CUDA_JOB, "--gres=gpu:1g.5gb:17", on(BIG)) for _ in range(3)]
    for job in jobs:
        site.wait_for(partial(site.reports, job, "first"), 60, f"job {job} to compute")
    indexes = {j: site.job(j)["GRES"] for j in jobs}
    wants = site.submit("true", "--gres=gpu:3g.20gb:1", on(BIG))
    served(site, wants)
    last = site.history()[-1]
    print(f"51 of 56 slots busy: reshaped in {last['finished'] - last['started']:.2f} s")
    assert {j: site.job(j)["GRES"] for j in jobs} == indexes
    for job in jobs:
        site.run("touch", f"/tmp/jobs/{job}.stop")
    for job in jobs:
        site.wait_job(job, "COMPLETED", timeout=60)
        first, second = site.reports(job, "first"), site.reports(job, "second")
        assert first[0]["uuid"] == second[0]["uuid"]
