"""Containers on a node that Slurm shares: what `slurm-mig export` says is used by crun and podman.

A simulated GPU has no driver in the kernel: the containers are given the simulator's state besides,
which is what /dev/nvidiactl is to a real one. All else comes from the CDI specification.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.testbed.cluster import A100, L40S, NodeSpec
from tests.testbed.product import CONFIGURATION, ManagedCluster

NODE = "mixed"
CDI = "/etc/cdi/slurm-mig.yaml"
CONFIG = (
    CONFIGURATION.replace("node:\n", f"node:\n  cdi: {CDI}\n")
    + f"""\
groups:
- nodes: {NODE}
  outside:
  - {{owner: containers, gpus: [0], instances: {{1g.5gb: 2}}}}
"""
)

ROOT = """\
cd /tmp
mkdir -p root/bin root/dev root/proc root/sys root/tmp root/run/nvml-sim
cp /usr/local/bin/fake-cuda root/bin/
for lib in $(ldd /usr/local/bin/fake-cuda | grep -o '/[^ ]*'); do cp --parents -L $lib root/; done
mkdir -p /etc/cdi
mount -t tmpfs tmpfs /etc/cdi
mknod -m 666 /dev/nvidiactl c 195 255
"""


@pytest.fixture(scope="module")
def shared() -> Iterator[ManagedCluster]:
    with ManagedCluster(nodes=(NodeSpec(NODE, (A100, L40S)),), configuration=CONFIG) as cluster:
        cluster.sh("[ -e /dev/nvidiactl ] || exit 0; rm /dev/nvidiactl", node=NODE)
        cluster.sh(ROOT, node=NODE)
        cluster.enrol()
        yield cluster


def spec(cluster: ManagedCluster) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(cluster.read(CDI, NODE))
    return found


def theirs(cluster: ManagedCluster) -> list[str]:
    return [device["name"] for device in spec(cluster)["devices"]]


def every(cluster: ManagedCluster) -> set[str]:
    return {i["compute_instances"][0]["uuid"] for _, i in cluster.instances(NODE)}


def bundle(cluster: ManagedCluster, uuid: str, argv: list[str]) -> None:
    """An OCI bundle with what the CDI specification has for the device, and nothing else."""
    document = spec(cluster)
    (device,) = [d for d in document["devices"] if d["name"] == uuid]
    edits = [document["containerEdits"], device["containerEdits"]]
    nodes = [n["path"] for e in edits for n in e.get("deviceNodes", ())]
    numbers = {
        path: tuple(int(n, 16) for n in cluster.sh(f"stat -c '%t %T' {path}", node=NODE).split())
        for path in nodes
    }
    allowed = [{"allow": True, "type": "c", "major": a, "minor": b, "access": "rw"}
               for a, b in numbers.values()]  # fmt: skip
    config = {
        "ociVersion": "1.0.2",
        "root": {"path": "/tmp/root"},
        "process": {
            "user": {"uid": 0, "gid": 0},
            "cwd": "/",
            "args": argv,
            "env": ["PATH=/bin", *(word for e in edits for word in e.get("env", ()))],
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
            {"destination": "/run/nvml-sim", "type": "bind", "source": "/run/nvml-sim",
             "options": ["rbind", "rw"]},
        ],
        "linux": {
            "namespaces": [{"type": "mount"}, {"type": "uts"}, {"type": "ipc"}],
            "devices": [{"path": p, "type": "c", "major": a, "minor": b, "fileMode": 0o666}
                        for p, (a, b) in numbers.items()],
            "resources": {"devices": [{"allow": False, "access": "rwm"}, *allowed]},
        },
    }  # fmt: skip
    text = shlex.quote(json.dumps(config))
    cluster.sh(f"mkdir -p /tmp/bundle; printf %s {text} > /tmp/bundle/config.json", node=NODE)


def crun(cluster: ManagedCluster, uuid: str, *argv: str) -> tuple[int, str]:
    """Exit code and output of a program in a container that has the device."""
    bundle(cluster, uuid, ["/bin/fake-cuda", *argv])
    done = cluster.run(
        "crun",
        "--root",
        "/tmp/crun",
        "run",
        "--bundle",
        "/tmp/bundle",
        "mig",
        node=NODE,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_a_container_finds_its_instance_and_no_other(shared: ManagedCluster) -> None:
    for uuid in theirs(shared):
        code, said = crun(shared, uuid, "--seconds", "0.1")
        assert code == 0, said
        assert json.loads(said)["uuid"] == uuid
        others = sorted(every(shared) - {uuid})
        assert len(others) >= 6
        code, said = crun(shared, uuid, "--probe", *others)
        assert code == 0, said
        assert said.count("denied at") == len(others)


def test_podman_knows_the_device(shared: ManagedCluster) -> None:
    """podman itself reads the specification and starts the container."""
    uuid = theirs(shared)[0]
    line = shared.slurm_mig("export", "podman", "--node", NODE, "--uuid", uuid).stdout.split()
    device = line[line.index("--device") + 1]
    command = (
        "podman", "--root", "/tmp/podman", "--runroot", "/tmp/podman-run",
        "--storage-driver", "vfs", "--cgroup-manager", "cgroupfs",
        "run", "--rm", "--network=none", "--cgroups=disabled",
        "--security-opt", "seccomp=unconfined", "--device", device,
        "-v", "/run/nvml-sim:/run/nvml-sim", "--rootfs", "/tmp/root",
        "/bin/fake-cuda", "--seconds", "0.1",
    )  # fmt: skip
    done = shared.run(*command, node=NODE, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["uuid"] == uuid


def test_the_specification_follows_a_reshape_and_has_nothing_of_slurms(
    shared: ManagedCluster,
) -> None:
    before = theirs(shared)
    assert len(before) == 2
    job = shared.submit("fake-cuda --seconds 0.1", "--gres=gpu:3g.20gb:1")
    shared.slurm_mig("reconcile")
    shared.wait_job(job, "COMPLETED")
    assert theirs(shared) == before
    code, said = crun(shared, before[0], "--seconds", "0.1")
    assert code == 0, said
    check = shared.run("slurm-mig", "check", node=NODE, check=False).stdout
    assert f"{CDI}: agrees with the instances" in check
    assert "that gres.conf does not name" not in check


def test_what_is_slurms_is_not_exported(shared: ManagedCluster) -> None:
    done = shared.slurm_mig("export", "docker", "--node", NODE, "--gpu", "1", check=False)
    assert done.returncode == 1
    assert "of GPU 1 is Slurm's" in done.stderr
    done = shared.slurm_mig("export", "libvirt", "--node", NODE, "--gpu", "0", check=False)
    assert "GPU 0 has devices that are Slurm's" in done.stderr


def test_a_jobs_own_devices(shared: ManagedCluster) -> None:
    job = shared.submit("fake-cuda --until-file /tmp/jobs/end --report /tmp/jobs/own",
                        "--gres=gpu:1g.5gb:1")  # fmt: skip
    for _ in range(5):
        shared.slurm_mig("reconcile")
        if shared.job(job)["JobState"] == "RUNNING":
            break
    report = shared.wait_for(
        lambda: shared.run("cat", "/tmp/jobs/own", check=False).stdout, 20, "the job"
    )
    mine = json.loads(report)["uuid"]
    said = shared.slurm_mig("export", "env", "--node", NODE, "--job", str(job)).stdout
    assert f"export CUDA_VISIBLE_DEVICES={mine}\n" in said
    shared.sh("touch /tmp/jobs/end")
    shared.wait_job(job, "COMPLETED")
    done = shared.slurm_mig("export", "env", "--node", NODE, "--job", str(job), check=False)
    assert done.returncode == 2
    assert f"job {job} has no gpu of {NODE} now" in done.stderr
