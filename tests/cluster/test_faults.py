"""The fault table (docs/faults.md): every fault at a step of a reshape, and what becomes of it.

In each a job runs on the node and another waits for a reshape. While the fault lasts the reason
is on `slurm-mig status`, or the waiting job has been served; afterwards cycles alone serve it,
or, where a person is needed, what the node's reason says and `slurm-mig release`. The running job
keeps its device throughout and every view of the node agrees in the end. `--faults all`: every
fault at every step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from slurm_mig.core import demand
from slurm_mig.core.model import is_filler
from slurm_mig.errors import Exit
from tests.cluster.test_backup import state_is_saved
from tests.testbed import faults
from tests.testbed.cluster import A100, NodeSpec
from tests.testbed.faults import Fault
from tests.testbed.product import CUDA_JOB, ManagedCluster
from tests.testbed.views import GRES_CONF, checked, differences, look

NODE = "a100-1"
TOTAL = 15
POINTS = (
    "before:fence",
    "cluster.drain",
    "before:reshape",
    "nodes.reshape",
    "files.write",
    "cluster.set_gres",
    "nodes.publish",
    "store.save_managed",
    "cluster.resume",
)
"""Where a fault strikes: before a step, or right after a call to the outside."""

DEFAULT = {
    "slurmctld killed": ("cluster.set_gres",),
    "slurmctld slow": ("nodes.reshape",),
    "slurmd killed": ("nodes.reshape",),
    "slurmd does not come back": ("files.write",),
    "slurmd hangs": ("before:reshape",),
    "NVML: one creation fails": ("before:reshape",),
    "NVML: the GPUs are lost": ("nodes.reshape",),
    "state directory full": ("nodes.reshape",),
    "/etc/slurm read-only": ("nodes.reshape",),
    "the node's boot record: read-only": ("nodes.reshape",),
    "gres.conf edited by a person": ("before:reshape",),
    "slurm.conf replaced by configuration management": ("files.write",),
    "the clock jumps a day ahead": ("cluster.drain",),
    "the clock jumps a day back": ("nodes.reshape",),
    "a second reconciler": ("nodes.reshape",),
    "remote command: lost": ("publish",),
    "remote command: late": ("reshape",),
    "remote command: killed": ("reshape",),
}
"""What the default suite has, one of each row of the table: the points, or the node command's
verb."""

STEPS = {
    "test_a_job_ends_during_the_reshape": ("nodes.reshape", "cluster.drain", "nodes.publish"),
    "test_an_administrator_sets_the_node_down": ("files.write", "cluster.drain"),
    "test_the_node_reboots_in_the_middle": ("files.write", "nodes.reshape", "cluster.set_gres"),
    "test_the_state_directory_comes_back_from_a_backup": ("nodes.reshape", "before:fence"),
}
"""Points of the rows that are tests of their own; the default suite has the first."""

BY_POINT = (
    *faults.SLURMCTLD, *faults.SLURMDS, *faults.NVML, *faults.DISKS, *faults.HANDS, *faults.CLOCK,
    faults.OTHERS[0],
)  # fmt: skip
PERSON = {f.name for f in faults.HANDS[:2]}
"""Faults after which a person must say that it can go on."""


def rows(*, every: bool) -> list[tuple[Fault, str]]:
    """Fault and point of each test."""
    found = []
    for fault in BY_POINT:
        found += [(fault, p) for p in (POINTS if every else DEFAULT.get(fault.name, ()))]
    for fault in faults.REMOTE:
        name, _, verb = fault.name.rstrip(")").partition(" (")
        if every or verb in DEFAULT.get(name, ()):
            found.append((fault, "before:fence"))
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    every = metafunc.config.option.faults == "all"
    if "row" in metafunc.fixturenames:
        found = rows(every=every)
        metafunc.parametrize("row", found, ids=[f"{f.name}, {p}" for f, p in found])
    elif "point" in metafunc.fixturenames:
        points = STEPS[metafunc.function.__name__]
        metafunc.parametrize("point", points if every else points[:1])


class Site:
    """One cluster for all tests; a new one after a test that has not left it idle."""

    def __init__(self) -> None:
        self._cluster: ManagedCluster | None = None

    def cluster(self) -> ManagedCluster:
        if self._cluster is None:
            spec = NodeSpec(NODE, (A100, A100))
            self._cluster = ManagedCluster(nodes=(spec,), configuration=faults.CONFIG)
            self._cluster.start()
            faults.prepare(self._cluster)
            self._cluster.enrol()
        return self._cluster

    def stop(self) -> None:
        if self._cluster is not None:
            self._cluster.stop()
        self._cluster = None

    def keep_if_idle(self) -> None:
        shown = self._cluster and self._cluster.run("sinfo", "-hN", "-o", "%T %E", check=False)
        if not shown or shown.stdout.split() != ["idle", "none"]:
            self.stop()


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    found = Site()
    yield found
    found.stop()


@pytest.fixture
def node(site: Site) -> Iterator[ManagedCluster]:
    yield site.cluster()
    site.keep_if_idle()


@dataclass
class Work:
    """The node with a running job that must end well, and what waits."""

    cluster: ManagedCluster
    running: int
    index: str
    waiting: int = 0

    def strike(self, fault: Fault, point: str) -> str:
        """A cycle in which the fault strikes at the point; what the cycle said."""
        done = self.cluster.run(
            *faults.UNDER_CLOCK, f"NODE={NODE}",
            "python", "-m", "tests.testbed.die_at", point, "sh", "-ec", fault.strike,
            check=False, timeout=120,
        )  # fmt: skip
        return done.stdout + done.stderr

    def heal(self, fault: Fault) -> None:
        self.cluster.run("sh", "-ec", fault.heal or "true", env={"NODE": NODE})

    def served(self) -> bool:
        return self.cluster.job(self.waiting).get("JobState", "PENDING") != "PENDING"

    def cycle(self) -> str:
        done = self.cluster.run(
            *faults.UNDER_CLOCK, "slurm-mig", "reconcile", check=False, timeout=120
        )
        return f"{done.stdout}{done.stderr}exit {done.returncode}"

    def until_served(self, cycles: int = 8) -> None:
        said = []
        for _ in range(cycles):
            if self.served():
                break
            said.append(self.cycle())
        self.cluster.wait_job(self.waiting, "RUNNING", "COMPLETED", timeout=20)


@pytest.fixture
def work(node: ManagedCluster) -> Iterator[Work]:
    """The running job must end well whatever the test did, on the device that it began with."""
    offered = next(t for t in demand.parse_gres(node.node(NODE)["Gres"]) if not is_filler(t))
    running = node.submit(CUDA_JOB, f"--gres=gpu:{offered}:1")
    node.wait_for(lambda: node.reports(running, "first"), 20, f"job {running} to compute")
    node.sh(f"cp {GRES_CONF} {faults.FAULTS}/old-gres.conf")
    has = Work(node, running, node.job(running)["GRES"])
    has.waiting = wanting(node)
    yield has
    node.run("sh", "-c", "rm -f /run/faults/remote /run/faults/clock")
    node.run("nvml-sim", "fault", "--clear", node=NODE)
    node.run("touch", f"/tmp/jobs/{running}.stop")
    ended = node.wait_job(running, "COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", timeout=60)
    assert ended["JobState"] == "COMPLETED", node.output(running)
    first, second = node.reports(running, "first"), node.reports(running, "second")
    assert first[0]["uuid"] == second[0]["uuid"]
    node.run("scancel", "--user=alice", check=False)
    node.wait_for(lambda: not node.run("squeue", "-h").stdout.strip(), 60, "every job to be gone")


def wanting(cluster: ManagedCluster) -> int:
    """A job for a profile that the node does not offer now."""
    shown = demand.parse_gres(cluster.node(NODE)["Gres"])
    profile = next(p for p in ("3g.20gb", "4g.20gb", "2g.10gb", "7g.40gb") if p not in shown)
    return cluster.submit("true", f"--gres=gpu:{profile}:1")


def answers(cluster: ManagedCluster) -> bool:
    return cluster.run("sinfo", "-h", check=False).returncode == 0


def test_fault(work: Work, row: tuple[Fault, str]) -> None:
    fault, point = row
    if fault.name == "slurmctld killed":
        state_is_saved(work.cluster)
    said = work.strike(fault, point)
    work.cluster.wait_for(lambda: answers(work.cluster), 60, "slurmctld to answer")
    assert work.cluster.job(work.running)["JobState"] == "RUNNING", said
    assert work.cluster.job(work.running)["GRES"] == work.index
    if not work.served():
        work.cycle()
    if not work.served():
        explained(work, said)
    work.heal(fault)
    if fault.name in PERSON and NODE_NEEDS in look(work.cluster, NODE).reason:
        work.cluster.slurm_mig("release", NODE)
    work.until_served()
    assert work.cluster.job(work.running)["GRES"] == work.index
    settled(work)


NODE_NEEDS = "needs a person"


def settled(work: Work) -> None:
    """Cycles until nothing is left to do; then every view agrees."""
    for _ in range(4):
        if work.cycle().endswith("exit 0"):
            break
    checked(work.cluster, NODE, total=TOTAL)


def explained(work: Work, said: str) -> None:
    """Why the job is not served is on `status`: its own reason, or its node's transaction's."""
    shown = work.cluster.slurm_mig("status").stdout
    mine = [line for line in shown.splitlines() if f"job {work.waiting} (" in line]
    if mine and not work.served():
        held = "In transition:\n" in shown
        wants = mine[0].partition("(")[2].partition(")")[0]
        # Its instance may be there by now: then it is Slurm's turn, and so says `status`.
        there = wants in demand.parse_gres(work.cluster.node(NODE)["Gres"])
        assert held or there or "will be served" not in mine[0], f"{shown}\n{said}"


def test_a_job_ends_during_the_reshape(work: Work, point: str) -> None:
    offered = work.index.partition("(")[0]
    ending = work.cluster.submit(CUDA_JOB, f"--gres={offered}")
    work.cluster.wait_for(lambda: work.cluster.reports(ending, "first"), 20, "it to compute")
    work.strike(Fault("a job ends", f"touch /tmp/jobs/{ending}.stop; sleep 1"), point)
    ended = work.cluster.wait_job(ending, "COMPLETED", "FAILED", timeout=60)
    assert ended["JobState"] == "COMPLETED", work.cluster.output(ending)
    work.until_served()
    settled(work)


def test_an_administrator_sets_the_node_down(node: ManagedCluster, point: str) -> None:
    """Which ends its jobs; the node is his, reason and all, and every view of it agrees.

    (ReturnToService=2: a slurmd that registers ends DOWN, and the drain that was ours is his.)
    """
    has = Work(node, 0, "")
    has.waiting = wanting(node)
    update = "scontrol update NodeName=$NODE State=DOWN Reason='fan is broken'"
    has.strike(Fault("set down", update), point)
    for _ in range(2):
        seen = look(node, NODE)
        assert seen.state & {"DOWN", "DRAIN"}
        assert seen.reason.startswith("fan is broken")
        assert not differences(seen)
        has.cycle()
    node.run("scontrol", "update", f"NodeName={NODE}", "State=RESUME")
    node.register(NODE)
    has.until_served()
    settled(has)


def test_the_node_reboots_in_the_middle(node: ManagedCluster, point: str) -> None:
    """Its instances and /run are gone: `restore` brings back what the node's record has."""
    has = Work(node, 0, "")
    has.waiting = wanting(node)
    has.strike(faults.OTHERS[1], point)
    has.until_served()
    settled(has)


STATE = "/var/lib/slurm-mig"
KEPT = f"rm -rf /run/faults/kept; cp -a {STATE} /run/faults/kept"
LOST = f"rm -rf {STATE}/*"


def test_the_state_directory_comes_back_from_a_backup(work: Work, point: str) -> None:
    work.cluster.sh(KEPT)
    work.strike(Fault("lost", LOST), point)
    said = work.cycle()
    assert f"there is no record of {NODE}" in said
    assert said.endswith(f"exit {Exit.CONFIG}")
    assert f"there is no record of {NODE}" in work.cluster.slurm_mig("status").stdout
    work.cluster.sh(f"rm -rf {STATE}/*; cp -a /run/faults/kept/. {STATE}")
    work.until_served()
    assert work.cluster.job(work.running)["GRES"] == work.index
    settled(work)


def test_a_node_whose_record_is_lost_late_is_finished(work: Work) -> None:
    """Its files are written: the cycle that did it writes the record, too."""
    work.strike(Fault("lost", LOST), "cluster.set_gres")
    work.until_served()
    assert work.cluster.job(work.running)["GRES"] == work.index
    settled(work)


def test_the_state_directory_is_lost_for_good(node: ManagedCluster) -> None:
    """The node is taken up again once it has no gpu job; it has heard of a command of tomorrow."""
    has = Work(node, 0, "")
    node.sh(faults.CLOCK[0].strike)
    has.cycle()
    node.sh(faults.CLOCK[0].heal)
    has.waiting = wanting(node)
    said = has.strike(Fault("lost", LOST), "nodes.reshape")
    seen = look(node, NODE)
    assert "DRAIN" in seen.state, said
    assert "needs a person" in seen.reason
    assert f"slurm-mig enrol {NODE}" in seen.reason
    assert (
        "the next command is later than that" in node.slurm_mig("enrol", NODE, check=False).stderr
    )
    node.slurm_mig("enrol", NODE)
    has.until_served()
    settled(has)
