"""Two slurmctlds: our files reach both, and a takeover in the middle of a reshape loses nothing.

The second one has files of its own; StateSaveLocation and our state directory are shared.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from slurm_mig.errors import Exit
from tests.testbed.cluster import A100, NodeSpec
from tests.testbed.jobs import absent, computing, ended_well, index_of, offered, served
from tests.testbed.product import CUDA_JOB, ManagedCluster, in_way

NODE, SECOND = "a100-1", "head2"
OURS = ("/etc/slurm/slurm-mig/nodes.conf", "/etc/slurm/slurm-mig/gres.conf")
CONTROLLERS = (
    "controllers: [head, head2]",
    'controller_command: [on-node, "%h", slurm-mig, files, serve]',
)


@pytest.fixture(scope="module")
def two() -> Iterator[ManagedCluster]:
    with ManagedCluster(
        nodes=(NodeSpec(NODE, (A100, A100)),),
        configuration=in_way("per-host", "node", *CONTROLLERS),
        own_files=(NODE,),
        backup=SECOND,
        backup_has_own_files=True,
    ) as cluster:
        cluster.enrol()
        yield cluster


def in_charge(cluster: ManagedCluster) -> str:
    """The host whose slurmctld says that it answers as the one at work."""
    said = cluster.run("scontrol", "ping", check=False).stdout
    up = [line for line in said.splitlines() if line.endswith("is UP")]
    if not up or cluster.run("sinfo", "-h", check=False).returncode:
        return ""  # A standby answers the ping, and nothing else.
    return "head" if any("primary" in line for line in up) else SECOND


def wanting(cluster: ManagedCluster) -> int:
    """A job for a profile that is not offered now."""
    return cluster.submit(CUDA_JOB, f"--gres=gpu:{absent(cluster, NODE)}:1")


def until_served(cluster: ManagedCluster, job: int, host: str | None) -> None:
    """Cycles on this host until the job runs."""
    for _ in range(8):
        cluster.run("slurm-mig", "reconcile", node=host, check=False, timeout=180)
        if cluster.job(job).get("JobState") != "PENDING":
            break
    cluster.wait_job(job, "RUNNING", timeout=60)
    cluster.wait_for(lambda: cluster.reports(job, "first"), 30, f"job {job} to compute")


def state_is_saved(cluster: ManagedCluster) -> None:
    """slurmctld writes its state some seconds after a change: killed before, or followed by one
    that reads too early, it forgets the newest jobs. A job that is held is the change waited for.
    """
    now = float(cluster.sh("date +%s.%N"))
    mark = cluster.submit("true", "--hold")
    cluster.wait_for(
        lambda: float(cluster.sh("stat -c %.9Y /var/lib/slurm/ctld/job_state || echo 0")) > now,
        60, "slurmctld to save its jobs")  # fmt: skip
    cluster.run("scancel", str(mark))


def same_everywhere(cluster: ManagedCluster) -> bool:
    return all(cluster.read(path) == cluster.read(path, SECOND) for path in OURS)


def back_to_the_first(cluster: ManagedCluster) -> None:
    """The first slurmctld starts again and takes control back."""
    if not cluster.pid("slurmctld"):
        # The first one reads what is saved, whether or not the second one is done (its own words).
        state_is_saved(cluster)
        cluster.start_daemon("slurmctld")
    cluster.wait_for(lambda: in_charge(cluster) == "head", 60, "the first one to be in charge")
    # It may have refused the node's registration as a standby: then no step starts there until the
    # next one (docs/facts.md).
    cluster.register(NODE)


def test_our_files_are_on_both_hosts_before_the_release(two: ManagedCluster) -> None:
    """Also the marks in the site's files and the submit plugin's table; `enrol` put them there."""
    assert "Include slurm-mig/nodes.conf" in two.read("/etc/slurm/slurm.conf", SECOND)
    table = "/etc/slurm/slurm-mig/submit.lua"
    assert two.read(table, SECOND) == two.read(table)
    job = wanting(two)
    before = two.read(OURS[0])
    died = two.run("python", "-m", "tests.testbed.die_at", "before:release", check=False)
    assert died.returncode == -9, died.stdout + died.stderr
    assert two.read(OURS[0]) != before
    assert same_everywhere(two)
    until_served(two, job, None)
    ended_well(two, job)


def test_one_lock_for_both_hosts(two: ManagedCluster) -> None:
    two.begin("flock /var/lib/slurm-mig/lock sleep 61")
    two.wait_for(
        lambda: two.run("flock", "-n", "/var/lib/slurm-mig/lock", "true", check=False).returncode,
        5, "the lock to be held")  # fmt: skip
    done = two.run("slurm-mig", "reconcile", node=SECOND, check=False)
    assert done.returncode == Exit.BUSY
    assert " on head) is at work" in done.stderr
    two.sh("pkill -f '^sleep 61$'; flock /var/lib/slurm-mig/lock true")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Where the first host dies: once, or with a greater --reshapes at every point."""
    if "point" in metafunc.fixturenames:
        points = ("nodes.reshape", "cluster.set_gres", "files.write", "nodes.publish")
        metafunc.parametrize("point", points if metafunc.config.option.reshapes > 8 else points[:1])


def test_the_first_host_dies_in_the_middle(two: ManagedCluster, point: str) -> None:
    """Its slurmctld and slurm-mig are killed at the same moment; the other host goes on."""
    running = computing(two, f"gpu:{offered(two)}:1")
    index = index_of(two, running)
    job = wanting(two)
    state_is_saved(two)
    died = two.run("python", "-m", "tests.testbed.die_at", point, check=False)
    assert died.returncode == -9, died.stdout + died.stderr
    two.kill_daemon("slurmctld", signal="KILL")
    two.wait_for(lambda: in_charge(two) == SECOND, 60, "the second one to take over")
    until_served(two, job, SECOND)
    assert index_of(two, running) == index
    assert "DRAIN" not in two.node(NODE)["State"]
    back_to_the_first(two)
    assert index_of(two, running) == index
    two.slurm_mig("reconcile")
    assert same_everywhere(two)
    ended_well(two, running, job)


def test_a_takeover_under_a_cycle_at_work(two: ManagedCluster) -> None:
    """An administrator has the second slurmctld take over while a reshape is under way."""
    running = computing(two, f"gpu:{offered(two)}:1")
    job = wanting(two)
    two.run("python", "-m", "tests.testbed.die_at", "files.write", "scontrol", "takeover",
            check=False, timeout=180)  # fmt: skip
    two.wait_for(lambda: in_charge(two) == SECOND, 60, "the second one to be in charge")
    until_served(two, job, None)
    back_to_the_first(two)
    served(two, running, job)
    ended_well(two, running, job)


def test_a_controller_that_is_away_gets_its_files_later(two: ManagedCluster) -> None:
    """It holds nothing up; the first cycle that reaches it writes them."""
    two.sh("mv /run/nodes/head2.pid /run/nodes/head2.away")
    try:
        job = wanting(two)
        done = two.slurm_mig("reconcile")
        assert "head2 has an old copy of our files" in done.stderr
        until_served(two, job, None)
    finally:
        two.sh("mv /run/nodes/head2.away /run/nodes/head2.pid")
    assert not same_everywhere(two)
    two.slurm_mig("reconcile")
    assert same_everywhere(two)
    ended_well(two, job)
