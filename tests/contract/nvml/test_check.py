"""The doctor: each thing that can be wrong, with where, why and what mends it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from slurm_mig.adapters.gpus import NvmlGpus
from slurm_mig.config import NodeSettings
from slurm_mig.core.findings import Finding
from slurm_mig.core.layouts import parse_inline
from slurm_mig.doctor import Doctor
from slurm_mig.errors import GpuError
from slurm_mig.gpurender import gres_lines
from slurm_mig.relayout import Relayout
from tests.contract.nvml.conftest import Opened
from tests.testbed.nvml_sim import GpuSpec, Simulator

A100 = "NVIDIA A100-SXM4-40GB"
H100 = "NVIDIA H100 80GB HBM3"

pytestmark = pytest.mark.changes_gpus

Found = Callable[[], dict[str, Finding]]


class Patient:
    """A node and its doctor."""

    def __init__(self, gpus: NvmlGpus, root: Path) -> None:
        self.gpus = gpus
        self.root = root
        (root / "etc").mkdir(exist_ok=True)
        settings = NodeSettings(
            caps_dir=str(root / "dev" / "nvidia-caps"), slurm_conf=str(root / "etc" / "slurm.conf")
        )
        self.doctor = Doctor(gpus, settings, "n1")

    def gres(self, text: str) -> None:
        (self.root / "etc" / "gres.conf").write_text(text)

    def publish(self) -> None:
        """gres.conf as it should be for what is there."""
        self.gres("\n".join(gres_lines(self.gpus.inventory(), "n[1-3]")) + "\n")

    def found(self, level: str) -> list[str]:
        """`where: what` of a level, without the device files of this testbed under /dev."""
        return [
            f"{f.where}: {f.what}".replace(str(self.root), "")
            for f in self.doctor.findings()
            if f.level == level and not f.where.startswith("/dev/nvidia")
        ]

    def apply(self, *words: str) -> None:
        Relayout(self.gpus).apply(parse_inline(words, self.gpus.inventory()))


@pytest.fixture
def patient(opened: Opened, tmp_path: Path) -> Callable[..., Patient]:
    def of(*specs: GpuSpec, driver: str = "580.95.05") -> Patient:
        made = Patient(opened(*specs, driver=driver), tmp_path)
        # The driver's own name for a GPU's file; /dev is this testbed's.
        if not os.path.exists("/dev/nvidia0"):
            os.mknod("/dev/nvidia0", 0o020666, os.stat(tmp_path / "dev" / "nvidia0").st_rdev)
        return made

    return of


Patients = Callable[..., Patient]


@pytest.mark.parametrize(
    ("driver", "level", "what"),
    [
        ("460.32.03", "error", "the driver is older than 470"),
        ("525.60.13", "error", "a NVIDIA H100 80GB HBM3 needs driver 525.85.12 for MIG"),
        ("530.30.02", "warning", "the driver is older than 535"),
        ("535.183.06", "ok", "the driver is new enough"),
    ],
)
def test_the_driver(patient: Patients, driver: str, level: str, what: str) -> None:
    sick = patient(GpuSpec(H100), driver=driver)
    assert f"driver {driver}: {what}" in sick.found(level)


def test_modes(sim: Simulator, patient: Patients) -> None:
    sick = patient(GpuSpec(A100, passthrough=True), GpuSpec(H100, mig=True), GpuSpec("NVIDIA L40S"))
    with pytest.raises(GpuError, match="pending"):
        sick.gpus.set_mode(0, on=True, keep_pending=True)
    assert sick.found("warning") == [
        "GPU 0: MIG is off, and a change to on is pending",
        "GPU 1: MIG is on and there is no instance",
    ]
    assert "GPU 2: a NVIDIA L40S cannot do MIG" in sick.found("note")


def test_a_gpu_instance_without_compute_instance(sim: Simulator, patient: Patients) -> None:
    sick = patient(GpuSpec(A100, mig=True))
    sick.apply("gpu0=3g.20gb@0")
    sim.fault("nvmlGpuInstanceCreateComputeInstance", "UNKNOWN", times=-1)
    (gi,) = [i.gi for i in sick.gpus.gpu(0).instances]
    with pytest.raises(GpuError, match="splitting"):
        sick.gpus.split(0, gi)
    assert any("3g.20gb@0 (GPU instance 1) has no compute" in e for e in sick.found("error"))
    sim.clear_faults()
    sick.apply("gpu0=3g.20gb")
    assert all(i.uuid for i in sick.gpus.gpu(0).instances)


def test_a_lost_gpu(sim: Simulator, patient: Patients) -> None:
    sick = patient(GpuSpec(A100, mig=True), GpuSpec(A100))
    sim.fault("*", "GPU_IS_LOST", gpu=0, times=-1)
    assert sick.found("error") == ["GPU 0: the GPU cannot be read: reading GPU 0: GPU is lost"]


def test_gres_conf(patient: Patients) -> None:
    sick = patient(GpuSpec(A100, mig=True))
    sick.apply("gpu0=3g.20gb@4,1g.5gb@0")
    sick.publish()
    agrees = "/etc/gres.conf: gres.conf agrees with 2 devices"
    assert agrees in sick.found("ok")
    sick.apply("gpu0=2g.10gb@0,3g.20gb@4")
    errors = sick.found("error")
    assert [e for e in errors if "published whose instance is not there" in e] == [
        "/etc/gres.conf:2: a 1g.5gb is published whose instance is not there"
    ]
    missing = "a 2g.10gb is there that gres.conf does not name"
    assert missing in [f.what for f in sick.doctor.findings()]
    text = (sick.root / "etc" / "gres.conf").read_text()
    sick.gres(
        text.replace("Type=3g.20gb", "Type=4g.20gb").replace("AutoDetect=off", "AutoDetect=nvml")
    )
    assert "/etc/gres.conf:3: published as 4g.20gb, but the instance is a 3g.20gb" in sick.found(
        "error"
    )
    assert "gres.conf: AutoDetect=nvml is on" in sick.found("warning")
    sick.gres("NodeName=n9 Name=gpu Type=x File=/none\n")
    assert not any("/none" in e for e in sick.found("error"))


def test_who_has_the_device_files_open(sim: Simulator, patient: Patients, tmp_path: Path) -> None:
    """By the device's number: the name of the file may be another in a container."""
    sick = patient(GpuSpec(H100))
    node = tmp_path / "dev" / "nvidia0"
    os.mkdir(tmp_path / "elsewhere")
    os.mknod(tmp_path / "elsewhere" / "gpu", 0o020666, os.stat(node).st_rdev)
    held = os.open(tmp_path / "elsewhere" / "gpu", os.O_PATH)
    try:
        notes = [n for n in sick.found("note") if f"process {os.getpid()}" in n]
        assert notes
        assert notes[0].startswith("GPU 0: held open, unknown to NVML, by process")
        sim.add_process(os.getpid(), 0)
        assert any(n.startswith("GPU 0: used by process") for n in sick.found("note"))
    finally:
        os.close(held)


def test_the_right_to_change_mig_is_roots(patient: Patients, tmp_path: Path) -> None:
    sick = patient(GpuSpec(A100, mig=True))
    config = tmp_path / "dev" / "nvidia-caps" / "nvidia-cap1"
    config.chmod(0o644)
    worst = [f for f in sick.doctor.findings() if f.where == str(config)]
    assert worst[0].what == "others than root may open the right to change MIG"
    assert worst[0].exit == 6


def test_tools(patient: Patients, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-ctk"
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    sick = patient(GpuSpec(A100, mig=True))
    tool.write_text("#!/bin/sh\necho 'NVIDIA Container Toolkit CLI version 1.6.2'\n")
    tool.chmod(0o755)
    old = "nvidia-container-toolkit: nvidia-container-toolkit 1.6.2 is older than 1.7"
    assert old in sick.found("warning")
    tool.write_text("#!/bin/sh\necho 'NVIDIA Container Toolkit CLI version 1.17.8'\n")
    assert "nvidia-container-toolkit: nvidia-container-toolkit 1.17.8" in sick.found("ok")
    plugin = tmp_path / "nvidia-device-plugin"
    plugin.write_text("#!/bin/sh\necho 'NVIDIA Device Plugin version 0.12.3'\n")
    plugin.chmod(0o755)
    old = "nvidia-device-plugin: nvidia-device-plugin 0.12.3 is older than 0.13"
    assert old in sick.found("warning")
    plugin.write_text("#!/bin/sh\necho 'NVIDIA Device Plugin version v0.17.4'\n")
    assert "nvidia-device-plugin: nvidia-device-plugin 0.17.4" in sick.found("ok")


def test_exact_words(patient: Patients) -> None:
    sick = patient(GpuSpec(H100, mig=True))
    found = [f for f in sick.doctor.findings() if not f.where.startswith("/dev")]
    gres = sick.root / "etc" / "gres.conf"
    assert (
        sick.doctor.text(found)
        == f"""\
ok       driver 580.95.05: the driver is new enough
note     {gres}: there is no gres.conf here
WARNING  GPU 0: MIG is on and there is no instance
         why:  such a GPU runs nothing, and slurmd with AutoDetect=nvml offers it as a whole one
         mend: slurm-mig apply gpu0=DEVICES, or slurm-mig mode off 0
0 errors, 1 warnings
"""
    )
