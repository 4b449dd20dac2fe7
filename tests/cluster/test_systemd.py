"""Our units under a real systemd: timer, wake, start limits, the order before slurmd."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import pairwise

import pytest

from tests.testbed.cluster import A100, NodeSpec
from tests.testbed.product import CONFIGURATION, ManagedCluster
from tests.testbed.systemd import ETC_UNITS, UNITS, Systemd

WAKE = "/run/slurm-mig/ctld/wake"
REPORT = "/var/lib/slurm-mig/cycle.json"
GPUS = "/var/lib/slurm-mig/gpus.json"
MIN_INTERVAL_S = 1.0
STARTS = 5
"""systemd's own limit, within 10 s."""


@pytest.fixture(scope="module")
def host() -> Iterator[tuple[ManagedCluster, Systemd]]:
    """A head with slurmctld and systemd; nothing is in slurm-mig's care, so cycles are short."""
    with ManagedCluster(nodes=(NodeSpec("n1", (A100,)),), configuration=CONFIGURATION) as cluster:
        cluster.slurm_mig("reconcile")
        with Systemd(cluster) as systemd:
            yield cluster, systemd


def last_cycle(cluster: ManagedCluster) -> float:
    """When the last cycle ended."""
    return float(cluster.sh(f"sed -n 's/^ \"time\": //p' {REPORT}").rstrip(",\n"))


def another_cycle(cluster: ManagedCluster) -> None:
    """Wait for one that has not ended yet."""
    before = last_cycle(cluster)
    cluster.wait_for(lambda: last_cycle(cluster) != before, 40, "the next cycle")


def test_every_unit_is_one(host: tuple[ManagedCluster, Systemd]) -> None:
    _, systemd = host
    names = [f"{ETC_UNITS}/{unit.name}" for unit in sorted(UNITS.iterdir())]
    done = systemd.run("systemd-analyze", "verify", "--man=no", *names, check=False)
    ours = [line for line in done.stderr.splitlines() if "slurm-mig" in line]
    assert (done.returncode, ours) == (0, []), done.stderr


def test_the_timer_repeats_the_cycle(host: tuple[ManagedCluster, Systemd]) -> None:
    cluster, systemd = host
    systemd.ctl("start", "slurm-mig.timer")
    systemd.ctl("start", "slurm-mig.service")
    another_cycle(cluster)
    another_cycle(cluster)
    assert systemd.show("slurm-mig.service", "Result") == "success"
    systemd.ctl("stop", "slurm-mig.timer")


def test_wakes_without_pause_neither_pile_up_nor_end_it(
    host: tuple[ManagedCluster, Systemd],
) -> None:
    """More starts than systemd's own limit allows, and never less than the interval between."""
    cluster, systemd = host
    systemd.ctl("start", "slurm-mig.path")
    ends: list[float] = [last_cycle(cluster)]
    deadline = time.monotonic() + 25
    while len(ends) < STARTS + 4 and time.monotonic() < deadline:
        cluster.sh(f"echo submit >{WAKE}")
        end = last_cycle(cluster)
        if end != ends[-1]:
            ends.append(end)
    assert len(ends) >= STARTS + 3
    assert min(b - a for a, b in pairwise(ends[1:])) >= MIN_INTERVAL_S
    assert systemd.show("slurm-mig.service", "Result") == "success"
    assert systemd.show("slurm-mig.path", "ActiveState") == "active"
    # The last wish is heard too.
    cluster.wait_for(lambda: cluster.run("test", "!", "-e", WAKE, check=False).returncode == 0,
                     20, "the wish to be heard")  # fmt: skip
    systemd.ctl("stop", "slurm-mig.path")


def test_a_cycle_that_cannot_begin_is_not_started_again_at_once(
    host: tuple[ManagedCluster, Systemd],
) -> None:
    cluster, systemd = host
    cluster.wait_for(lambda: systemd.show("slurm-mig.service", "ActiveState") == "inactive", 20,
                     "the last cycle to end")  # fmt: skip
    cluster.configure("nonsense: 1\n")
    try:
        systemd.ctl("start", "slurm-mig.path")
        cluster.sh(f"echo submit >{WAKE}")
        cluster.wait_for(lambda: systemd.show("slurm-mig.service", "Result") == "exit-code", 20,
                         "the unit to fail")  # fmt: skip
        began = systemd.show("slurm-mig.service", "InactiveEnterTimestampMonotonic")
        time.sleep(2)
        assert systemd.show("slurm-mig.service", "InactiveEnterTimestampMonotonic") == began
        assert systemd.show("slurm-mig.path", "ActiveState") == "active"
    finally:
        cluster.configure(CONFIGURATION)
    cluster.sh(f"echo submit >{WAKE}")
    cluster.wait_for(lambda: systemd.show("slurm-mig.service", "Result") == "success", 20,
                     "the next wish to be fulfilled")  # fmt: skip
    systemd.ctl("stop", "slurm-mig.path")


def test_the_loop_takes_the_place_of_timer_and_path(host: tuple[ManagedCluster, Systemd]) -> None:
    cluster, systemd = host
    systemd.ctl("start", "slurm-mig.timer", "slurm-mig.path")
    systemd.ctl("start", "slurm-mig-loop.service")
    for unit in ("slurm-mig.timer", "slurm-mig.path"):
        assert systemd.show(unit, "ActiveState") == "inactive"
    another_cycle(cluster)
    time.sleep(2.2 * MIN_INTERVAL_S)
    woken = last_cycle(cluster)
    cluster.sh(f"echo submit >{WAKE}")
    cluster.wait_for(lambda: last_cycle(cluster) != woken, 20, "a woken cycle")
    first = systemd.show("slurm-mig-loop.service", "MainPID")
    systemd.ctl("kill", "--signal=KILL", "slurm-mig-loop.service")
    cluster.wait_for(
        lambda: systemd.show("slurm-mig-loop.service", "MainPID") not in (first, "0"),
        20, "the loop to be started again")  # fmt: skip
    systemd.ctl("stop", "slurm-mig-loop.service")
    assert systemd.show("slurm-mig-loop.service", "Result") == "success"


def test_the_check_is_woken_by_an_epilog_and_stays(host: tuple[ManagedCluster, Systemd]) -> None:
    cluster, systemd = host
    cluster.sh("mkdir -p /run/slurm-mig/clean")
    cluster.write("/run/slurm-mig/slots", "# slurm-mig slots v1\nconstrained=yes\n")
    systemd.ctl("start", "slurm-mig-check.path")
    for job in range(3):
        cluster.sh(f"echo '{job} 2001 0' >>/run/slurm-mig/ended")
        cluster.wait_for(
            lambda: cluster.run("test", "!", "-e", "/run/slurm-mig/ended", check=False).returncode
            == 0, 20, "the note to be taken")  # fmt: skip
    assert systemd.show("slurm-mig-check.service", "ActiveState") == "activating"
    systemd.ctl("stop", "slurm-mig-check.path", "slurm-mig-check.service")


def test_slurmd_comes_after_the_restore_and_not_without_it(
    host: tuple[ManagedCluster, Systemd],
) -> None:
    """There is no driver on the head: where instances are to be restored, slurmd stays down."""
    cluster, systemd = host
    systemd.run("sh", "-ec", f"mkdir -p {ETC_UNITS}/slurmd.service.d; "
                f"printf '[Service]\\nType=exec\\nExecStart=\\nExecStart=sleep 60\\n' "
                f">{ETC_UNITS}/slurmd.service.d/test.conf; "
                f"mkdir -p {ETC_UNITS}/slurm-mig-restore.service.d; "
                f"printf '[Service]\\nExecStart=\\nExecStart=slurm-mig restore --wait 1\\n' "
                f">{ETC_UNITS}/slurm-mig-restore.service.d/test.conf")  # fmt: skip
    systemd.ctl("enable", "slurm-mig-restore.service")
    systemd.ctl("daemon-reload")
    # Nothing to restore: slurmd starts.
    systemd.ctl("start", "slurmd.service")
    assert systemd.show("slurmd.service", "ActiveState") == "active"
    systemd.ctl("stop", "slurmd.service")
    cluster.sh(f"echo '{{}}' >{GPUS}")
    try:
        done = systemd.ctl("start", "slurmd.service", check=False)
        assert done.returncode
        assert systemd.show("slurm-mig-restore.service", "ActiveState") == "failed"
        assert systemd.show("slurmd.service", "ActiveState") == "inactive"
    finally:
        cluster.sh(f"rm {GPUS}")
