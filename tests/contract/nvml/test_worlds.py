"""Others beside Slurm on a node: plugins that offer, processes that use, what is not theirs."""

from __future__ import annotations

import os
from pathlib import Path

from slurm_mig.adapters.bootrecord import BootRecord
from slurm_mig.adapters.ownedhere import owned_here
from slurm_mig.core import ownership
from slurm_mig.worlds import Worlds
from tests.contract.nvml.site import Site
from tests.testbed.nvml_sim import Simulator


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
