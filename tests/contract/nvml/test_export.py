"""`slurm-mig export` on simulated nodes, its output used in the real tools.

docker-compose, virt-xml-validate, a shell and the schemas of CDI and Kubernetes judge (judges.py).
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from click.testing import CliRunner

from slurm_mig.adapters.ownedhere import owned_here
from slurm_mig.cli import main
from slurm_mig.core import ownership
from slurm_mig.core.exports import containers
from slurm_mig.core.exports.chosen import Ask
from slurm_mig.core.layoutfile import interpret
from slurm_mig.errors import SlurmMigError, UsageError
from slurm_mig.exporting import Exporter, cdi_text, keep_cdi
from slurm_mig.gpuverbs import Request, Wish
from slurm_mig.worlds import Worlds
from tests.contract.nvml import judges
from tests.contract.nvml.site import Site, sysfs
from tests.testbed.nvml_sim import Simulator


def test_docker_compose_reads_it(site: Site, tmp_path: Path) -> None:
    text = site.export("compose", profiles=("3g.20gb",))
    (tmp_path / "compose.yaml").write_text(text)
    service = judges.compose(tmp_path / "compose.yaml")["services"]["mig"]
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    (instance,) = [i for i in site.gpus.gpu(0).instances if i.placement.profile == "3g.20gb"]
    assert device["device_ids"] == [instance.uuid]
    assert device["capabilities"] == ["gpu"]


def test_a_shell_reads_the_environment(site: Site) -> None:
    text = site.export("env", profiles=("1g.5gb",), count=2)
    said = judges.ran(
        "sh", "-euc", text + 'echo "$CUDA_VISIBLE_DEVICES $APPTAINERENV_CUDA_VISIBLE_DEVICES"'
    )
    uuids = [i.uuid for i in site.gpus.gpu(0).instances if i.placement.size == 1]
    assert said.split() == [",".join(uuids)] * 2


def test_cdi_is_what_its_text_demands(site: Site) -> None:
    spec = yaml.safe_load(site.export("cdi"))
    judges.cdi(spec)
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
    for document in (pod, manager, labels):
        judges.kubernetes(document)
    judges.kubernetes({**labels, "metadata": {"name": "n1", "labels": discovery}})
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
    judges.cdi(spec)
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


@pytest.mark.parametrize("path", ["kind", "devices", "devices.0.name", "cdiVersion"])
def test_cdis_judge_refuses(site: Site, path: str) -> None:
    spec = yaml.safe_load(site.export("cdi"))
    *way, last = path.split(".")
    place: Any = spec
    for step in way:
        place = place[int(step) if step.isdigit() else step]
    place[last] = 7
    with pytest.raises(AssertionError, match="7 is not of type"):
        judges.cdi(spec)
    assert containers.cdi_faults(spec)


def test_kubernetess_judge_refuses(site: Site) -> None:
    pod = yaml.safe_load(site.export("kubernetes", profiles=("1g.5gb",), part="pod"))
    judges.kubernetes(pod)
    with pytest.raises(AssertionError, match="Additional properties are not allowed"):
        judges.kubernetes({**pod, "spec": {**pod["spec"], "contaners": []}})
    with pytest.raises(AssertionError, match="is a required property"):
        judges.kubernetes({**pod, "spec": {}})
    with pytest.raises(jsonschema.ValidationError):
        judges.kubernetes({**pod, "metadata": {"name": "x", "labels": {"a": "3g 20gb"}}})


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


def test_libvirt_takes_a_whole_gpu(site: Site, tmp_path: Path) -> None:
    folder = sysfs(site, 1)
    text = site.export("libvirt", gpus=(1,))
    judges.libvirt(text, tmp_path)
    with pytest.raises(AssertionError, match="Relax-NG"):
        judges.libvirt(text.replace("<source>", "<sauce>").replace("/source", "/sauce"), tmp_path)
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
    judges.libvirt(text, tmp_path)
    shutil.rmtree(tmp_path / "sys" / "class")
    (function / "nvidia").mkdir()
    (function / "nvidia" / "creatable_vgpu_types").write_text(
        "ID    : vGPU Name\n699   : NVIDIA A100-1-5C\n701   : NVIDIA A100-3-20C\n"
    )
    text = site.export("libvirt", vgpu=True, profiles=("3g.20gb",))
    assert f"echo 701 > /sys/bus/pci/devices/{function.name}/nvidia/current_vgpu_type" in text
    judges.libvirt(text, tmp_path)


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
