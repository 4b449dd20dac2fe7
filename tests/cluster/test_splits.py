"""Compute instances of one GPU instance as devices of their own, on a node in slurm-mig's care."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from slurm_mig.errors import Exit
from tests.testbed.cluster import A100, NodeSpec
from tests.testbed.jobs import ended_well, gres, served
from tests.testbed.product import CONFIGURATION, CUDA_JOB, ManagedCluster

NODE = "a100-1"
PART = "1c.3g.20gb"
NARROW = CONFIGURATION.replace("node:\n", "node:\n  devices: narrow\n")

OTHERS = """\
me=/tmp/jobs/$SLURM_JOB_ID
fake-cuda --until-file $me.stop --report $me.first &
until [ -s /tmp/jobs/others ]; do sleep 0.1; done
for uuid in $(cat /tmp/jobs/others); do
    [ "$uuid" = "$CUDA_VISIBLE_DEVICES" ] || fake-cuda --probe $uuid >>$me.probe; echo probed $?
done
wait
srun fake-cuda --seconds 0.1 --report $me.second
"""
"""Computes, and tries to open what the other jobs have."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[ManagedCluster]:
    """The second of two A100 has a 3g.20gb in three parts when the node is enrolled."""
    spec = NodeSpec(NODE, (A100, A100))
    with ManagedCluster(nodes=(spec,), hooks=True, configuration=NARROW) as site:
        site.run("slurm-mig", "apply", f"gpu1={PART}@4*3,1g.5gb*4", node=NODE)
        site.enrol()
        yield site


def computing(cluster: ManagedCluster, gres_type: str, script: str = CUDA_JOB,
              user: str = "alice") -> int:  # fmt: skip
    cluster.sh("sleep 1.1")  # the submit plugin reads its table once a second
    job = cluster.submit(script, f"--gres=gpu:{gres_type}:1", user=user)
    served(cluster, job)
    return job


def first(cluster: ManagedCluster, job: int) -> dict[str, Any]:
    return cluster.reports(job, "first")[0]


def tried_all(cluster: ManagedCluster, job: int) -> bool:
    return cluster.output(job).count("probed") == 3


def widths(cluster: ManagedCluster) -> list[str]:
    """Devices of the second GPU's instance at slice 4, by the simulator's own word."""
    found = (i for gpu, i in cluster.instances(NODE) if gpu == 1 and i["start"] == 4)
    return [c["name"] for i in found for c in i["compute_instances"]]


def test_parts_are_a_type_of_their_own(cluster: ManagedCluster) -> None:
    now = gres(cluster)
    assert (now[PART], now["1g.5gb"]) == (3, 11)
    assert sum(now.values()) == 2 * 7 + 1
    listed = cluster.read("/etc/slurm/slurm-mig/nodes.conf")
    assert "gpu:2c.3g.20gb:0" in listed
    shown = cluster.slurm_mig("status").stdout
    assert f"|{PART}*3 " in shown
    assert "|free, free, free " in shown
    never = cluster.run("sbatch", "--gres=gpu:2c.3g.20gb:1", "--wrap=true", user="alice",
                        check=False)  # fmt: skip
    assert never.returncode
    assert f"can ever be gpu:2c.3g.20gb; possible: {PART}, 1g.10gb, 1g.5gb" in never.stderr


def test_a_part_of_a_node_by_name(cluster: ManagedCluster) -> None:
    """Slurm tests such a job against that node alone: a part is there, or nobody queues for it."""
    cluster.sh("sleep 1.1")  # the submit plugin reads its table once a second
    job = cluster.submit("prove own", f"--gres=gpu:{PART}:1", "-w", NODE)
    assert cluster.job(job)["ReqNodeList"] == NODE
    cluster.wait_job(job, "COMPLETED", "FAILED")
    assert [report["profile"] for report in cluster.reports(job, "own")] == [PART]
    never = cluster.run("sbatch", "--gres=gpu:2c.3g.20gb:1", "-w", NODE, "--wrap=true",
                        user="alice", check=False)  # fmt: skip
    assert never.returncode
    assert "can ever be gpu:2c.3g.20gb" in never.stderr


def test_three_jobs_in_one_gpu_instance(cluster: ManagedCluster) -> None:
    """Each has its own compute instance, and can open no other's; the GPU's other instances are
    cut differently meanwhile; whatever has a part in use stays."""
    users = ("alice", "bob", "alice")
    jobs = [computing(cluster, PART, OTHERS, user) for user in users]
    reports = [first(cluster, job) for job in jobs]
    assert len({(r["gpu"], r["gi"]) for r in reports}) == 1
    assert sorted(r["ci"] for r in reports) == [0, 1, 2]
    for report, user in zip(reports, users, strict=True):
        gi, ci = report["files"][2:]
        shown = cluster.sh(f"stat -c '%U %a' {gi} {ci}", node=NODE).split()
        assert shown == ["root", "444", user, "400"]
    cluster.write("/tmp/jobs/others", "\n".join(r["uuid"] for r in reports) + "\n")
    for job in jobs:
        cluster.wait_for(partial(tried_all, cluster, job), 20, "the attempts")
        tried = cluster.read(f"/tmp/jobs/{job}.probe")
        assert tried.count("denied at") == 2, tried
        assert "ALLOWED" not in tried
    indexes = [cluster.job(job)["GRES"] for job in jobs]
    busy = cluster.slurm_mig("apply", "--node", NODE, "gpu1=7g.40gb", check=False)
    assert busy.returncode == Exit.BUSY
    for job in jobs:
        assert f"job {job}" in busy.stderr
    done = cluster.slurm_mig("apply", "--node", NODE, "gpu0=3g.20gb@4,1g.5gb*4",
                             f"gpu1={PART}@4*3,2g.10gb@0,1g.5gb*2")  # fmt: skip
    assert f"{NODE} reshaped in" in done.stdout
    assert [cluster.job(job)["GRES"] for job in jobs] == indexes
    assert widths(cluster) == [PART] * 3
    ended_well(cluster, *jobs)


def test_the_queue_does_not_undo_a_split(cluster: ManagedCluster) -> None:
    """Idle parts serve who asks for them; a job for something else gets it elsewhere."""
    part = computing(cluster, PART)
    wants = cluster.submit("true", "--gres=gpu:3g.20gb:2")
    cluster.slurm_mig("reconcile")
    cluster.wait_job(wants, "COMPLETED")
    assert widths(cluster) == [PART] * 3
    three = cluster.submit("true", f"--gres=gpu:{PART}:3")
    said = cluster.slurm_mig("reconcile").stdout
    assert f"nothing to do; job {three} ({PART}*3) waits: " in said
    assert f"job {part}" in said
    ended_well(cluster, part)
    cluster.wait_job(three, "COMPLETED")


def test_a_split_changes_and_goes(cluster: ManagedCluster) -> None:
    beside = computing(cluster, "1g.5gb")
    done = cluster.slurm_mig("apply", "--node", NODE, f"gpu1=2c.3g.20gb@4,{PART}@4,1g.5gb*3")
    assert "  ~ 2c+1c.3g.20gb@4\n" in done.stdout
    assert widths(cluster) == ["2c.3g.20gb", PART]
    wide, narrow = computing(cluster, "2c.3g.20gb"), computing(cluster, PART)
    assert first(cluster, wide)["gi"] == first(cluster, narrow)["gi"]
    ended_well(cluster, wide, narrow)
    same = cluster.slurm_mig("apply", "--node", NODE, f"gpu1=2c.3g.20gb@4,{PART}@4,1g.5gb*3")
    assert same.stdout == "GPU 1: already so\n"
    cluster.slurm_mig("apply", "--node", NODE, "gpu1=3g.20gb@4,1g.5gb*3")
    assert widths(cluster) == ["3g.20gb"]
    assert PART not in gres(cluster)
    whole = computing(cluster, "3g.20gb")
    ended_well(cluster, whole)
    done = cluster.slurm_mig("apply", "--node", NODE, f"gpu1={PART}@4*3,1g.5gb*3")
    assert "  ~ 1c+1c+1c.3g.20gb@4\n" in done.stdout
    assert sum(gres(cluster).values()) == 2 * 7 + 1
    ended_well(cluster, beside)


def test_after_a_boot_the_parts_are_as_published(cluster: ManagedCluster) -> None:
    slots = cluster.read("/run/slurm-mig/slots", NODE)
    cluster.kill_daemon("slurmd", NODE)
    cluster.sh("nvml-sim reboot; rm -f /run/slurm-mig/slots", node=NODE)
    cluster.run("slurm-mig", "restore", node=NODE)
    assert cluster.read("/run/slurm-mig/slots", NODE) == slots
    assert widths(cluster) == [PART] * 3
    cluster.start_daemon("slurmd", NODE)
    cluster.wait_for(lambda: "IDLE" in cluster.node(NODE)["State"], 30, "the node to be back")
    ended_well(cluster, computing(cluster, PART))
    check = cluster.run("slurm-mig", "check", node=NODE, check=False)
    assert check.returncode == Exit.OK, check.stdout


LOST_PART = """\
import pynvml
from ctypes import byref
pynvml.nvmlInit()
device = pynvml.nvmlDeviceGetHandleByIndex(1)
for gi in range(15):
    try:
        instance = pynvml.nvmlDeviceGetGpuInstanceById(device, gi)
        part = pynvml.nvmlGpuInstanceGetComputeInstanceById(instance, 2)
    except pynvml.NVMLError:
        continue
    pynvml.nvmlComputeInstanceDestroy(part)
"""


def test_a_part_lost_to_another_hand_is_noticed(cluster: ManagedCluster) -> None:
    cluster.run("python", "-c", LOST_PART, node=NODE)
    said = cluster.slurm_mig("status").stdout
    assert f"missing GPU 1 {PART}@4/2, unexpected none" in said
