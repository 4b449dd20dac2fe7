"""gres.conf as a node reads it, and what a process is."""

from __future__ import annotations

from pathlib import Path

import pytest

from slurm_mig.adapters import gresfile, holders
from slurm_mig.errors import ConfigError


def test_gres_conf_of_one_node(tmp_path: Path) -> None:
    (tmp_path / "more.conf").write_text("NodeName=n2 Name=gpu Type=a100 File=/dev/nvidia[0-1]\n")
    (tmp_path / "gres.conf").write_text(
        "# a comment\n"
        "AutoDetect=nvml\n"
        "NodeName=n[1-3] AutoDetect=off\n"
        "Name=gpu Type=1g.5gb \\\n"
        "  MultipleFiles=/dev/nvidia0,/dev/nvidia-caps/nvidia-cap[12,13]  # here\n"
        "include more.conf\n"
        'NodeName="n[02-04]" Name=gpu File=/dev/nvidia9\n'
        "NodeName=n1 Name=mps Count=100\n"
    )
    found = gresfile.read(tmp_path / "gres.conf", "n2")
    assert found.autodetect == "off"
    assert [(d.type, d.files, d.where.rpartition("/")[2]) for d in found.devices] == [
        ("1g.5gb", ("/dev/nvidia0", "/dev/nvidia-caps/nvidia-cap12",
                    "/dev/nvidia-caps/nvidia-cap13"), "gres.conf:4"),
        ("a100", ("/dev/nvidia0",), "more.conf:1"),
        ("a100", ("/dev/nvidia1",), "more.conf:1"),
    ]  # fmt: skip
    assert gresfile.read(tmp_path / "gres.conf", "other").autodetect == "nvml"


def test_gres_conf_that_is_not_understood(tmp_path: Path) -> None:
    (tmp_path / "gres.conf").write_text("include gres.conf\n")
    with pytest.raises(ConfigError, match="too many includes"):
        gresfile.read(tmp_path / "gres.conf", "n1")
    (tmp_path / "gres.conf").write_text("Name=gpu File=/dev/nvidia[x]\n")
    with pytest.raises(ConfigError, match=r"gres.conf:1: .* not understood as device files"):
        gresfile.read(tmp_path / "gres.conf", "n1")


@pytest.mark.parametrize(
    ("nodes", "node", "there"),
    [
        ("gpu[001-016],head", "gpu007", True),
        ("gpu[001-016],head", "gpu7", False),
        ("gpu[001-016],head", "head", True),
        ("r[1-2]n[1-3]", "r2n3", True),
        ("r[1-2]n[1-3]", "r3n1", False),
        ("a.b", "axb", False),
    ],
)
def test_host_lists(nodes: str, node: str, there: bool) -> None:  # noqa: FBT001
    assert gresfile.names(nodes, node) == there


def process(proc: Path, pid: int, **files: str) -> None:
    folder = proc / str(pid)
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_bytes(text.encode())


def test_processes_in_words(tmp_path: Path) -> None:
    container = "a" * 64
    process(
        tmp_path, 1, cmdline="nv-hostengine\0-n\0", cgroup="0::/system.slice/nvidia-dcgm.service\n"
    )
    process(tmp_path, 2, cmdline="python\0train.py\0",
            cgroup="7:devices:/slurm/uid_2001/job_17/step_0\n", environ="A=1\0")  # fmt: skip
    process(
        tmp_path, 3, comm="worker\n", cgroup=f"0::/kubepods/pod1/cri-containerd-{container}.scope\n"
    )
    process(tmp_path, 4, cmdline="x\0" * 60, environ="SLURM_JOB_ID=9\0B=2\0")
    words = [str(holders.describe(pid, tmp_path)) for pid in (1, 2, 3, 4, 5)]
    assert words == [
        "process 1 (nv-hostengine -n): unit nvidia-dcgm.service",
        "process 2 (python train.py): job 17",
        f"process 3 (worker): unit cri-containerd-{container}.scope, container {container[:12]}",
        f"process 4 ({('x ' * 60)[:59]}…): job 9",
        "process 5 (ended)",
    ]


def test_kernel_users(tmp_path: Path) -> None:
    (tmp_path / "modules").write_text(
        "nvidia_drm 77824 4 - Live 0x0\nnvidia_uvm 1 0 - Live 0x0\next4 1 2 - Live 0x0\n"
    )
    parameters = tmp_path / "module" / "nvidia_drm" / "parameters"
    parameters.mkdir(parents=True)
    (parameters / "modeset").write_text("Y\n")
    assert holders.kernel_users(tmp_path, tmp_path) == {
        "nvidia_drm": "4 users, modesetting on: it holds every GPU",
        "nvidia_uvm": "0 users",
    }
