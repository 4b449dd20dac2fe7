"""GPU verbs on running nodes: beside Slurm's jobs, through the controller, after a boot."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from slurm_mig.errors import Exit
from tests.testbed.cluster import A100, NodeSpec
from tests.testbed.product import CUDA_JOB, ManagedCluster


@pytest.fixture(scope="module")
def site() -> Iterator[ManagedCluster]:
    """Two nodes with two A100 each, cut into 1g.5gb; in nobody's care until a test enrols them."""
    nodes = (NodeSpec("a100-1", (A100, A100)), NodeSpec("a100-2", (A100, A100), layout="F"))
    with ManagedCluster(nodes=nodes) as cluster:
        yield cluster


def layout(site: ManagedCluster, node: str, gpu: int) -> list[str]:
    """A GPU's instances by the simulator's own word."""
    found = (i for index, i in site.instances(node) if index == gpu)
    return sorted(f"{i['profile']}@{i['start']}" for i in found)


SEVEN = [f"1g.5gb@{n}" for n in range(7)]


def test_a_node_and_the_controller_say_the_same(site: ManagedCluster) -> None:
    for verb in ("inventory", "profiles", "export", "gres"):
        here = site.run("slurm-mig", verb, node="a100-2").stdout
        assert here
        assert site.slurm_mig(verb, "--node", "a100-2").stdout == here
    data = json.loads(site.slurm_mig("inventory", "--json", "--node", "a100-1").stdout)
    assert [len(gpu["instances"]) for gpu in data["gpus"]] == [7, 7]
    record = site.slurm_mig("inventory", "--record", "/tmp/record.json", "--node", "a100-2").stdout
    assert record == "nothing is otherwise than in the tables\n"
    (seen,) = json.loads(site.read("/tmp/record.json"))["gpus"]
    assert (seen["model"], seen["count"], len(seen["instances"])) == (A100, 2, 2)
    words = site.slurm_mig("export", "--inline", "--node", "a100-1").stdout.split()
    assert site.slurm_mig("assert", "--node", "a100-1", *words).returncode == 0
    off = site.slurm_mig("assert", "--node", "a100-1", "all=off", check=False)
    assert off.returncode == Exit.REFUSED
    assert off.stdout.startswith("GPU 0: 1g.5gb*7, should be MIG off\n")


def test_jobs_of_an_unmanaged_node_are_in_the_way(site: ManagedCluster) -> None:
    """A count that changes under a running job would cost that job its life."""
    job = site.submit("exec sleep 300", "--gres=gpu:1g.5gb:1", "-w", "a100-1")
    site.wait_job(job, "RUNNING")
    done = site.run("slurm-mig", "apply", "gpu1=3g.20gb*2", node="a100-1", check=False)
    assert done.returncode == Exit.BUSY
    assert "in use, nothing was touched:" in done.stderr
    assert f"GPU 1: 1g.5gb@0 would have to go, and is held by job {job} (gpus of" in done.stderr
    assert layout(site, "a100-1", 1) == SEVEN
    site.run("scancel", str(job))
    site.wait_job(job, "CANCELLED")


def test_check_tells_slurm_and_instances_apart(site: ManagedCluster) -> None:
    good = site.run("slurm-mig", "check", node="a100-1", check=False)
    assert good.stdout.splitlines()[-1] == "0 errors, 0 warnings", good.stdout
    assert good.returncode == Exit.OK
    done = site.run("slurm-mig", "apply", "gpu1=3g.20gb*2", node="a100-1")
    assert "Slurm does not know yet: put the lines of `slurm-mig gres`" in done.stdout
    bad = site.run("slurm-mig", "check", node="a100-1", check=False)
    assert bad.returncode == Exit.ATTENTION
    assert "published whose instance is not there" in bad.stdout
    assert "a 3g.20gb is there that gres.conf does not name" in bad.stdout
    site.run("chmod", "600", "/dev/nvidia0", node="a100-1")
    modes = site.run("slurm-mig", "check", node="a100-1", check=False)
    assert "/dev/nvidia0: has mode 0600, not 0666" in modes.stdout
    site.run("chmod", "666", "/dev/nvidia0", node="a100-1")
    site.run("slurm-mig", "apply", "all=1g.5gb*7", node="a100-1")
    assert layout(site, "a100-1", 1) == SEVEN


def test_an_administrators_layout_goes_the_controllers_way(site: ManagedCluster) -> None:
    site.enrol()
    here = site.run("slurm-mig", "apply", "gpu1=3g.20gb*2", node="a100-1", check=False)
    assert here.returncode == Exit.REFUSED
    assert "a100-1 is in slurm-mig's care" in here.stderr
    job = site.submit(CUDA_JOB, "--gres=gpu:1g.5gb:1", "-w", "a100-1")
    site.wait_job(job, "RUNNING")
    wish = ("--node", "a100-1", "gpu1=3g.20gb@4,1g.5gb*4")
    plan = site.slurm_mig("apply", "--dry-run", *wish).stdout
    assert plan.endswith("  - 1g.5gb@6\n  + 3g.20gb@4\n")
    done = site.slurm_mig("apply", *wish)
    assert done.stdout.startswith(plan)
    assert "a100-1 reshaped in" in done.stdout
    assert "gpu:3g.20gb:1" in site.node("a100-1")["Gres"]
    assert site.slurm_mig("apply", *wish).stdout == "GPU 1: already so\n"
    busy = site.slurm_mig("apply", "--node", "a100-1", "gpu0=7g.40gb", check=False)
    assert busy.returncode == Exit.BUSY
    assert f"1g.5gb@0 of GPU 0 is held by job {job}" in busy.stderr
    mode = site.slurm_mig("mode", "off", "1", "--node", "a100-1", check=False)
    assert mode.returncode == Exit.REFUSED
    assert "the site does not let the MIG mode of GPU 1 change" in mode.stderr
    other = site.submit("fake-cuda --seconds 0.1", "--gres=gpu:3g.20gb:1", "-w", "a100-1")
    site.wait_job(other, "COMPLETED")
    site.run("touch", f"/tmp/jobs/{job}.stop")
    site.wait_job(job, "COMPLETED")
    assert site.reports(job, "second")[0]["uuid"] == site.reports(job, "first")[0]["uuid"]


def test_an_instance_that_will_not_go_is_whole_again(site: ManagedCluster) -> None:
    before = layout(site, "a100-1", 1)
    site.sh("nvml-sim fault nvmlGpuInstanceDestroy --code IN_USE --gpu 1 --times -1", node="a100-1")
    done = site.slurm_mig("apply", "--node", "a100-1", "gpu1=7g.40gb", check=False)
    site.sh("nvml-sim fault --clear", node="a100-1")
    assert done.returncode == Exit.REFUSED
    assert "In use by another client" in done.stdout
    assert layout(site, "a100-1", 1) == before
    assert all(i["compute_instances"] for _, i in site.instances("a100-1"))
    assert "DRAIN" not in site.node("a100-1")["State"]
    job = site.submit("fake-cuda --seconds 0.1", "--gres=gpu:3g.20gb:1", "-w", "a100-1")
    site.wait_job(job, "COMPLETED")


def test_after_a_boot_everything_is_as_published(site: ManagedCluster) -> None:
    before = site.sim("a100-1")["gpus"]
    slots = site.read("/run/slurm-mig/slots", "a100-1")
    site.kill_daemon("slurmd", "a100-1")
    site.sh("nvml-sim reboot; rm -f /run/slurm-mig/slots", node="a100-1")
    assert layout(site, "a100-1", 1) == []
    restored = site.run("slurm-mig", "restore", node="a100-1").stdout
    assert restored == "GPU 0: restored, 7 instances\nGPU 1: restored, 5 instances\n"
    again = site.run("slurm-mig", "restore", node="a100-1").stdout
    assert "already as recorded" in again
    assert site.read("/run/slurm-mig/slots", "a100-1") == slots
    uuids = [
        [c["uuid"] for i in gpu["instances"] for c in i["compute_instances"]] for gpu in before
    ]
    now = site.sim("a100-1")["gpus"]
    assert uuids == [
        [c["uuid"] for i in gpu["instances"] for c in i["compute_instances"]] for gpu in now
    ]
    site.start_daemon("slurmd", "a100-1")
    job = site.submit("fake-cuda --seconds 0.1", "--gres=gpu:3g.20gb:1", "-w", "a100-1")
    site.wait_job(job, "COMPLETED")
    assert "nothing to do" in site.slurm_mig("reconcile").stdout
    check = site.run("slurm-mig", "check", node="a100-1", check=False)
    assert check.returncode == Exit.OK, check.stdout


def test_a_restore_that_cannot_be_fails_visibly_and_soon(site: ManagedCluster) -> None:
    site.sh("nvml-sim reboot", node="a100-2")
    site.sh(
        "nvml-sim fault nvmlDeviceCreateGpuInstanceWithPlacement --code UNKNOWN --gpu 1 --times -1",
        node="a100-2",
    )
    done = site.run("slurm-mig", "restore", node="a100-2", check=False)
    assert done.returncode == Exit.ATTENTION
    assert "creating 1g.5gb@0 on GPU 1: Unknown Error" in done.stderr
    assert "slurmd should not start" in done.stderr
    assert layout(site, "a100-2", 0) == SEVEN
    site.sh("nvml-sim fault --clear", node="a100-2")
    site.run("slurm-mig", "restore", node="a100-2")
    assert layout(site, "a100-2", 1) == SEVEN
    site.sh("mv /run/nvml-sim/state /run/nvml-sim/away", node="a100-2")
    gone = site.run("slurm-mig", "restore", "--wait", "1", node="a100-2", check=False)
    assert gone.returncode == Exit.UNREACHABLE
    site.sh("mv /run/nvml-sim/away /run/nvml-sim/state", node="a100-2")
