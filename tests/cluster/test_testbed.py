"""The testbed itself: real daemons, simulated GPUs, nothing left behind."""

from __future__ import annotations

import os
from pathlib import Path

from tests.testbed.cluster import A100, Cluster, NodeSpec
from tests.testbed.namespaces import CGROUPS, cgroup_version


def test_a_user_gets_a_slice(plain: Cluster) -> None:
    job = plain.submit("nvml-sim dump >/dev/null; hostname", "--gres=gpu:1g.5gb:1", "-w", "a100-1")
    plain.wait_job(job, "COMPLETED")
    assert plain.output(job) == "a100-1\n"


def test_devices_are_constrained(plain: Cluster) -> None:
    """EPERM from the device cgroup, ENXIO where the node may be opened: no driver stands behind."""
    assert cgroup_version() in (1, 2), "this host cannot constrain devices"
    lines = plain.read("/etc/slurm/gres.conf").splitlines()
    caps = [line.rsplit(",", 1)[1] for line in lines if line.startswith("NodeName=a100-1 Name=gpu")]
    script = f"cat {caps[0]} 2>&1; cat {caps[1]} 2>&1; true"
    job = plain.submit(script, "--gres=gpu:1g.5gb:1", "-w", "a100-1")
    plain.wait_job(job, "COMPLETED")
    mine, other = plain.output(job).splitlines()
    assert "No such device or address" in mine
    assert "Operation not permitted" in other


def test_a_daemon_killed_and_restarted(plain: Cluster) -> None:
    before = plain.pid("slurmd", "a100-2")
    plain.restart_daemon("slurmd", "a100-2", signal="KILL")
    assert plain.pid("slurmd", "a100-2") not in (0, before)


def test_the_node_without_overrides_has_what_the_host_has(plain: Cluster) -> None:
    assert plain.node("mixed-1")["CPUTot"] == str(os.cpu_count())


def test_two_side_by_side_and_nothing_left(plain: Cluster) -> None:
    """A second cluster with the same node name runs beside the first and is gone at its end."""
    spec = NodeSpec("a100-1", (A100,))
    with Cluster(nodes=(spec,)) as other:
        job = other.submit("hostname", "--gres=gpu:1g.5gb:1")
        other.wait_job(job, "COMPLETED")
        assert plain.node("a100-1")["Gres"] == "gpu:1g.5gb:14"
        name, pid = other.spaces.name, other.spaces.pid
    assert not Path(f"/proc/{pid}").exists()
    assert not list(CGROUPS.glob(f"*/{name}")) + list(CGROUPS.glob(name))
