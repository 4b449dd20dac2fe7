"""`slurm-mig export` on simulated nodes, its output used in the real tools.

docker-compose, virt-xml-validate and a shell judge; what CDI and Kubernetes demand is judged by
schemas written from their published texts (no package of a judge can be had).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from click.testing import CliRunner

from slurm_mig.adapters.bootrecord import BootRecord
from slurm_mig.adapters.ownedhere import owned_here
from slurm_mig.cli import main
from slurm_mig.config import NodeSettings
from slurm_mig.core import ownership
from slurm_mig.core.exports import containers
from slurm_mig.core.exports.chosen import Ask
from slurm_mig.core.layoutfile import interpret
from slurm_mig.errors import SlurmMigError, UsageError
from slurm_mig.exporting import Exporter, cdi_text, keep_cdi
from slurm_mig.gpuverbs import GpuVerbs, Request, Wish
from slurm_mig.worlds import Worlds
from tests.contract.nvml.conftest import Opened
from tests.testbed.nvml_sim import GpuSpec, Simulator

A100 = "NVIDIA A100-SXM4-40GB"

NAME = r"^[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?$"
QUALIFIED = r"^([a-z0-9.-]+/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$"
LABEL_VALUE = r"^([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?$"
LABELS = {
    "type": "object",
    "propertyNames": {"pattern": QUALIFIED},
    "additionalProperties": {"type": "string", "pattern": LABEL_VALUE},
}
METADATA = {
    "type": "object",
    "required": ["name"],
    "additionalProperties": False,
    "properties": {
        "name": {"pattern": r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$"},
        "labels": LABELS,
    },
}


def manifest(kind: str, **fields: Any) -> dict[str, Any]:
    """A Kubernetes object, as its API reference says of the fields that are used here."""
    return {
        "type": "object",
        "required": ["apiVersion", "kind", "metadata"],
        "additionalProperties": False,
        "properties": {
            "apiVersion": {"const": "v1"},
            "kind": {"const": kind},
            "metadata": METADATA,
            **fields,
        },
    }


CONTAINER = {
    "type": "object",
    "required": ["name", "image"],
    "additionalProperties": False,
    "properties": {
        "name": {"pattern": r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"},
        "image": {"type": "string"},
        "command": {"type": "array", "items": {"type": "string"}},
        "resources": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "limits": {
                    "type": "object",
                    "propertyNames": {"pattern": QUALIFIED},
                    "additionalProperties": {"type": ["integer", "string"]},
                }
            },
        },
    },
}
POD = manifest(
    "Pod",
    spec={
        "type": "object",
        "required": ["containers"],
        "additionalProperties": False,
        "properties": {
            "restartPolicy": {"enum": ["Always", "OnFailure", "Never"]},
            "containers": {"type": "array", "minItems": 1, "items": CONTAINER},
        },
    },
)
CONFIG_MAP = manifest(
    "ConfigMap", data={"type": "object", "additionalProperties": {"type": "string"}}
)
NODE = manifest("Node")

EDITS = {
    "type": "object",
    "minProperties": 1,
    "additionalProperties": False,
    "properties": {
        "env": {"type": "array", "items": {"type": "string", "pattern": "="}},
        "deviceNodes": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["path"],
                "properties": {"path": {"pattern": "^/"}},
                "additionalProperties": False,
            },
        },
        "mounts": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["hostPath", "containerPath"],
                "additionalProperties": False,
                "properties": {
                    "hostPath": {"pattern": "^/"},
                    "containerPath": {"pattern": "^/"},
                    "options": {"type": "array", "items": {"type": "string"}},
                },
            },
        },
        "hooks": {"type": "array"},
    },
}
CDI = {
    "type": "object",
    "required": ["cdiVersion", "kind", "devices"],
    "additionalProperties": False,
    "properties": {
        "cdiVersion": {"const": "0.5.0"},
        "kind": {"pattern": r"^[a-z0-9.-]+/[A-Za-z0-9_.-]+$"},
        "containerEdits": EDITS,
        "devices": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["name", "containerEdits"],
                "additionalProperties": False,
                "properties": {"name": {"pattern": NAME}, "containerEdits": EDITS},
            },
        },
    },
}

Made = Callable[..., str]


class Site:
    """A node of two A100, nothing of it Slurm's: a 3g.20gb and two 1g.5gb, and a whole GPU."""

    def __init__(self, opened: Opened, root: Path) -> None:
        self.root = root
        self.gpus = opened(GpuSpec(A100, mig=True), GpuSpec(A100))
        (root / "etc").mkdir(exist_ok=True)
        self.settings = NodeSettings(
            state_dir=str(root / "var"),
            run_dir=str(root / "run"),
            caps_dir=str(root / "dev" / "nvidia-caps"),
            slurm_conf=str(root / "etc" / "slurm.conf"),
            cdi=str(root / "cdi" / "slurm-mig.yaml"),
        )
        self.verbs = GpuVerbs(self.settings, "n1", self.gpus)
        self.apply("gpu0=3g.20gb@4,1g.5gb@0,1g.5gb@1")

    def apply(self, *words: str) -> None:
        self.verbs.answer(Request("apply", wish=Wish(words=words)))

    def export(self, form: str, **asked: Any) -> str:
        sys = self.root / "sys"
        return Exporter(self.settings, "n1", self.gpus, sys).run(Ask(form, **asked)).text


@pytest.fixture
def site(opened: Opened, tmp_path: Path) -> Site:
    return Site(opened, tmp_path)


def ran(*words: str, **options: Any) -> str:
    done = subprocess.run(words, check=False, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return str(done.stdout)


def test_docker_compose_reads_it(site: Site, tmp_path: Path) -> None:
    text = site.export("compose", profiles=("3g.20gb",))
    (tmp_path / "compose.yaml").write_text(text)
    read = ran("docker-compose", "-f", str(tmp_path / "compose.yaml"), "config", "--format", "json",
               env={**os.environ, "HOME": str(tmp_path)})  # fmt: skip
    service = json.loads(read)["services"]["mig"]
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    (instance,) = [i for i in site.gpus.gpu(0).instances if i.placement.profile == "3g.20gb"]
    assert device["device_ids"] == [instance.uuid]
    assert device["capabilities"] == ["gpu"]


def test_a_shell_reads_the_environment(site: Site) -> None:
    text = site.export("env", profiles=("1g.5gb",), count=2)
    said = ran(
        "sh", "-euc", text + 'echo "$CUDA_VISIBLE_DEVICES $APPTAINERENV_CUDA_VISIBLE_DEVICES"'
    )
    uuids = [i.uuid for i in site.gpus.gpu(0).instances if i.placement.size == 1]
    assert said.split() == [",".join(uuids)] * 2


def test_cdi_is_what_its_text_demands(site: Site) -> None:
    spec = yaml.safe_load(site.export("cdi"))
    jsonschema.validate(spec, CDI)
    assert not containers.cdi_faults(spec)
    assert len(spec["devices"]) == 4, "three instances and a whole GPU"


def test_the_cdi_file_follows_every_change(site: Site) -> None:
    path = Path(site.settings.cdi)

    def names() -> set[str]:
        return {d["name"] for d in yaml.safe_load(path.read_text())["devices"]}

    def there() -> set[str]:
        return {i.uuid for i in site.gpus.gpu(0).instances} | {site.gpus.gpu(1).uuid}

    assert names() == there()
    before = names()
    site.apply("gpu0=2g.10gb*3")
    assert names() == there() != before


def stale(site: Site) -> list[str]:
    owned = owned_here(site.settings, "n1", site.gpus.inventory())
    worlds = Worlds(site.settings, owned, folders=[str(site.root / "cdi")])
    return [f"{f.level}: {f.what}" for f in worlds.cdi_files()]


def test_a_stale_cdi_file_and_a_name_given_twice_are_found(site: Site) -> None:
    assert stale(site) == ["ok: agrees with the instances"]
    (gone,) = [i for i in site.gpus.gpu(0).instances if i.placement.profile == "3g.20gb"]
    site.gpus.destroy(0, gone.gi)
    assert stale(site) == [f"warning: names instances that are not there: {gone.uuid}"]
    keep_cdi(site.settings, "n1", site.gpus.inventory())
    assert stale(site) == ["ok: agrees with the instances"]
    shutil.copy(site.settings.cdi, site.root / "cdi" / "zz-copy.yaml")
    assert any(f"is in {site.settings.cdi} too" in found for found in stale(site))


def test_slurms_devices_stay_out_of_the_file(site: Site, tmp_path: Path) -> None:
    """A node in the controller's care: only what is outside, or all where the site wants it."""
    conf = tmp_path / "etc" / "slurm-mig"
    conf.mkdir()
    (conf / "nodes.conf").write_text("NodeName=n1 Gres=gpu:1g.5gb:2\n")
    with pytest.raises(SlurmMigError, match="is Slurm's"):
        site.export("docker", profiles=("1g.5gb",), count=1)
    owned = owned_here(site.settings, "n1", site.gpus.inventory())
    assert not cdi_text(site.settings, owned)
    keep_cdi(site.settings, "n1", site.gpus.inventory())
    assert not Path(site.settings.cdi).exists()
    outside = (ownership.Outside("containers", 1),)
    shown = ownership.stamped(site.gpus.inventory(), outside)
    assert [gpu.owner for gpu in shown] == ["", "containers"]


def test_kubernetes_parts(site: Site) -> None:
    with pytest.raises(UsageError, match="cannot be single: GPU 1 has MIG off beside"):
        site.export("kubernetes", strategy="single")
    documents = [d for d in yaml.safe_load_all(site.export("kubernetes")) if d]
    values, manager, labels, discovery, pod = documents
    jsonschema.validate(pod, POD)
    jsonschema.validate(manager, CONFIG_MAP)
    jsonschema.validate(labels, NODE)
    jsonschema.validate(discovery, LABELS)
    assert values["migStrategy"] == "mixed"
    assert yaml.safe_load(values["config"]["map"]["default"])["flags"]["migStrategy"] == "mixed"
    assert discovery["nvidia.com/mig-3g.20gb.multiprocessors"] == "42"
    assert discovery["nvidia.com/mig-1g.5gb.count"] == "2"
    (wanted,) = pod["spec"]["containers"][0]["resources"]["limits"]
    assert wanted.startswith("nvidia.com/mig-")
    single = yaml.safe_load(site.export("kubernetes", profiles=("1g.5gb",), part="pod"))
    assert single["spec"]["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": 1}


def test_the_parts_of_an_instance_are_devices_of_their_own(site: Site) -> None:
    """In every format: by their own UUID, and by a capability file each beside the shared one."""
    site.apply("gpu0=1c.3g.20gb@4*2,1g.5gb@0")
    (instance,) = [i for i in site.gpus.gpu(0).instances if i.placement.start == 4]
    uuids = [c.uuid for c in instance.computes]
    chosen = {"profiles": ("1c.3g.20gb",)}
    assert ",".join(uuids) in site.export("env", count=2, **chosen)
    spec = yaml.safe_load(site.export("cdi", **chosen))
    jsonschema.validate(spec, CDI)
    files = {d["name"]: [n["path"] for n in d["containerEdits"]["deviceNodes"]]
             for d in spec["devices"] if d["name"] in uuids}  # fmt: skip
    caps = [{path.rpartition("cap")[2] for path in paths if "-cap" in path} for paths in
            (files[uuid] for uuid in uuids)]  # fmt: skip
    own = [str(c.minor) for c in instance.computes]
    assert caps == [{str(instance.gi_minor), minor} for minor in own]
    pod = yaml.safe_load(site.export("kubernetes", part="pod", strategy="mixed", **chosen))
    limits = pod["spec"]["containers"][0]["resources"]["limits"]
    assert limits == {"nvidia.com/mig-1c.3g.20gb": 1}
    labels = yaml.safe_load(site.export("kubernetes", part="discovery"))
    assert labels["nvidia.com/mig-1c.3g.20gb.count"] == "2"
    assert labels["nvidia.com/mig-1c.3g.20gb.multiprocessors"] == "14"
    assert labels["nvidia.com/mig-1c.3g.20gb.slices.ci"] == "1"
    assert labels["nvidia.com/mig-1c.3g.20gb.slices.gi"] == "3"


def test_mig_managers_layout_is_one_that_apply_reads(site: Site, tmp_path: Path) -> None:
    from slurm_mig.adapters.located import read

    text = yaml.safe_load(site.export("kubernetes", part="mig-manager"))["data"]["config.yaml"]
    file = tmp_path / "layouts.yaml"
    file.write_text(text)
    entries = interpret(read(file), str(file))["slurm-mig-n1"]
    before = site.gpus.inventory()
    answer = site.verbs.answer(Request("assert", wish=Wish(entries=entries)))
    assert answer.exit == 0, answer.text
    assert site.gpus.inventory() == before


# -- libvirt ---------------------------------------------------------------------------------------

DOMAIN = """\
<domain type='kvm'><name>vm</name><memory>1048576</memory><os><type>hvm</type></os>
<devices>{}</devices></domain>
"""


def sysfs(site: Site, index: int, **kinds: bool) -> Path:
    """A GPU's folder in a made-up /sys, in an IOMMU group, bound to nvidia, with resets."""
    address = site.gpus.gpu(index).pci.lower()[4:]
    folder = site.root / "sys" / "bus" / "pci" / "devices" / address
    group = site.root / "sys" / "kernel" / "iommu_groups" / "14"
    for path in (folder, group / "devices", site.root / "sys" / "drivers" / "nvidia"):
        path.mkdir(parents=True)
    (folder / "iommu_group").symlink_to(group)
    (group / "devices" / address).symlink_to(folder)
    (folder / "driver").symlink_to(site.root / "sys" / "drivers" / "nvidia")
    if kinds.get("reset", True):
        (folder / "reset_method").write_text("bus\n")
    return folder


def valid(text: str, tmp_path: Path) -> None:
    file = tmp_path / "domain.xml"
    file.write_text(DOMAIN.format(text))
    ran("virt-xml-validate", str(file), "domain")
    file.write_text(DOMAIN.format(text.replace("<source>", "<sauce>").replace("/source", "/sauce")))
    bad = subprocess.run(
        ["virt-xml-validate", str(file), "domain"], check=False, capture_output=True
    )
    assert bad.returncode, "the judge says yes to everything"


def test_libvirt_takes_a_whole_gpu(site: Site, tmp_path: Path) -> None:
    folder = sysfs(site, 1)
    valid(site.export("libvirt", gpus=(1,)), tmp_path)
    (folder / "reset_method").unlink()
    with pytest.raises(SlurmMigError, match="cannot be passed through: the kernel knows no way"):
        site.export("libvirt", gpus=(1,))


def test_libvirt_takes_a_vgpu_both_ways(site: Site, tmp_path: Path, sim: Simulator) -> None:
    folder = sysfs(site, 0)
    address = folder.name
    with pytest.raises(
        SlurmMigError, match=r"offers no vGPU type for a 3g\.20gb now; it offers none"
    ):
        site.export("libvirt", vgpu=True, profiles=("3g.20gb",))
    function = folder.with_name(address[:-1] + "4")
    function.mkdir()
    (folder / "virtfn0").symlink_to(function)
    kinds = tmp_path / "sys" / "class" / "mdev_bus" / function.name / "mdev_supported_types"
    for ident, name in (("nvidia-699", "GRID A100-1-5C"), ("nvidia-701", "GRID A100-3-20C")):
        (kinds / ident).mkdir(parents=True)
        (kinds / ident / "name").write_text(f"{name}\n")
        (kinds / ident / "available_instances").write_text("1\n")
    text = site.export("libvirt", vgpu=True, profiles=("3g.20gb",))
    assert f"{function.name}/mdev_supported_types/nvidia-701/create" in text
    assert "licence" in text
    valid(text, tmp_path)
    shutil.rmtree(tmp_path / "sys" / "class")
    (function / "nvidia").mkdir()
    (function / "nvidia" / "creatable_vgpu_types").write_text(
        "ID    : vGPU Name\n699   : NVIDIA A100-1-5C\n701   : NVIDIA A100-3-20C\n"
    )
    text = site.export("libvirt", vgpu=True, profiles=("3g.20gb",))
    assert f"echo 701 > /sys/bus/pci/devices/{function.name}/nvidia/current_vgpu_type" in text
    valid(text, tmp_path)


# -- a device plugin beside Slurm ------------------------------------------------------------------


def plugin(root: Path, *words: str, **environment: str) -> Path:
    """A /proc with one process: Kubernetes's device plugin."""
    folder = root / "fakeproc" / "4711"
    folder.mkdir(parents=True, exist_ok=True)
    program = ("/usr/bin/nvidia-device-plugin", *words)
    (folder / "cmdline").write_bytes(b"\0".join(w.encode() for w in program) + b"\0")
    lines = [f"{key}={value}".encode() for key, value in environment.items()]
    (folder / "environ").write_bytes(b"\0".join(lines))
    return root / "fakeproc"


def about(site: Site, proc: Path) -> list[str]:
    owned = owned_here(site.settings, "n1", site.gpus.inventory())
    return [f"{f.level}: {f.what}" for f in Worlds(site.settings, owned, proc).plugins()]


def test_a_plugin_that_offers_what_is_slurms(site: Site, tmp_path: Path) -> None:
    proc = plugin(tmp_path, "--mig-strategy=mixed")
    assert about(site, proc) == ["ok: offers nothing that is Slurm's"]
    proc = plugin(tmp_path, MIG_STRATEGY="single")
    assert about(site, proc)[1] == (
        "warning: MIG strategy single: the strategy cannot be single: GPU 1 has MIG off beside MIG "
        "instances"
    )
    (tmp_path / "etc" / "slurm-mig").mkdir()
    (tmp_path / "etc" / "slurm-mig" / "nodes.conf").write_text("NodeName=n1 Gres=gpu:x:2\n")
    proc = plugin(tmp_path, "--mig-strategy=mixed")
    assert about(site, proc) == [
        "error: offers what is Slurm's: 1g.5gb@0 of GPU 0, 1g.5gb@1 of GPU 0, 3g.20gb@4 of GPU 0 "
        "and 1 more"
    ]


def process(root: Path, pid: int, cgroup: str) -> Path:
    """A /proc with one process in a control group."""
    folder = root / "fakeproc" / str(pid)
    folder.mkdir(parents=True)
    (folder / "cmdline").write_bytes(b"python\0train.py\0")
    (folder / "cgroup").write_text(f"0::{cgroup}\n")
    return root / "fakeproc"


def manage(site: Site, *outside: ownership.Outside) -> None:
    """The node in the controller's care, by what the controller leaves on it."""
    (site.root / "etc" / "slurm-mig").mkdir()
    (site.root / "etc" / "slurm-mig" / "nodes.conf").write_text("NodeName=n1 Gres=gpu:x:2\n")
    record = BootRecord(Path(site.settings.state_dir))
    record.save_gpus(site.gpus.inventory(), outside=outside)


def clashes(site: Site, proc: Path) -> list[str]:
    owned = owned_here(site.settings, "n1", site.gpus.inventory())
    return [f"{f.level}: {f.what}" for f in Worlds(site.settings, owned, proc).clashes()]


def test_a_container_on_slurms_and_a_job_on_others(
    site: Site, sim: Simulator, tmp_path: Path
) -> None:
    mine, theirs = sorted(site.gpus.gpu(0).instances, key=lambda i: i.placement)[:2]
    manage(site, ownership.Outside("containers", 0, (theirs.placement,)))
    sim.add_process(os.getpid(), 0, mine.gi)
    container = f"/system.slice/docker-{'a' * 64}.scope"
    proc = process(tmp_path, os.getpid(), container)
    (found,) = clashes(site, proc)
    assert found.startswith("error: 1g.5gb@0 of GPU 0 is Slurm's, and process")
    assert "container aaaaaaaaaaaa" in found
    (proc / str(os.getpid()) / "cgroup").write_text("0::/slurm/uid_1/job_7/step_0\n")
    assert not clashes(site, proc)
    sim.remove_process(os.getpid())
    sim.add_process(os.getpid(), 0, theirs.gi)
    (found,) = clashes(site, proc)
    assert "1g.5gb@1 of GPU 0 is containers's, and process" in found
    assert "job 7" in found


def test_check_looks_at_what_a_format_needs(site: Site) -> None:
    exporter = Exporter(site.settings, "n1", site.gpus, site.root / "sys")
    (first, *_) = site.gpus.gpu(0).instances
    there = [f.where for f in exporter.run(Ask("cdi", gpus=(0,), check=True)).findings or ()
             if f.level == "error"]  # fmt: skip
    assert first.files[1] not in there
    os.unlink(first.files[1])
    gone = [f.where for f in exporter.run(Ask("cdi", gpus=(0,), check=True)).findings or ()
            if f.level == "error"]  # fmt: skip
    assert set(gone) - set(there) == {first.files[1]}
    answer = site.verbs.answer(Request("export", ask=Ask("docker", gpus=(0,), check=True)))
    assert answer.exit == 6
    assert "docker: nvidia-ctk is not installed here" in answer.text
    sysfs(site, 1, reset=False)
    found = exporter.run(Ask("libvirt", gpus=(1,), check=True)).findings
    assert [f.what for f in found or () if f.level == "error"] == [
        "the kernel knows no way to reset it"
    ]


def test_the_command_line_refuses_what_does_not_go_together() -> None:
    runner = CliRunner()
    for words, said in (
        (["export", "docker", "--inline"], "--inline is of mig-parted, not of docker"),
        (["export", "slurm", "--gpu", "0"], "slurm is about the whole node: --gpu cannot be given"),
        (["export", "lxc"], "'lxc' is not one of"),
    ):
        done = runner.invoke(main, words)
        assert done.exit_code == 2, done.output
        assert said in done.output
