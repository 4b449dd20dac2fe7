"""Nodes that are left alone whatever the queue asks for, and configurations that are refused."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from slurm_mig.errors import Exit
from tests.testbed.cluster import A100, NodeSpec
from tests.testbed.jobs import absent, no_jobs, reconcile_until
from tests.testbed.product import ManagedCluster

CONF = """\
RebootProgram=/bin/true
SuspendProgram=/bin/true
ResumeProgram=/bin/true
SuspendTimeout=2
ResumeTimeout=60
MaxNodeCount=16
"""
NAMES = ("a100-1", "a100-2", "a100-3")


@pytest.fixture(scope="module")
def lab() -> Iterator[ManagedCluster]:
    nodes = tuple(NodeSpec(name, (A100,)) for name in NAMES)
    with ManagedCluster(nodes=nodes, extra_conf=CONF) as cluster:
        cluster.enrol()
        yield cluster


@pytest.fixture
def site(lab: ManagedCluster) -> Iterator[ManagedCluster]:
    yield lab
    no_jobs(lab)


def wanting(cluster: ManagedCluster, node: str) -> int:
    profile = absent(cluster, node, among=("3g.20gb", "2g.10gb", "1g.10gb"))
    others = ",".join(n for n in NAMES if n != node)
    return cluster.submit("true", f"--gres=gpu:{profile}:1", f"--exclude={others}")


def left_alone(cluster: ManagedCluster, node: str, state: str) -> int:
    """A job that only this node may serve waits, and the cycle says for what."""
    wants, before = wanting(cluster, node), cluster.sim(node)["created"]
    reason = cluster.node(node).get("Reason", "")
    said = cluster.slurm_mig("reconcile").stdout
    assert f"job {wants} (" in said
    assert state in said
    assert cluster.sim(node)["created"] == before
    assert cluster.node(node).get("Reason", "") == reason
    assert cluster.job(wants)["JobState"] == "PENDING"
    return wants


def served(cluster: ManagedCluster, job: int) -> None:
    reconcile_until(cluster, job)
    cluster.wait_job(job, "COMPLETED")


def update(cluster: ManagedCluster, node: str, *words: str) -> None:
    cluster.run("scontrol", "update", f"NodeName={node}", *words)


def test_a_node_that_failed_or_is_down(site: ManagedCluster) -> None:
    update(site, "a100-1", "State=FAIL", "Reason=fan is loud")
    site.run("scancel", str(left_alone(site, "a100-1", "FAIL")))
    update(site, "a100-1", "State=DOWN", "Reason=fan is loud")
    wants = left_alone(site, "a100-1", "DOWN")
    update(site, "a100-1", "State=RESUME")
    site.sh(f"kill -HUP {site.pid('slurmd', 'a100-1')}")
    served(site, wants)


def test_a_node_that_waits_for_its_reboot(site: ManagedCluster) -> None:
    """A reboot waits until the node is idle: what runs goes on, and nothing is reshaped."""
    runs = site.submit("sleep 60", "--gres=gpu:1g.5gb:1", "--nodelist=a100-1")
    site.wait_job(runs, "RUNNING")
    site.run("scontrol", "reboot", "a100-1")
    wants = left_alone(site, "a100-1", "REBOOT_REQUESTED")
    site.run("scontrol", "cancel_reboot", "a100-1")
    served(site, wants)
    assert site.job(runs)["JobState"] == "RUNNING"


def test_a_node_that_reboots(site: ManagedCluster) -> None:
    site.run("scontrol", "reboot", "a100-2")
    site.wait_for(lambda: "REBOOT_ISSUED" in site.node("a100-2")["State"], 30, "the reboot")
    left_alone(site, "a100-2", "REBOOT_ISSUED")


def test_power_saving(site: ManagedCluster) -> None:
    """On the way down, while it is off, and on the way up."""
    update(site, "a100-3", "State=POWER_DOWN")
    site.wait_for(lambda: "POWER" in site.node("a100-3")["State"], 30, "the power down")
    site.run("scancel", str(left_alone(site, "a100-3", "POWER")))
    site.wait_for(lambda: "POWERED_DOWN" in site.node("a100-3")["State"], 30, "the node to be off")
    wants = left_alone(site, "a100-3", "POWERED_DOWN")
    site.run("scancel", str(wants))
    update(site, "a100-3", "State=POWER_UP")
    site.wait_for(lambda: "POWERING_UP" in site.node("a100-3")["State"], 30, "the power up")
    left_alone(site, "a100-3", "POWERING_UP")


def test_a_dynamic_node_is_refused(site: ManagedCluster) -> None:
    """It has no line in slurm.conf that could be ours, and may vanish at any time."""
    site.kill_daemon("slurmd", "a100-2")
    site.run("slurmd", "-Z", "-N", "dyn-1", "--conf", "Feature=dyn", node="a100-2")
    site.wait_for(
        lambda: "DYNAMIC_NORM" in site.run("scontrol", "show", "node", "dyn-1", check=False).stdout,
        30, "the dynamic node")  # fmt: skip
    done = site.slurm_mig("enrol", "dyn-1", check=False)
    assert done.returncode == Exit.BUSY
    assert "dyn-1 is DYNAMIC_NORM+IDLE; nothing was changed" in done.stderr


@pytest.mark.parametrize(
    ("path", "line", "words"),
    [
        ("gres.conf", "NodeName=a100-1 AutoDetect=nvml", "gpu or AutoDetect lines for nodes"),
        ("slurm.conf", "GresTypes=gpu,shard", "fillers would carry shards too"),
    ],
)
def test_what_slurm_mig_cannot_live_with_appears_later(
    site: ManagedCluster, path: str, line: str, words: str
) -> None:
    """Every managed node is left alone, with the reason, until the line is gone again."""
    file = f"/etc/slurm/{path}"
    text = site.read(file)
    site.write(file, text + line + "\n")
    try:
        wants = left_alone(site, "a100-1", words)
    finally:
        site.write(file, text)
    served(site, wants)
