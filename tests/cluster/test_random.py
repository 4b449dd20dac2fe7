"""Random jobs of every kind under random reshapes, with an outside checker; slurmctld restarts.

`--reshapes N` makes it long, `--seed S` another one (docs/safety.md has the long run's numbers).
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tests.testbed.cluster import A30, A100, NodeSpec
from tests.testbed.product import CONFIGURATION, ManagedCluster
from tests.testbed.watch import Watch

NODES = (
    NodeSpec("a100-1", (A100, A100)),
    NodeSpec("a100-2", (A100, A100), layout="F"),
    NodeSpec("a30-1", (A30, A30)),
)
PROFILES = ("1g.5gb", "2g.10gb", "3g.20gb", "4g.20gb", "7g.40gb", "1g.6gb", "2g.12gb", "4g.24gb")
WEIGHTS = (4, 3, 3, 2, 1, 2, 2, 1)

SCRIPT = """
me=/tmp/jobs/$SLURM_JOB_ID
srun {one} fake-cuda --seconds {first} --report $me.first || exit $?
sleep {pause}
srun {one} fake-cuda --seconds 0.1 --report $me.second
"""


class Jobs:
    """Submits random jobs and remembers what each asked for."""

    def __init__(self, cluster: ManagedCluster, dice: random.Random) -> None:
        self.cluster = cluster
        self.dice = dice
        self.asked: dict[int, str] = {}
        self.kinds: tuple[Callable[[str], object], ...] = (
            self.plain, self.plain, self.several, self.array, self.wide, self.suspended,
            self.heterogeneous, self.requeued, self.cancelled, self.untyped,
        )  # fmt: skip
        self.cancelled_jobs: set[int] = set()
        self.requeued_jobs: set[int] = set()

    def submit(self) -> None:
        profile = self.dice.choices(PROFILES, WEIGHTS)[0]
        self.dice.choice(self.kinds)(profile)

    def script(self, one: str = "-n1") -> str:
        return SCRIPT.format(
            one=one, first=self.dice.choice((0.1, 1, 3)), pause=self.dice.choice((0, 0.5, 2))
        )

    def plain(self, profile: str) -> int:
        job = self.cluster.submit(self.script(), f"--gres=gpu:{profile}:1")
        self.asked[job] = profile
        return job

    def several(self, profile: str) -> None:
        """Two instances, or one where only one fits on a GPU."""
        count = 1 if profile[0] in "47" else 2
        self.asked[self.cluster.submit(self.script(), f"--gres=gpu:{profile}:{count}")] = profile

    def array(self, profile: str) -> None:
        job = self.cluster.submit(self.script(), f"--gres=gpu:{profile}:1", "--array=0-1")
        self.asked[job] = profile

    def wide(self, profile: str) -> None:
        """One instance on each of two nodes."""
        if profile.endswith(("6gb", "12gb", "24gb")):
            self.plain(profile)
            return
        job = self.cluster.submit(
            self.script("-N2 -n2"), "-N2", "--ntasks-per-node=1", f"--gres=gpu:{profile}:1"
        )
        self.asked[job] = profile

    def suspended(self, profile: str) -> None:
        """Suspended as soon as it runs, and resumed two submissions later."""
        job = self.plain(profile)
        self.cluster.run("scontrol", "suspend", str(job), check=False)
        for other in list(self.asked)[-3:]:
            if other != job:
                self.cluster.run("scontrol", "resume", str(other), check=False)

    def heterogeneous(self, profile: str) -> None:
        """Two components, each with an instance, started together or not at all, on two nodes."""
        if profile.endswith(("6gb", "12gb", "24gb")):
            self.plain(profile)
            return
        gres = f"--gres=gpu:{profile}:1"
        job = self.cluster.submit(self.script("--het-group=0"), "-n1", gres, ":", "-n1", gres)
        self.asked[job] = profile

    def requeued(self, profile: str) -> None:
        """Put back into the queue as soon as it runs."""
        job = self.plain(profile)
        if self.cluster.run("scontrol", "requeue", str(job), check=False).returncode == 0:
            self.requeued_jobs.add(job)

    def cancelled(self, profile: str) -> None:
        """An older job goes while this one comes."""
        victim = self.dice.choice([*self.asked, 0])
        self.plain(profile)
        if victim and self.cluster.job(victim).get("JobState") in ("PENDING", "RUNNING"):
            self.cluster.run("scancel", str(victim))
            self.cancelled_jobs.add(victim)

    def untyped(self, _: str) -> None:
        """The submit plugin gives it the partition's type."""
        self.asked[self.cluster.submit(self.script(), "--gres=gpu:1")] = "1g.5gb"


def drain_queue(cluster: ManagedCluster, watch: Watch, jobs: Jobs) -> None:
    """Cycles until nothing is left; every suspended job goes on."""
    for _ in range(120):
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
    configuration = CONFIGURATION + "catalog: {nodes: 2}\n"
    with ManagedCluster(nodes=NODES, configuration=configuration) as cluster:
        cluster.enrol()
        jobs = Jobs(cluster, dice)
        watch = Watch(cluster, jobs.cancelled_jobs, jobs.requeued_jobs)
        restarts = 0
        while reshapes(cluster) < count:
            jobs.submit()
            watch.look()
            cluster.slurm_mig("reconcile", check=False)
            watch.look()
            if dice.random() < 0.05:
                restarts += 1
                restart(cluster)
        drain_queue(cluster, watch, jobs)
        watch.finish(jobs.asked)
        print(
            f"seed {seed}: {reshapes(cluster)} reshapes, {len(jobs.asked)} jobs, "
            f"{restarts} restarts of slurmctld, {watch.looks} looks"
        )
        assert not watch.violations, "\n".join(watch.violations)


def restart(cluster: ManagedCluster) -> None:
    """slurmctld again. No step starts on a node before it has registered (docs/facts.md)."""
    cluster.restart_daemon("slurmctld")
    cluster.wait_for(lambda: cluster.run("sinfo", "-h", check=False).stdout, 30, "slurmctld")
    for node in cluster.nodes:
        cluster.sh(f"kill -HUP {cluster.pid('slurmd', node.name)}")


def reshapes(cluster: ManagedCluster) -> int:
    return len([h for h in cluster.history() if h["phase"] == "released"])
