"""What administrators and users meet: enrol and leave, clear refusals, the submit plugin, UUIDs."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from slurm_mig.core import slotmap
from slurm_mig.errors import Exit
from tests.testbed.cluster import A100, NodeSpec
from tests.testbed.product import CONFIGURATION, ManagedCluster

FILES = ("/etc/slurm/slurm.conf", "/etc/slurm/gres.conf")
OURS = ("/etc/slurm/slurm-mig/nodes.conf", "/etc/slurm/slurm-mig/gres.conf")


@pytest.fixture(scope="module")
def site() -> Iterator[ManagedCluster]:
    """One node that is not enrolled yet."""
    with ManagedCluster(nodes=(NodeSpec("a100-1", (A100,)),)) as cluster:
        yield cluster


def test_enrol_refuses_a_node_with_gpu_jobs_and_leaves_it_as_it_was(site: ManagedCluster) -> None:
    job = site.submit("exec sleep 60", "--gres=gpu:1g.5gb:1")
    site.wait_job(job, "RUNNING")
    before = [site.read(path) for path in FILES]
    done = site.slurm_mig("enrol", "a100-1", check=False)
    assert done.returncode == Exit.BUSY
    assert f"a100-1 has gpu jobs ({job})" in done.stderr
    assert [site.read(path) for path in FILES] == before
    assert "DRAIN" not in site.node("a100-1")["State"]
    site.run("scancel", str(job))
    site.wait_job(job, "CANCELLED")


def test_enrol_and_leave_return_the_sites_files_to_the_byte(site: ManagedCluster) -> None:
    before = [site.read(path) for path in FILES]
    gres = site.node("a100-1")["Gres"]
    site.slurm_mig("enrol", "a100-1", "--wait", "20")
    assert site.node("a100-1")["Gres"] == "gpu:1g.5gb:7,gpu:guard:1"
    assert site.slurm_mig("enrol", "a100-1", check=False).returncode == Exit.USAGE
    site.slurm_mig("leave", "a100-1")
    assert [site.read(path) for path in FILES] == before
    assert site.node("a100-1")["Gres"] == gres
    job = site.submit("true", "--gres=gpu:1g.5gb:1")
    site.wait_job(job, "COMPLETED")
    assert site.slurm_mig("leave", "a100-1", check=False).returncode == Exit.USAGE


def test_a_node_that_does_not_exist(site: ManagedCluster) -> None:
    done = site.slurm_mig("enrol", "a100-9", check=False)
    assert done.returncode == Exit.USAGE
    assert "slurmctld knows no node a100-9; nothing was changed" in done.stderr
    assert "It knows: a100-1" in done.stderr


def test_a_bad_configuration_lists_its_faults(cluster: ManagedCluster) -> None:
    cluster.configure("policy: {cooldown: 3}\nremote: {timeout_s: -1}\n")
    done = cluster.slurm_mig("reconcile", check=False)
    assert done.returncode == Exit.CONFIG
    assert ":1: policy.cooldown: unknown key, did you mean cooldown_s?" in done.stderr
    assert ":2: remote.timeout_s:" in done.stderr
    assert "nothing was changed" in done.stderr


def test_slurmctld_down(cluster: ManagedCluster) -> None:
    cluster.kill_daemon("slurmctld")
    try:
        done = cluster.slurm_mig("reconcile", check=False)
        assert done.returncode == Exit.UNREACHABLE
        assert "reading nodes from slurmctld" in done.stderr
        assert "scontrol ping" in done.stderr
    finally:
        cluster.start_daemon("slurmctld")
        cluster.wait_for(
            lambda: set(cluster.run("sinfo", "-h", "-N", "-o", "%t", check=False).stdout.split())
            == {"idle"},
            30, "every node to respond")  # fmt: skip


def test_our_gres_conf_edited_by_hand(cluster: ManagedCluster) -> None:
    path = OURS[1]
    text = cluster.read(path)
    cluster.write(path, text.replace("Type=guard", "Type=mine", 1))
    wants = cluster.submit("true", "--gres=gpu:3g.20gb:1")
    created = cluster.sim("a100-1")["created"]
    done = cluster.slurm_mig("reconcile", check=False)
    assert done.returncode == Exit.CONFIG
    assert f"{path} was edited by hand: line " in done.stderr
    assert "slurm-mig rewrite" in done.stderr
    assert cluster.sim("a100-1")["created"] == created
    cluster.slurm_mig("rewrite")
    assert cluster.read(path) == text
    cluster.run("scancel", str(wants))


def test_instances_changed_by_another_hand(cluster: ManagedCluster) -> None:
    """An instance more than published: the node is left alone and says so."""
    wants = cluster.submit("true", "--gres=gpu:4g.24gb:2")
    script = (
        "import pynvml; pynvml.nvmlInit(); d = pynvml.nvmlDeviceGetHandleByIndex(0)\n"
        "g = pynvml.nvmlDeviceGetGpuInstanceById(d, {gi})\n"
        "pynvml.nvmlComputeInstanceDestroy(pynvml.nvmlGpuInstanceGetComputeInstanceById(g, 0))\n"
        "pynvml.nvmlGpuInstanceDestroy(g)\n"
    )
    gi = next(i["gi"] for gpu, i in cluster.instances("a30-1") if gpu == 0)
    start = next(i["start"] for gpu, i in cluster.instances("a30-1") if gpu == 0)
    cluster.run("python", "-c", script.format(gi=gi), node="a30-1")
    done = cluster.slurm_mig("reconcile")
    assert "MIG instances were changed by another hand: missing GPU 0 1g.6gb" in done.stdout
    cluster.run("scancel", str(wants))
    remake = (
        "from slurm_mig.adapters.gpus import NvmlGpus; from slurm_mig.core.model import Placement\n"
        f"NvmlGpus().create(0, Placement({start}, 1, '1g.6gb'))\n"
    )
    cluster.run("python", "-c", remake, node="a30-1")
    assert cluster.status()["nodes"][2]["condition"] == "usable"


def test_two_at_once(cluster: ManagedCluster) -> None:
    cluster.begin("flock /var/lib/slurm-mig/lock sleep 5")
    cluster.wait_for(
        lambda: cluster.run("flock", "-n", "/var/lib/slurm-mig/lock", "true", check=False)
        .returncode, 5, "the lock to be held")  # fmt: skip
    done = cluster.slurm_mig("reconcile", check=False)
    assert done.returncode == Exit.BUSY
    assert "is at work" in done.stderr
    cluster.sh("flock /var/lib/slurm-mig/lock true")


def test_a_node_that_cannot_be_reached(cluster: ManagedCluster) -> None:
    cluster.configure(CONFIGURATION.replace("[on-node, ", "[/bin/false, "))
    cluster.submit("true", "--gres=gpu:7g.40gb:2")
    done = cluster.slurm_mig("reconcile")
    assert "the remote command ended" in done.stdout
    assert {n["condition"] for n in cluster.status()["nodes"]} == {"away"}


def test_plan_changes_nothing_and_agrees_with_status(cluster: ManagedCluster) -> None:
    wants = cluster.submit("exec sleep 1", "--gres=gpu:2g.12gb:1")
    before = cluster.node("a30-1")["Gres"], cluster.sim("a30-1")["created"]
    plan = json.loads(cluster.slurm_mig("plan", "--json").stdout)
    assert [c["serves"] for c in plan["changes"] if c["node"] == "a30-1"] == [[wants]]
    text = cluster.slurm_mig("plan").stdout
    assert "+ 2g.12gb@" in text
    assert (cluster.node("a30-1")["Gres"], cluster.sim("a30-1")["created"]) == before
    assert cluster.status()["waiting"][0]["job"] == wants


@pytest.mark.parametrize(
    ("gres", "message"),
    [
        ("gpu:off:1", "gpu:off is no device that a job may ask for"),
        ("gpu:guard:1", "gpu:guard is no device that a job may ask for"),
        ("gpu:9g.90gb:1", "no GPU of partition main can ever be gpu:9g.90gb; possible: 1g.10gb"),
    ],
)
def test_the_submit_plugin_refuses(cluster: ManagedCluster, gres: str, message: str) -> None:
    done = cluster.run("sbatch", f"--gres={gres}", "--wrap=true", user="alice", check=False)
    assert done.returncode
    assert message in done.stderr
    gpus = gres.removeprefix("gpu:")
    other = cluster.run("sbatch", f"--gpus={gpus}", "--wrap=true", user="alice", check=False)
    assert message in other.stderr


def test_an_untyped_request_gets_its_partitions_type(cluster: ManagedCluster) -> None:
    for options, wanted in (
        (("--gres=gpu:2",), "gres/gpu:1g.5gb:2"),
        (("--gpus-per-node=1", "-p", "a30"), "gres/gpu:1g.6gb:1"),
    ):
        job = cluster.submit("true", *options, "--hold")
        assert cluster.job(job)["TresPerNode"] == wanted


def test_uuids_in_batch_scripts_and_steps(cluster: ManagedCluster) -> None:
    """One and several instances, a step with fewer than the job."""
    script = (
        "echo $CUDA_VISIBLE_DEVICES\n"
        "srun sh -c 'echo $CUDA_VISIBLE_DEVICES'\n"
        "srun --gres=gpu:1g.5gb:1 sh -c 'echo $CUDA_VISIBLE_DEVICES'\n"
        "srun sh -c 'echo $NVIDIA_VISIBLE_DEVICES'\n"
    )
    job = cluster.submit(script, "--gres=gpu:1g.5gb:2")
    cluster.wait_job(job, "COMPLETED")
    batch, step, less, container = cluster.output(job).splitlines()
    uuids = batch.split(",")
    assert len(set(uuids)) == 2
    assert all(uuid.startswith("MIG-") for uuid in uuids)
    assert step == container == batch
    assert less in uuids


def test_uuids_where_devices_are_not_constrained() -> None:
    """CUDA_VISIBLE_DEVICES then holds the node's own indexes."""
    node = NodeSpec("a100-1", (A100,))
    with ManagedCluster(nodes=(node,)) as cluster:
        text = cluster.read("/etc/slurm/cgroup.conf").replace("ConstrainDevices=yes", "")
        cluster.write("/etc/slurm/cgroup.conf", text)
        cluster.restart_daemon("slurmd", "a100-1")
        cluster.enrol()
        holder = cluster.submit("exec sleep 60", "--gres=gpu:1g.5gb:3")
        cluster.wait_job(holder, "RUNNING")
        job = cluster.submit("fake-cuda --seconds 0 --report /tmp/jobs/r", "--gres=gpu:1g.5gb:1")
        cluster.wait_job(job, "COMPLETED", "FAILED")
        report = json.loads(cluster.read("/tmp/jobs/r"))
        known = slotmap.parse(cluster.read("/run/slurm-mig/slots", "a100-1"))
        assert not known.constrained
        assert known.slots[3].uuid == report["uuid"]


def test_every_command_has_a_help_page(cluster: ManagedCluster) -> None:
    for words in ((), ("status",), ("plan",), ("reconcile",), ("enrol",), ("leave",), ("node",)):
        assert "Usage: " in cluster.slurm_mig(*words, "--help").stdout
