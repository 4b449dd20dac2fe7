"""Steps launched without pause through reshapes, and first steps of jobs: none fails, none hangs.

`--reshapes N` makes it long (docs/facts.md has the numbers of a run of 100).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial

import pytest

from slurm_mig.core import demand
from tests.testbed.cluster import A100, NodeSpec
from tests.testbed.jobs import registrations_refused
from tests.testbed.product import ManagedCluster

PROFILES = ("3g.20gb", "4g.20gb", "2g.10gb", "7g.40gb")
"""Each makes the one before it vanish under the running jobs: two registrations."""

LOOP = 'until [ -e /tmp/jobs/loop.stop ]; do srun {options} true || echo "FAIL $?"; echo step; done'

FIRST = "sleep {pause:.2f}; srun true || echo FAIL $?"
"""The first step of a job: slurmctld lets it wait where a later one would not (docs/facts.md)."""
FIRSTS_A_ROUND = 4
HUNG_S = 40
"""An srun that is told to wait asks again after two minutes."""


@pytest.fixture(scope="module")
def three() -> Iterator[ManagedCluster]:
    """Three nodes, messages forwarded from node to node, and a node that never answers."""
    nodes = tuple(NodeSpec(f"a100-{n}", (A100, A100), features=f"n{n}") for n in (1, 2, 3))
    silent = (
        "TreeWidth=2\nNodeName=silent NodeAddr=10.77.0.250 CPUs=1 State=UNKNOWN\n"
        "PartitionName=silent Nodes=silent\n"
    )
    with ManagedCluster(nodes=nodes, extra_conf=silent, ignored=("silent",)) as cluster:
        cluster.enrol()
        yield cluster


def test_no_step_fails_or_hangs(three: ManagedCluster, request: pytest.FixtureRequest) -> None:
    count = request.config.getoption("--reshapes")
    one = three.submit(LOOP.format(options=""), "--gres=gpu:1g.5gb:1", "-C", "n1")
    two = three.submit(LOOP.format(options="--exact"), "--gres=gpu:1g.5gb:1", "-C", "n1")
    wide = three.submit(LOOP.format(options="-N3"), "-N3", "--gres=gpu:1g.5gb:1")
    jobs = (one, two, wide)
    for job in jobs:
        three.wait_for(partial(steps, three, job), 20, f"a step of {job}")
    before = registrations_refused(three)
    dice = random.Random(request.config.getoption("--seed"))
    firsts: list[int] = []
    for number in range(count):
        # They start with the scheduler's next pass, so some of them in the middle of this reshape.
        for _ in range(FIRSTS_A_ROUND):
            script = FIRST.format(pause=dice.random() * 2)
            firsts.append(three.submit(script, "--gres=gpu:1g.5gb:1", "-C", "n1"))
        shown = demand.parse_gres(three.node("a100-1")["Gres"])
        order = PROFILES[number % 4 :] + PROFILES[: number % 4]
        profile = next(p for p in order if p not in shown)
        wants = three.submit("true", f"--gres=gpu:{profile}:1", "-C", "n1")
        for _ in range(8):
            three.slurm_mig("reconcile")
            if three.job(wants)["JobState"] != "PENDING":
                break
        three.wait_job(wants, "COMPLETED", timeout=60)
        three.run("scancel", str(wants), check=False)
    for job in jobs:
        goes_on(three, job)
    three.run("touch", "/tmp/jobs/loop.stop")
    for job in jobs:
        assert three.wait_job(job, "COMPLETED", "FAILED", timeout=60)["JobState"] == "COMPLETED"
        said = [line for line in three.output(job).splitlines() if line != "step"]
        assert not [line for line in said if line.startswith("FAIL")], said
        print(f"job {job}: {steps(three, job)} steps through {count} reshapes")
    for job in firsts:
        well = three.wait_job(job, "COMPLETED", timeout=60)
        assert seconds(well["RunTime"]) < HUNG_S, well
        assert not three.output(job)
    print(f"{len(firsts)} first steps")
    history = three.history()
    assert len([h for h in history if h["phase"] == "released"]) >= count
    # The run is worth nothing if no type vanished.
    assert registrations_refused(three) - before >= count // 2


def seconds(shown: str) -> int:
    """Of `00:01:20`."""
    hours, minutes, rest = map(int, shown.split(":"))
    return 3600 * hours + 60 * minutes + rest


def steps(cluster: ManagedCluster, job: int) -> int:
    return cluster.output(job).count("step")


def goes_on(cluster: ManagedCluster, job: int) -> None:
    """The job launches further steps."""
    seen = steps(cluster, job)
    cluster.wait_for(
        lambda: steps(cluster, job) > seen + 1,
        30,
        f"further steps of {job}: {cluster.output(job)[-300:]}",
    )
