"""Whose is a drain? Administrators' hands in the middle of a reshape, and fences that were lost."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from slurm_mig.core import demand
from slurm_mig.core.model import is_filler
from tests.cluster.test_backup import state_is_saved
from tests.testbed.cluster import A100, NodeSpec
from tests.testbed.jobs import absent, computing, ended_well, gres, no_jobs, reconcile_until
from tests.testbed.product import CUDA_JOB, ManagedCluster

NODE = "a100-1"
UPDATE = ("scontrol", "update", f"NodeName={NODE}")
HANDS = {
    "drain": (*UPDATE, "State=DRAIN", "Reason=fan is loud"),
    "resume": (*UPDATE, "State=RESUME"),
    "reason": (*UPDATE, "Reason=fan is loud"),
}
UNSOUND = {"DRAIN", "INVALID_REG", "NOT_RESPONDING"}
POINTS = (
    "cluster.drain",
    "nodes.reshape",
    "files.write",
    "cluster.set_gres",
    "nodes.publish",
    "store.save_managed",
    "cluster.loosen",
)


@pytest.fixture(scope="module")
def node() -> Iterator[ManagedCluster]:
    with ManagedCluster(nodes=(NodeSpec(NODE, (A100, A100)),)) as cluster:
        cluster.enrol()
        yield cluster


@pytest.fixture
def one(node: ManagedCluster) -> Iterator[ManagedCluster]:
    """The node with a job on it; that job must end well whatever the test did."""
    running = computing(node, "gpu:1g.5gb:1")
    yield node
    ended_well(node, running)
    no_jobs(node)


def wanting(cluster: ManagedCluster, script: str = "true") -> int:
    """A job for a profile that the node does not offer now."""
    profile = absent(cluster, NODE)
    return cluster.submit(script, f"--gres=gpu:{profile}:1")


def reconcile_until_it_starts(cluster: ManagedCluster, job: int) -> None:
    for _ in range(6):
        cluster.slurm_mig("reconcile", check=False)
        if cluster.job(job)["JobState"] != "PENDING":
            return


def agreed(cluster: ManagedCluster) -> bool:
    """slurmctld, our files and the GPUs say the same."""
    shown = demand.parse_gres(cluster.node(NODE)["Gres"])
    lines = cluster.read("/etc/slurm/slurm-mig/gres.conf").splitlines()
    types = [line.split("Type=")[1].split()[0] for line in lines if "Name=gpu" in line]
    real = sorted(t for t in types if not t.startswith(("off", "guard")))
    there = sorted(i["profile"] for _, i in cluster.instances(NODE))
    return types == [t for t, n in shown.items() for _ in range(n)] and real == there


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("hand", HANDS)
def test_a_hand_in_the_middle(one: ManagedCluster, hand: str, point: str) -> None:
    """A drain or a reason that is not ours stays to the letter; a resume is no harm."""
    wants = wanting(one)
    one.run("python", "-m", "tests.testbed.die_at", point, *HANDS[hand], timeout=120)
    assert agreed(one)
    shown = one.node(NODE)
    assert "INVALID_REG" not in shown["State"]
    if hand == "resume":
        assert "DRAIN" not in shown["State"]
    else:
        assert "DRAIN" in shown["State"]
        assert shown["Reason"].startswith("fan is loud")
        assert "fan is loud" in one.slurm_mig("status").stdout
        one.slurm_mig("reconcile")
        assert one.node(NODE)["Reason"].startswith("fan is loud")
        one.run(*UPDATE, "State=RESUME")
        one.sh(f"kill -HUP {one.pid('slurmd', NODE)}")
    reconcile_until(one, wants)
    one.wait_job(wants, "COMPLETED")


def test_a_fence_without_a_transaction_is_taken_down(one: ManagedCluster) -> None:
    """slurmctld killed just after a release can bring the node back with our drain."""
    one.run(*UPDATE, "State=DRAIN", "Reason=slurm-mig: reshaping (0badcafe)")
    assert one.status()["nodes"][0]["condition"] == "broken"
    one.slurm_mig("reconcile")
    assert "DRAIN" not in one.node(NODE)["State"]


def test_an_old_state_of_our_files_costs_no_job(one: ManagedCluster) -> None:
    """Brought back from a backup under a job of a type that the node did not have then, and
    slurmctld restarted: the type is listed all the same, so the job lives. The next cycle repairs.
    """
    path = "/etc/slurm/slurm-mig/nodes.conf"
    old = one.read(path)
    runs = wanting(one, CUDA_JOB)
    reconcile_until_it_starts(one, runs)
    one.wait_for(lambda: one.reports(runs, "first"), 20, f"job {runs} to compute")
    one.write(path, old)
    one.restart_daemon("slurmctld")
    one.wait_for(
        lambda: "INVALID_REG" in one.run("scontrol", "show", "node", NODE, check=False).stdout,
        60, "slurmctld to refuse the registration")  # fmt: skip
    for _ in range(6):
        one.slurm_mig("reconcile", check=False)
        if agreed(one) and not UNSOUND & set(one.node(NODE)["State"].split("+")):
            break
    assert agreed(one)
    assert not UNSOUND & set(one.node(NODE)["State"].split("+"))
    one.run("touch", f"/tmp/jobs/{runs}.stop")
    assert one.wait_job(runs, "COMPLETED", "FAILED")["JobState"] == "COMPLETED"
    assert one.reports(runs, "first")[0]["uuid"] == one.reports(runs, "second")[0]["uuid"]
    later = wanting(one)
    reconcile_until_it_starts(one, later)
    one.wait_job(later, "COMPLETED")


STATE, SAVED = "/var/lib/slurm/ctld", "/run/saved"


def test_a_reshape_that_slurmctld_forgets_gives_no_job_a_wrong_device(one: ManagedCluster) -> None:
    """Killed before it has saved the reshape it comes back with the old types, on a node that is
    not drained; but no job starts there before slurmd has registered what there really is."""
    state_is_saved(one)
    one.sh(f"rm -rf {SAVED}; cp -a {STATE} {SAVED}")
    before = gres(one)
    wants = one.submit("true", f"--gres=gpu:{absent(one, NODE, among=('7g.40gb', '4g.20gb'))}:1")
    reconcile_until(one, wants)
    after = gres(one)
    fewer = next(t for t, n in before.items() if not is_filler(t) and n > after.get(t, 0))
    one.sh(f"kill -9 $(cat /run/slurm/slurmctld.pid); rm -rf {STATE}; cp -a {SAVED} {STATE}")
    one.start_daemon("slurmctld")
    one.wait_for(lambda: one.run("scontrol", "ping", check=False).returncode == 0, 30, "slurmctld")
    assert gres(one) == before
    asked = [one.submit("true", f"--gres=gpu:{fewer}:1") for _ in range(before[fewer])]
    looks = 0
    while True:
        started = [job for job in asked if one.job(job)["JobState"] != "PENDING"]
        if gres(one) != before:
            break
        assert not started
        looks += 1
    assert looks
    assert gres(one) == after
    assert agreed(one)


def test_a_node_that_is_deleted_in_the_middle_ends_its_transaction() -> None:
    """Nothing is left to release; the record says why."""
    nodes = (NodeSpec(NODE, (A100,)), NodeSpec("a100-2", (A100,)))
    with ManagedCluster(nodes=nodes) as cluster:
        cluster.run("scontrol", "update", "NodeName=a100-2", "State=DRAIN", "Reason=kept out")
        cluster.slurm_mig("enrol", NODE)
        wanting(cluster)
        died = cluster.run("python", "-m", "tests.testbed.die_at", "nodes.reshape", check=False)
        assert died.returncode == -9
        conf = cluster.read("/etc/slurm/slurm.conf")
        kept = [line for line in conf.splitlines() if "slurm-mig/nodes.conf" not in line]
        text = "\n".join(kept).replace(f"Nodes={NODE},a100-2", "Nodes=a100-2") + "\n"
        cluster.write("/etc/slurm/slurm.conf", text.replace("mig-catalog-1", "a100-2"))
        cluster.restart_daemon("slurmctld")
        cluster.wait_for(lambda: cluster.run("sinfo", "-h", check=False).stdout, 20, "slurmctld")
        done = cluster.slurm_mig("reconcile", check=False)
        assert f"slurmctld has no node {NODE} any more" in done.stdout + done.stderr
        assert cluster.history()[-1]["phase"] == "abandoned"
