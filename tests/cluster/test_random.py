"""Random jobs of every kind under random reshapes, with an outside checker; slurmctld restarts.

`--reshapes N` makes it long, `--seed S` another one (docs/safety.md has the long run's numbers).
"""

from __future__ import annotations

import random
import time

import pytest

from tests.testbed import faults
from tests.testbed.blame import Blame
from tests.testbed.cluster import A30, A100, L40S, NodeSpec
from tests.testbed.device_program import OPENS
from tests.testbed.product import CONFIGURATION, ManagedCluster
from tests.testbed.randomjobs import GATES, RandomJobs, Reservations
from tests.testbed.watch import Watch, gates

NODES = (
    NodeSpec("a100-1", (A100, A100)),
    NodeSpec("a100-2", (A100, A100), layout="F"),
    NodeSpec("mixed-1", (A30, A30, L40S)),
)
REMEMBERS = "MinJobAge=86400\n"
"""Every job is looked at in the end: slurmctld must not have purged it."""

PREEMPTION = """\
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=urgent Nodes=a100-1,a100-2,mixed-1 PriorityTier=10 State=UP
"""
RULES = (
    CONFIGURATION
    + """\
catalog: {nodes: 2}
groups:
- {nodes: a100-2, whole_type: a100, mode_change: reset}
"""
)


END_S = 300.0
"""How long the queue may take to be served in the end."""


def drain_queue(cluster: ManagedCluster, watch: Watch, jobs: RandomJobs) -> None:
    """Cycles until nothing is left; every suspended job goes on. One that Slurm put back into the
    queue may start after two minutes only (*BeginTime*)."""
    deadline = time.monotonic() + END_S
    while time.monotonic() < deadline:
        for job in jobs.asked:
            if cluster.job(job).get("JobState") == "SUSPENDED":
                cluster.run("scontrol", "resume", str(job), check=False)
        if not cluster.run("squeue", "-h").stdout.strip():
            return
        cluster.slurm_mig("reconcile", check=False)
        watch.look()
    raise TimeoutError(f"jobs are left\n{cluster.slurm_mig('status').stdout}\n{cluster.logs(15)}")


def test_random_jobs_under_random_reshapes(request: pytest.FixtureRequest) -> None:
    count, seed = request.config.getoption("--reshapes"), request.config.getoption("--seed")
    dice = random.Random(seed)
    with ManagedCluster(
        nodes=NODES, extra_conf=REMEMBERS + PREEMPTION, configuration=RULES, accounting=True
    ) as cluster:
        cluster.enrol()
        for node in NODES:
            cluster.write(f"{GATES}.{node.name}", " ".join(sorted(gates(cluster, node.name))))
        jobs = RandomJobs(cluster, dice, str(OPENS))
        reservations = Reservations(cluster, dice)
        watch = Watch(cluster, jobs.cancelled)
        blame, restarts = Blame(), 0
        while (made := reshapes(cluster)) < count:
            jobs.submit()
            watch.look()
            cluster.slurm_mig("reconcile", check=False)
            watch.look()
            reservations.pass_time()
            if dice.random() < 0.05:
                restarts += 1
                blame.struck(faults.SLURMCTLD[1], "")
                restart(cluster)
            if len(jobs.asked) % 20 == 0:
                print(f"{made} reshapes, {len(jobs.asked)} jobs, {watch.violations}", flush=True)
        reservations.end()
        drain_queue(cluster, watch, jobs)
        lost = blame.lost(cluster, jobs.asked.keys() - jobs.cancelled)
        watch.cancelled |= lost
        watch.finish(jobs.asked)
        print(
            f"seed {seed}: {reshapes(cluster)} reshapes, {len(jobs.asked)} jobs {jobs.submitted}, "
            f"{restarts} restarts of slurmctld, which cost {len(lost)} jobs a step, "
            f"{reservations.made} reservations, "
            f"{watch.looks} looks, {watch.opened} jobs' doors tried"
        )
        assert not watch.violations, "\n".join(watch.violations)
        assert watch.opened


def restart(cluster: ManagedCluster) -> None:
    """slurmctld again. No step starts on a node before it has registered (docs/facts.md)."""
    cluster.restart_daemon("slurmctld")
    cluster.wait_for(lambda: cluster.run("sinfo", "-h", check=False).stdout, 30, "slurmctld")
    for node in cluster.nodes:
        cluster.sh(f"kill -HUP {cluster.pid('slurmd', node.name)}")


def reshapes(cluster: ManagedCluster) -> int:
    return len([h for h in cluster.history() if h["phase"] == "released"])
