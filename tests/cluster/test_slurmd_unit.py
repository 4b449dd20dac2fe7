"""A slurmd that Slurm's own unit started, under a real systemd: it writes no pid file."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from slurm_mig.errors import Exit
from tests.testbed.cluster import A100, NodeSpec
from tests.testbed.jobs import (
    ended_well,
    reconcile_until,
    registrations_refused,
    served,
)
from tests.testbed.product import CONFIGURATION, CUDA_JOB, ManagedCluster
from tests.testbed.systemd import Systemd, reached

NODE = "a100-1"
UNIT = "slurmd.service"
STOCK = "\n".join(
    [
        f"remote: {{command: {json.dumps(reached('slurm-mig', 'node', 'serve'))}}}",
        "node:",
        "  restart_deadline_s: 5",
        *CONFIGURATION.partition("slurmd-%n.pid\n")[2].splitlines(),
        "",
    ]
)
"""Nothing is set for slurmd: neither a pid file nor how it is restarted."""

Site = tuple[ManagedCluster, Systemd]


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with (
        ManagedCluster(nodes=(NodeSpec(NODE, (A100,)),), configuration=STOCK) as cluster,
        Systemd(cluster, NODE, units=None) as systemd,
    ):
        systemd.take_slurmd()
        serves(cluster)
        yield cluster, systemd


@pytest.fixture(scope="module")
def enrolled(site: Site) -> Site:
    """The same, from here on in care."""
    site[0].enrol()
    return site


def serves(cluster: ManagedCluster) -> None:
    cluster.wait_for(lambda: cluster.node(NODE)["State"] in ("IDLE", "MIXED"), 30, "the node")


def main_pid(systemd: Systemd) -> int:
    return int(systemd.show(UNIT, "MainPID"))


def found(systemd: Systemd) -> str:
    """What `check` says of slurmd on the node."""
    said = systemd.run("slurm-mig", "check", check=False).stdout.splitlines()
    return next(line for line in said if "slurmd" in line and line.split()[1] == f"{NODE}:")


def test_a_slurmd_that_does_not_run_is_noticed(site: Site) -> None:
    cluster, systemd = site
    systemd.ctl("stop", UNIT)
    try:
        assert found(systemd) == f"ERROR    {NODE}: no slurmd is found"
        done = cluster.slurm_mig("enrol", NODE, check=False)
        assert done.returncode == Exit.UNREACHABLE
        assert f"{NODE}: no slurmd is found there; nothing was changed" in done.stderr
        assert cluster.node(NODE)["State"] == "IDLE"
    finally:
        systemd.ctl("start", UNIT)
    serves(cluster)


def test_the_main_process_is_followed_through_two_registrations_beside_a_job(
    enrolled: Site,
) -> None:
    """The last 1g goes while a 3g job runs. All by signals: the unit is never started anew."""
    cluster, systemd = enrolled
    assert found(systemd) == f"ok       {NODE}: slurmd runs (process {main_pid(systemd)})"
    pid_file = cluster.pid_file("slurmd", NODE)
    assert cluster.run("test", "-e", pid_file, node=NODE, check=False).returncode
    started = systemd.show(UNIT, "InvocationID")
    jobs = []
    for _ in range(2):
        before = main_pid(systemd)
        jobs.append(cluster.submit(CUDA_JOB, "--gres=gpu:3g.20gb:1"))
        reconcile_until(cluster, jobs[-1])
        served(cluster, *jobs)
        assert main_pid(systemd) not in (0, before)
        assert found(systemd) == f"ok       {NODE}: slurmd runs (process {main_pid(systemd)})"
    assert registrations_refused(cluster) == 1
    assert systemd.show(UNIT, "InvocationID") == started
    ended_well(cluster, *jobs)


def test_one_that_hangs_is_started_anew_by_its_unit_beside_a_job(enrolled: Site) -> None:
    cluster, systemd = enrolled
    job = cluster.submit(CUDA_JOB, "--gres=gpu:3g.20gb:1")
    reconcile_until(cluster, job)
    served(cluster, job)
    hung, started = main_pid(systemd), systemd.show(UNIT, "InvocationID")
    wants = cluster.submit("true", "--gres=gpu:2g.10gb:1")
    systemd.run("kill", "-STOP", str(hung))
    reconcile_until(cluster, wants)
    assert systemd.show(UNIT, "ActiveState") == "active"
    assert main_pid(systemd) not in (0, hung)
    assert systemd.show(UNIT, "InvocationID") != started
    assert "DRAIN" not in cluster.node(NODE)["State"]
    cluster.wait_job(wants, "COMPLETED")
    ended_well(cluster, job)
