"""Random jobs of every kind that uses gres, and what others do to a cluster meanwhile."""

from __future__ import annotations

import random
import shlex
from collections.abc import Callable

from tests.testbed.product import ManagedCluster

A100_TYPES = {"1g.5gb": 4, "2g.10gb": 3, "3g.20gb": 3, "4g.20gb": 2, "7g.40gb": 1, "a100": 1}
A30_TYPES = {"1g.6gb": 2, "2g.12gb": 2, "4g.24gb": 1}
L40S_TYPES = {"l40s": 1}
TYPES = {**A100_TYPES, **A30_TYPES, **L40S_TYPES}
"""How often each is asked for."""
ONE_A_GPU = frozenset({"4g.20gb", "7g.40gb", "4g.24gb", "a100", "l40s"})

GATES = "/tmp/jobs/gates"
"""The files that a job tries to open at its end, by node (tests/testbed/watch.py)."""

SCRIPT = """\
export me=/tmp/jobs/$SLURM_JOB_ID
srun {one} fake-cuda --seconds {first} --report $me.first || exit $?
sleep {pause}
srun {one} fake-cuda --seconds 0.1 --report $me.second || exit $?
srun {one} sh -c 'echo $(hostname) $(/opt/slurm-mig/venv/bin/python {opens} \
$(cat {gates}.$(hostname))) >> $me.opened'
"""
"""Computes, computes again in a later step, and tries every door."""


class RandomJobs:
    """Submits random jobs and remembers what each asked for."""

    def __init__(self, cluster: ManagedCluster, dice: random.Random, opens: str) -> None:
        self.cluster = cluster
        self.dice = dice
        self.opens = opens
        self.asked: dict[int, str] = {}
        """Job id to gpu type; empty for one that has every device of its node."""
        self.cancelled: set[int] = set()
        self.kinds: dict[str, Callable[[str], object]] = {
            "plain": self.plain, "several": self.several, "array": self.array, "wide": self.wide,
            "suspended": self.suspended, "heterogeneous": self.heterogeneous,
            "requeued": self.requeued, "cancelled": self.cancel, "untyped": self.untyped,
            "exclusive": self.exclusive, "salloc": self.salloc, "urgent": self.urgent,
        }  # fmt: skip
        self.submitted = dict.fromkeys(self.kinds, 0)
        self._asleep: list[tuple[int, int]] = []
        """What was suspended, and after how many submissions it is resumed."""

    def submit(self) -> None:
        gpu_type = self.dice.choices(list(TYPES), list(TYPES.values()))[0]
        kind = self.dice.choice(list(self.kinds))
        self.submitted[kind] += 1
        self.kinds[kind](gpu_type)
        self._resume_old()

    def script(self, one: str = "-n1") -> str:
        return SCRIPT.format(
            one=one, first=self.dice.choice((0.1, 1, 3)), pause=self.dice.choice((0, 0.5, 2)),
            opens=self.opens, gates=GATES,
        )  # fmt: skip

    def plain(self, gpu_type: str, *options: str) -> int:
        job = self.cluster.submit(self.script(), f"--gres=gpu:{gpu_type}:1", *options)
        self.asked[job] = gpu_type
        return job

    def several(self, gpu_type: str) -> None:
        """Two devices, or one where only one fits on a GPU."""
        count = 1 if gpu_type in ONE_A_GPU else 2
        self.asked[self.cluster.submit(self.script(), f"--gres=gpu:{gpu_type}:{count}")] = gpu_type

    def array(self, gpu_type: str) -> None:
        self.plain(gpu_type, "--array=0-1")

    def wide(self, gpu_type: str) -> None:
        """One instance on each of two nodes."""
        if gpu_type not in A100_TYPES or gpu_type == "a100":
            self.plain(gpu_type)
            return
        job = self.cluster.submit(
            self.script("-N2 -n2"), "-N2", "--ntasks-per-node=1", f"--gres=gpu:{gpu_type}:1"
        )
        self.asked[job] = gpu_type

    def suspended(self, gpu_type: str) -> None:
        """Suspended as soon as it runs, and resumed two submissions later. Slurm holds a suspended
        job that is put back into the queue (docs/facts.md), so this one is urgent too."""
        job = self.plain(gpu_type, "--partition=urgent")
        self.cluster.run("scontrol", "suspend", str(job), check=False)
        self._asleep.append((job, sum(self.submitted.values()) + 2))

    def _resume_old(self) -> None:
        done = sum(self.submitted.values())
        for job, until in [one for one in self._asleep if one[1] <= done]:
            self._asleep.remove((job, until))
            self.cluster.run("scontrol", "resume", str(job), check=False)

    def heterogeneous(self, gpu_type: str) -> None:
        """Two components, each with an instance, started together or not at all, on two nodes."""
        if gpu_type not in A100_TYPES or gpu_type == "a100":
            self.plain(gpu_type)
            return
        gres = f"--gres=gpu:{gpu_type}:1"
        job = self.cluster.submit(self.script("--het-group=0"), "-n1", gres, ":", "-n1", gres)
        self.asked[job] = gpu_type

    def requeued(self, gpu_type: str) -> None:
        """Put back into the queue as soon as it runs."""
        self.cluster.run("scontrol", "requeue", str(self.plain(gpu_type)), check=False)

    def cancel(self, gpu_type: str) -> None:
        """An older job goes while this one comes."""
        victim = self.dice.choice([*self.asked, 0])
        self.plain(gpu_type)
        if victim and self.cluster.job(victim).get("JobState") in ("PENDING", "RUNNING"):
            self.cluster.run("scancel", str(victim), check=False)
            self.cancelled.add(victim)

    def untyped(self, _: str) -> None:
        """The submit plugin gives it the partition's type."""
        self.asked[self.cluster.submit(self.script(), "--gres=gpu:1")] = "1g.5gb"

    def exclusive(self, gpu_type: str) -> None:
        """The whole node with every slot, fillers and guard too: frozen while it runs."""
        job = self.plain(gpu_type, "--exclusive")
        self.asked[job] = ""

    def urgent(self, gpu_type: str) -> None:
        """It preempts: others are put back into the queue."""
        self.plain(gpu_type, "--partition=urgent")

    def salloc(self, gpu_type: str) -> None:
        """An allocation whose steps come from outside the node. Slurm would end it where it puts
        batch jobs back into the queue, so it is urgent too."""
        name = f"salloc{len(self.asked)}"
        self.cluster.write(f"/tmp/jobs/{name}.sh", self.script(), mode="755")
        self.cluster.sh(
            f"setsid -f salloc --job-name={name} --gres=gpu:{gpu_type}:1 --partition=urgent "
            f"sh -e /tmp/jobs/{name}.sh >/tmp/jobs/{name}.out 2>&1 </dev/null",
            user="alice",
        )
        find = ("squeue", "-h", "-a", "--states=all", f"--name={name}", "-o", "%i")
        job = self.cluster.wait_for(
            lambda: self.cluster.run(*find, check=False).stdout.strip(), 20, f"{name} to queue"
        )
        self.asked[int(job)] = gpu_type


class Reservations:
    """Somebody else's reservations: of a node at once, of one soon, of gpus soon; one at a time."""

    NAME = "others"

    def __init__(self, cluster: ManagedCluster, dice: random.Random) -> None:
        self.cluster = cluster
        self.dice = dice
        self.made = 0
        self._left = 0

    def pass_time(self) -> None:
        """A new one now and then; it goes a few calls later."""
        if self._left:
            self._left -= 1
            if not self._left:
                self.end()
        elif self.dice.random() < 0.04:
            self._make()

    def _make(self) -> None:
        node = self.dice.choice(self.cluster.nodes).name
        start, *what = self.dice.choice(
            (("now", f"Nodes={node}"), ("now+20", f"Nodes={node}"),
             ("now+70", f"Nodes={node}", "TRES=gres/gpu:1g.5gb=2"))
        )  # fmt: skip
        # Slurm itself refuses one that running jobs are in the way of.
        done = self.cluster.run(
            "scontrol", "create", "reservation", f"ReservationName={self.NAME}", "Users=bob",
            f"StartTime={start}", "Duration=10", *what, check=False,
        )  # fmt: skip
        if done.returncode == 0:
            self.made += 1
            self._left = 3

    def end(self) -> None:
        self.cluster.run(
            "scontrol", "delete", f"ReservationName={shlex.quote(self.NAME)}", check=False
        )
