"""Programs that others wrote see in the simulated NVML what we see: Slurm's nvml plugin, gpustat,
nvitop. They know nothing of the simulation."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.testbed.cluster import A100, L40S, Cluster, NodeSpec

PLUGINS = Path("/usr/lib/x86_64-linux-gnu/slurm-wlm")
FETCHED = Path("/opt/slurm-mig/simulator")


@pytest.fixture(scope="module")
def site() -> Iterator[Cluster]:
    """A node with an A100 cut in several ways and an L40S."""
    with Cluster(nodes=(NodeSpec("look-1", (A100, L40S), layout="F"),)) as cluster:
        cluster.kill_daemon("slurmd", "look-1")
        wish = "gpu0=3g.20gb@4,1c.2g.10gb@0*2,1g.5gb@2"
        cluster.run("slurm-mig", "apply", wish, node="look-1")
        yield cluster


@pytest.fixture
def ours(site: Cluster) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        site.run("slurm-mig", "inventory", "--json", node="look-1").stdout
    )
    return found


def test_slurms_nvml_plugin_lists_the_same_devices(site: Cluster, ours: dict[str, Any]) -> None:
    """`slurmd -G` with AutoDetect=nvml, SchedMD's own reader of NVML."""
    version = site.run("slurmd", "-V").stdout.split()[1]
    site.run("cp", str(FETCHED / f"gpu_nvml-{version}.so"), str(PLUGINS / "gpu_nvml.so"))
    listed = json.loads(site.run("slurm-mig", "gres", "--json", node="look-1").stdout)
    site.sh(
        'cp -r /etc/slurm /tmp/look; sed -i "s/Gres=[^ ]*/Gres=$1/" /tmp/look/slurm.conf'.replace(
            "$1", listed["gres"]
        )
    )
    site.write("/tmp/look/gres.conf", "AutoDetect=nvml\n")
    done = site.run(
        "slurmd", "-G", "-vvv", "-N", "look-1", "-f", "/tmp/look/slurm.conf",
        node="look-1", check=False,
    )  # fmt: skip
    said = done.stdout + done.stderr
    seen = re.findall(r"Gres Name=gpu Type=(\S+) .*File=(\S+)", said)
    mine = [
        (compute["name"], f"{gpu['file']},{_caps(instance, compute)}")
        for gpu in ours["gpus"]
        for instance in gpu["instances"]
        for compute in instance["compute_instances"]
    ]
    mine += [("nvidia_l40s", gpu["file"]) for gpu in ours["gpus"] if not gpu["mig"]]
    assert sorted(seen) == sorted(mine), said
    assert sorted((d["type"], ",".join(d["files"])) for d in listed["devices"]) == sorted(mine)
    detected = set(re.findall(r"Type:(\d\S+) .*UniqueId:(MIG-\S+)", said))
    assert detected == {
        (compute["name"], compute["uuid"])
        for instance in ours["gpus"][0]["instances"]
        for compute in instance["compute_instances"]
    }, said


def _caps(instance: dict[str, Any], compute: dict[str, Any]) -> str:
    caps = "/dev/nvidia-caps/nvidia-cap"
    return f"{caps}{instance['minor']},{caps}{compute['minor']}"


def test_gpustat_reads_every_gpu(site: Cluster, ours: dict[str, Any]) -> None:
    seen = json.loads(site.run("gpustat", "--json", node="look-1").stdout)
    assert seen["driver_version"] == ours["driver"]
    assert [(g["uuid"], g["name"], g["memory.total"]) for g in seen["gpus"]] == [
        (g["uuid"], g["model"], g["memory_mib"]) for g in ours["gpus"]
    ]
    assert seen["gpus"][0]["temperature.gpu"] == 31


LISTING = """
import json
from nvitop import Device, MigDevice
print(json.dumps([
    {"uuid": d.uuid(), "name": d.name(), "mig": d.mig_mode(), "parts": [
        {"gi": m.gpu_instance_id(), "ci": m.compute_instance_id(), "uuid": m.uuid(),
         "profile": m.name().split(" MIG ")[1], "total": m.memory_total() >> 20}
        for m in d.mig_devices()]}
    for d in Device.all()]))
"""


def test_nvitop_reads_every_mig_device(site: Cluster, ours: dict[str, Any]) -> None:
    seen = json.loads(site.run("python", "-c", LISTING, node="look-1").stdout)
    assert [(g["uuid"], g["name"]) for g in seen] == [(g["uuid"], g["model"]) for g in ours["gpus"]]
    mine = sorted(
        (instance["gi"], compute["ci"], compute["uuid"], compute["name"])
        for instance in ours["gpus"][0]["instances"]
        for compute in instance["compute_instances"]
    )
    theirs = [(p["gi"], p["ci"], p["uuid"], p["profile"]) for p in seen[0]["parts"]]
    assert theirs == mine
    shown = site.run("nvitop", "-1", node="look-1", env={"TERM": "xterm", "COLUMNS": "120"})
    assert "ERROR" not in shown.stderr
    assert "3g.20gb" in shown.stdout
