"""A mixed queue of several users, worked off by the reconciler with no hand.

`--queue N` makes the queue N jobs long. With 60 and more, the same queue runs also on the same
nodes under fixed layouts: the mean wait must be no worse than the best one's, and at most two
thirds of the `1g` baseline's. A job that can never run under a layout counts with the longest
run's span.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass

import pytest

from tests.testbed.cluster import A30, A100, NodeSpec
from tests.testbed.product import ManagedCluster

NODES = (NodeSpec("a100-1", (A100, A100)), NodeSpec("a30-1", (A30, A30)))
USERS = ("alice", "bob")
PROFILES = {
    "1g.5gb": 4, "2g.10gb": 3, "3g.20gb": 3, "4g.20gb": 1, "7g.40gb": 1,
    "1g.6gb": 2, "2g.12gb": 2, "4g.24gb": 1,
}  # fmt: skip
LONG = 60

STATIC = {
    "1g": ([f"1g.5gb@{n}" for n in range(7)], [f"1g.6gb@{n}" for n in range(4)]),
    "balanced": (
        ["3g.20gb@4", "2g.10gb@0", "1g.5gb@2", "1g.5gb@3"],
        ["2g.12gb@2", "1g.6gb@0", "1g.6gb@1"],
    ),
    "halves": (["3g.20gb@0", "3g.20gb@4"], ["2g.12gb@0", "2g.12gb@2"]),
}
"""Layouts of every A100 and every A30 that a site might choose for good."""

SCRIPT = """\
me=/tmp/jobs/$SLURM_JOB_ID
date +%s.%N >$me.began
srun fake-cuda --seconds {seconds} --report $me.report
"""


@dataclass(frozen=True)
class Wanted:
    profile: str
    user: str
    seconds: float


@dataclass
class Run:
    """One queue on one cluster: when each job was submitted and began, and the span of all."""

    submitted: Mapping[int, float]
    began: Mapping[int, float]
    span: float

    def mean_wait(self, never_s: float) -> float:
        waits = [self.began.get(j, at + never_s) - at for j, at in self.submitted.items()]
        return sum(waits) / len(waits)


def queue(count: int, seed: int) -> list[Wanted]:
    dice = random.Random(seed)
    names, weights = list(PROFILES), list(PROFILES.values())
    return [
        Wanted(dice.choices(names, weights)[0], dice.choice(USERS), dice.choice((0.5, 1, 2, 4)))
        for _ in range(count)
    ]


def submit(
    cluster: ManagedCluster, jobs: list[Wanted]
) -> tuple[dict[int, Wanted], dict[int, float]]:
    numbers, times = {}, {}
    for job in jobs:
        number = cluster.submit(
            SCRIPT.format(seconds=job.seconds), f"--gres=gpu:{job.profile}:1", user=job.user
        )
        numbers[number], times[number] = job, time.time()
    return numbers, times


def left(cluster: ManagedCluster, jobs: Mapping[int, Wanted], able: set[str]) -> bool:
    """Some job that can run has not ended yet."""
    waiting = cluster.run("squeue", "-h", "-o", "%i").stdout.split()
    return any(jobs[int(number)].profile in able for number in waiting)


def outcome(cluster: ManagedCluster, times: Mapping[int, float], begun: float) -> Run:
    began = {}
    for number in times:
        text = cluster.run("cat", f"/tmp/jobs/{number}.began", check=False).stdout
        if text:
            began[number] = float(text)
    return Run(times, began, time.time() - begun)


def by_reconciler(jobs: list[Wanted], limit_s: float) -> Run:
    """Every job must compute on what it asked for."""
    with ManagedCluster(nodes=NODES) as cluster:
        cluster.enrol()
        begun = time.time()
        numbers, times = submit(cluster, jobs)
        while left(cluster, numbers, set(PROFILES)):
            assert time.time() - begun < limit_s, cluster.slurm_mig("status").stdout
            cluster.slurm_mig("reconcile", check=False)
        for number, job in numbers.items():
            report = json.loads(cluster.read(f"/tmp/jobs/{number}.report").splitlines()[0])
            assert job.profile in report["profile"], (number, job, report)
        return outcome(cluster, times, begun)


def under(layout: str, jobs: list[Wanted], limit_s: float) -> Run:
    """The same queue under a fixed layout; those that can never run are left."""
    with ManagedCluster(nodes=NODES) as cluster:
        cluster.enrol()
        for node, words in zip(NODES, STATIC[layout], strict=True):
            for gpu in range(len(node.gpus)):
                if layout != "1g":
                    cluster.run(
                        "python", "-m", "tests.testbed.reshape_once", node.name, str(gpu), *words
                    )
        begun = time.time()
        numbers, times = submit(cluster, jobs)
        able = {word.partition("@")[0] for words in STATIC[layout] for word in words}
        cluster.wait_for(lambda: not left(cluster, numbers, able), limit_s, "the queue to end")
        return outcome(cluster, times, begun)


def test_a_mixed_queue_is_worked_off_with_no_hand(request: pytest.FixtureRequest) -> None:
    count = request.config.getoption("--queue")
    jobs = queue(count, request.config.getoption("--seed"))
    limit_s = 60 + 20 * count
    ours = by_reconciler(jobs, limit_s)
    print(f"{count} jobs: mean wait {ours.mean_wait(0):.1f} s, span {ours.span:.0f} s")
    if count < LONG:
        return
    static = {name: under(name, jobs, limit_s) for name in STATIC}
    span = max(run.span for run in (ours, *static.values()))
    waits = {name: run.mean_wait(span) for name, run in static.items()}
    print(", ".join(f"{name} {wait:.1f} s" for name, wait in waits.items()))
    assert ours.mean_wait(span) <= min(waits.values())
    assert ours.mean_wait(span) <= waits["1g"] * 2 / 3
