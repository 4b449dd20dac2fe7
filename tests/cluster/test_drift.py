"""What another hand changes on a node: noticed in every cycle, mended where that is safe, and never
fought over. By the simulator's own hand, under a running Slurm."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.testbed.cluster import A100, NodeSpec
from tests.testbed.jobs import computing, ended_well, gres, no_jobs
from tests.testbed.product import CONFIGURATION, ManagedCluster

NODE = "a100-1"
REPORTING = CONFIGURATION + "groups:\n  - {nodes: a100-1, repair: report}\n"
DESTROY = """\
import pynvml
pynvml.nvmlInit()
device = pynvml.nvmlDeviceGetHandleByIndex({gpu})
instance = pynvml.nvmlDeviceGetGpuInstanceById(device, {gi})
pynvml.nvmlComputeInstanceDestroy(pynvml.nvmlGpuInstanceGetComputeInstanceById(instance, 0))
pynvml.nvmlGpuInstanceDestroy(instance)
"""


@pytest.fixture(scope="module")
def one() -> Iterator[ManagedCluster]:
    with ManagedCluster(nodes=(NodeSpec(NODE, (A100, A100)),)) as cluster:
        cluster.enrol()
        yield cluster


@pytest.fixture
def site(one: ManagedCluster) -> Iterator[ManagedCluster]:
    """Without jobs and without memory of earlier mending."""
    one.sh("rm -f /var/lib/slurm-mig/cycle.json")
    yield one
    one.configure(CONFIGURATION)
    no_jobs(one)


def destroy(site: ManagedCluster, gpu: int = 1) -> str:
    """An administrator destroys the last idle instance of a GPU; its profile."""
    found = [i for g, i in site.instances(NODE) if g == gpu]
    last = max(found, key=lambda i: i["start"])
    site.run("python", "-c", DESTROY.format(gpu=gpu, gi=last["gi"]), node=NODE)
    return str(last["profile"])


def condition(site: ManagedCluster) -> tuple[str, str]:
    node = site.status()["nodes"][0]
    return node["condition"], node["note"]


def agreed(site: ManagedCluster) -> bool:
    """slurmctld offers exactly the instances that are there, and the node is free."""
    offered = sorted(t for t, n in gres(site).items() for _ in range(n) if t[0].isdigit())
    there = sorted(i["profile"] for _, i in site.instances(NODE))
    return offered == there and "DRAIN" not in site.node(NODE)["State"]


def test_a_change_by_hand_is_adopted_once_it_stays(site: ManagedCluster) -> None:
    """Not undone: what is there is offered. The job that runs beside it notices nothing."""
    running = computing(site, "gpu:1g.5gb:1")
    created = site.sim(NODE)["created"]
    destroy(site)
    kind, note = condition(site)
    assert kind == "drifted"
    assert "missing GPU 1 1g.5gb@6" in note
    first = site.slurm_mig("reconcile").stdout
    assert "mended in the next cycle if it stays so" in first
    assert not agreed(site)
    assert "a100-1 mended in" in site.slurm_mig("reconcile").stdout
    assert agreed(site)
    assert site.sim(NODE)["created"] == created, "nobody's hand was undone"
    assert "published again: MIG instances were changed" in site.slurm_mig("history").stdout
    ended_well(site, running)


def test_a_hand_at_work_again_and_again_is_left_to_people(site: ManagedCluster) -> None:
    for _ in range(3):
        destroy(site)
        site.slurm_mig("reconcile")
        assert "mended" in site.slurm_mig("reconcile").stdout
    destroy(site)
    site.slurm_mig("reconcile")
    said = site.slurm_mig("reconcile").stdout
    assert "mended 3 times within an hour: left until nobody changes it any more" in said
    assert condition(site)[0] == "drifted"
    wants = site.submit("true", "--gres=gpu:3g.20gb:1")
    site.slurm_mig("reconcile")
    assert site.job(wants)["JobState"] == "PENDING", "a node that is not as published is not cut"
    assert "changed by another hand" in site.slurm_mig("status").stdout


def test_where_the_site_wants_reports_only(site: ManagedCluster) -> None:
    site.configure(REPORTING)
    destroy(site, 0)
    for _ in range(3):
        said = site.slurm_mig("reconcile").stdout
    assert "repair: report" in said
    assert not agreed(site)
    site.configure(CONFIGURATION)
    assert "mended" in site.slurm_mig("reconcile").stdout
    assert agreed(site)


def test_a_running_jobs_instance_cannot_be_mended_around(site: ManagedCluster) -> None:
    """Its process is dead or has no device: only its end makes the node whole again."""
    profile = next(i["profile"] for _, i in site.instances(NODE))
    job = site.submit("exec sleep 300", f"--gres=gpu:{profile}:1")
    site.wait_job(job, "RUNNING")
    gpu = next((g for g, i in site.instances(NODE) if i["profile"] == profile), 0)
    index = int(site.job(job)["GRES"].split("IDX:")[1].rstrip(")"))
    instances = site.status()["nodes"][0]["gpus"]
    gpu, gi_start = next(
        (g["index"], i["start"]) for g in instances for i in g["instances"] if i["index"] == index
    )
    gi = next(i["gi"] for g, i in site.instances(NODE) if (g, i["start"]) == (gpu, gi_start))
    site.run("python", "-c", DESTROY.format(gpu=gpu, gi=gi), node=NODE)
    for _ in range(2):
        said = site.slurm_mig("reconcile").stdout
    assert f"to mend it: end job {job}" in said
    assert site.job(job)["JobState"] == "RUNNING"
    site.run("scancel", str(job))
    site.wait_job(job, "CANCELLED")
    for _ in range(2):
        site.slurm_mig("reconcile")
    assert agreed(site)


def boot(site: ManagedCluster, *hardware: str) -> None:
    """The node goes down and comes back with its hardware changed; restore as at every boot."""
    site.kill_daemon("slurmd", NODE)
    site.run("nvml-sim", "reboot", node=NODE)
    site.run("nvml-sim", "hardware", *hardware, node=NODE)
    site.run("slurm-mig", "restore", "--wait", "5", node=NODE, check=False)
    site.start_daemon("slurmd", NODE)
    site.wait_for(lambda: "NOT_RESPONDING" not in site.node(NODE)["State"], 30, "the node")


def mended(site: ManagedCluster) -> str:
    said = ""
    for _ in range(3):
        said += site.slurm_mig("reconcile").stdout
    return said


def can_be_used(site: ManagedCluster) -> None:
    """Jobs of what is offered compute on what their UUID says."""
    profile = next(i["profile"] for _, i in site.instances(NODE))
    ended_well(site, computing(site, f"gpu:{profile}:1"))


def test_gpus_that_changed_places(site: ManagedCluster) -> None:
    boot(site, "exchange", "0", "1")
    said = mended(site)
    assert "GPU 0 is what GPU 1 was" in said
    assert "a100-1 mended in" in said
    assert agreed(site)
    can_be_used(site)


def test_a_gpu_that_was_replaced(site: ManagedCluster) -> None:
    """The new card, which comes with MIG off, is cut as the old one was before slurmd starts."""
    before = sorted((g, i["profile"], i["start"]) for g, i in site.instances(NODE))
    boot(site, "replace", "1", "--seed", "spare")
    assert sorted((g, i["profile"], i["start"]) for g, i in site.instances(NODE)) == before
    said = mended(site)
    assert "GPU 1 was replaced" in said
    assert "a100-1 mended in" in said
    assert agreed(site)
    can_be_used(site)


def test_a_gpu_in_another_mode_is_a_persons_to_switch(site: ManagedCluster) -> None:
    script = "from slurm_mig.adapters.gpus import NvmlGpus as G; g = G()\n"
    script += "for i in g.inventory()[1].instances: g.destroy(1, i.gi)\n"
    site.run("python", "-c", script + "g.set_mode(1, on=False)", node=NODE)
    said = mended(site)
    assert "MIG is off on GPU 1" in said
    assert "`nvidia-smi -i 1 -mig 1` on a100-1" in said
    assert not agreed(site)
    on = "from slurm_mig.adapters.gpus import NvmlGpus; NvmlGpus().set_mode(1, on=True)"
    site.run("python", "-c", on, node=NODE)
    assert "a100-1 mended in" in mended(site)
    assert agreed(site)
    wants = site.submit("true", "--gres=gpu:4g.20gb:1")
    site.slurm_mig("reconcile")
    site.wait_job(wants, "COMPLETED")


def test_a_driver_that_names_its_profiles_otherwise(site: ManagedCluster) -> None:
    site.kill_daemon("slurmd", NODE)
    site.run("nvml-sim", "hardware", "rename", node=NODE)
    site.start_daemon("slurmd", NODE)
    said = mended(site)
    assert "other profile names" in said
    assert "a100-1 mended in" in said
    assert agreed(site)
    assert all(i["profile"].endswith(("6gb", "1gb", "1gb+me")) for _, i in site.instances(NODE))
    can_be_used(site)
