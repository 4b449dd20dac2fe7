"""A reconcile killed at any point is finished or undone by the next one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from slurm_mig.core import demand
from slurm_mig.core.model import is_filler
from tests.cluster.test_backup import state_is_saved
from tests.testbed import faults
from tests.testbed.cluster import A100, NodeSpec
from tests.testbed.jobs import absent, computing, ended_well, no_jobs
from tests.testbed.product import CONFIGURATION, CUDA_JOB, ManagedCluster

NODE = "a100-1"
POINTS = (
    "store.save_transaction",
    "cluster.drain",
    "before:reshape",
    "nodes.reshape",
    "before:write files",
    "files.write",
    "before:register",
    "cluster.set_gres",
    "nodes.publish",
    "store.save_managed",
    "before:release",
    "cluster.loosen",
    "cluster.resume",
)


@pytest.fixture(scope="module")
def node() -> Iterator[ManagedCluster]:
    with ManagedCluster(nodes=(NodeSpec(NODE, (A100, A100)),)) as cluster:
        cluster.enrol()
        yield cluster


@pytest.fixture
def one(node: ManagedCluster) -> Iterator[ManagedCluster]:
    yield node
    no_jobs(node)


@pytest.mark.parametrize("point", POINTS)
def test_killed_after(one: ManagedCluster, point: str) -> None:
    running = one.submit(CUDA_JOB, "--gres=gpu:1g.5gb:1")
    one.wait_for(lambda: one.reports(running, "first"), 20, f"job {running} to compute")
    wants = one.submit(CUDA_JOB, f"--gres=gpu:{absent(one, NODE)}:1")
    died = one.run("python", "-m", "tests.testbed.die_at", point, check=False)
    assert died.returncode == -9, died.stdout + died.stderr
    for _ in range(8):
        one.slurm_mig("reconcile")
        if one.job(wants)["JobState"] == "RUNNING":
            break
    one.wait_job(wants, "RUNNING", timeout=90)
    one.wait_for(lambda: one.reports(wants, "first"), 40, f"job {wants} to compute")
    state = one.node(NODE)
    assert "DRAIN" not in state["State"]
    shown = demand.parse_gres(state["Gres"])
    assert sum(shown.values()) == 15
    for job in (running, wants):
        one.run("touch", f"/tmp/jobs/{job}.stop")
        ended = one.wait_job(job, "COMPLETED", "FAILED", timeout=90)
        assert ended["JobState"] == "COMPLETED", one.output(job)
        first, second = one.reports(job, "first"), one.reports(job, "second")
        assert first[0]["uuid"] == second[0]["uuid"]


def test_killed_after_the_reshape_and_drained_by_somebody_else(one: ManagedCluster) -> None:
    """What was done to the GPUs is known by the journal alone, as the fence is not ours any more:
    Slurm is told of it under his drain, which stays."""
    wants = one.submit("true", f"--gres=gpu:{absent(one, NODE)}:1")
    died = one.run("python", "-m", "tests.testbed.die_at", "nodes.reshape", check=False)
    assert died.returncode == -9, died.stdout + died.stderr
    one.run("scontrol", "update", f"NodeName={NODE}", "State=RESUME")
    one.run("scontrol", "update", f"NodeName={NODE}", "State=DRAIN", "Reason=fan is loud")
    one.slurm_mig("reconcile")
    shown = demand.parse_gres(one.node(NODE)["Gres"])
    offered = sorted(t for t, n in shown.items() for _ in range(n) if not is_filler(t))
    assert offered == sorted(i["profile"] for _, i in one.instances(NODE))
    assert one.node(NODE)["Reason"].startswith("fan is loud")
    one.run("scontrol", "update", f"NodeName={NODE}", "State=RESUME")
    one.sh(f"kill -HUP {one.pid('slurmd', NODE)}")
    one.wait_job(wants, "COMPLETED", timeout=60)


KILLED = """
pkill -9 -f 'slurmstepd: .{job}[.]'
for pid in $(pgrep fake-cuda); do
    grep -qzx SLURM_JOB_ID={job} /proc/$pid/environ && kill -9 $pid
done
true
"""
UNHEARD = {
    "forgotten": (KILLED, "RUNNING"),
    "over": ("touch /tmp/jobs/{job}.stop", "COMPLETING"),
}
"""What becomes of a job while no slurmd runs, and its state then."""


@pytest.mark.parametrize("what", UNHEARD)
def test_slurmd_killed_after_the_reshape_beside_a_job_that_ends(
    one: ManagedCluster, what: str
) -> None:
    """slurmd finds devices in its old files that are gone and cannot start; for slurmctld a job
    still runs of which nothing is left, or does not end. Waiting for that job before the files are
    written would last until slurmctld kills every job there, when SlurmdTimeout has passed: the
    next cycle brings slurmd back instead."""
    strike, state = UNHEARD[what]
    ends, stays = (computing(one, "gpu:1g.5gb:1", "--no-requeue") for _ in range(2))
    one.submit("true", f"--gres=gpu:{absent(one, NODE)}:1")
    died = one.run("python", "-m", "tests.testbed.die_at", "nodes.reshape", check=False)
    assert died.returncode == -9, died.stdout + died.stderr
    one.kill_daemon("slurmd", NODE, signal="KILL")
    one.sh(strike.format(job=ends))
    one.wait_job(ends, state)
    one.configure(CONFIGURATION.replace("cooldown_s: 0", "cooldown_s: 0\n  settle_s: 0.5"))
    one.slurm_mig("reconcile")
    one.configure(CONFIGURATION)
    assert "DRAIN" not in one.node(NODE)["State"]
    assert one.pid("slurmd", NODE)
    ended_well(one, stays)


CTLD_LOG = "/var/log/slurm/slurmctld.log"
REFUSAL = "count too low"
AFTER_IT = (
    f"until [ $(grep -c '{REFUSAL}' {CTLD_LOG}) -gt $0 ]; do sleep 0.01; done; "
    f"{faults.SLURMCTLD[0].strike}"
)
BETWEEN = {"we die": (), "slurmctld dies": ("sh", "-ec", AFTER_IT)}


@pytest.fixture(scope="module")
def narrow() -> Iterator[ManagedCluster]:
    """One GPU, where two 2g.10gb beside a 1g.5gb leave no room for a 3g.20gb: it vanishes."""
    with ManagedCluster(nodes=(NodeSpec(NODE, (A100,)),)) as cluster:
        cluster.enrol()
        yield cluster


@pytest.mark.parametrize("who", BETWEEN)
def test_between_the_two_registrations(narrow: ManagedCluster, who: str) -> None:
    """slurmctld has refused the first one and rebuilt its topology. The running job lives, and the
    next cycles finish what was begun."""
    running = narrow.submit(CUDA_JOB, "--gres=gpu:1g.5gb:1")
    narrow.wait_for(lambda: narrow.reports(running, "first"), 20, f"job {running} to compute")
    served(narrow, narrow.submit("true", "--gres=gpu:3g.20gb:1"))
    wants = narrow.submit("true", "--gres=gpu:2g.10gb:2")
    if BETWEEN[who]:
        state_is_saved(narrow)
    refused = narrow.read(CTLD_LOG).count(REFUSAL)
    command = (*BETWEEN[who], str(refused)) if BETWEEN[who] else ()
    narrow.run("python", "-m", "tests.testbed.die_at", "nodes.preregister", *command,
               check=False, timeout=120)  # fmt: skip
    narrow.wait_for(lambda: narrow.run("sinfo", "-h", check=False).stdout, 60, "slurmctld")
    served(narrow, wants)
    assert narrow.read(CTLD_LOG).count(REFUSAL) > refused
    assert not {"DRAIN", "FAIL", "INVALID_REG"} & set(narrow.node(NODE)["State"].split("+"))
    narrow.run("touch", f"/tmp/jobs/{running}.stop")
    ended = narrow.wait_job(running, "COMPLETED", "FAILED", timeout=90)
    assert ended["JobState"] == "COMPLETED", narrow.output(running)
    first, second = narrow.reports(running, "first"), narrow.reports(running, "second")
    assert first[0]["uuid"] == second[0]["uuid"]


def served(cluster: ManagedCluster, job: int) -> None:
    """Cycles until the job has ended."""
    for _ in range(8):
        cluster.slurm_mig("reconcile", check=False)
        if cluster.job(job)["JobState"] != "PENDING":
            break
    cluster.wait_job(job, "COMPLETED", timeout=60)
