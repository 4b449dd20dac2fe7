"""When a hook looks at the GPUs themselves: in doubt before a job, after jobs, after a publish."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from slurm_mig.core import slotmap
from slurm_mig.core.model import Gpu
from slurm_mig.errors import SlurmMigError
from slurm_mig.hooks import Node, refresh_marks
from tests.unit.builders import A100, at, gpu, ones


def node(tmp_path: Path, gpus: list[Gpu], fence: Callable[[str], None] = lambda _: None) -> Node:
    """A node whose driver says this."""
    instances = [i for g in gpus for i in g.instances]
    lines = [slotmap.HEADER, "constrained=yes", "narrow=no"]
    lines += [f"slot_{n}='1g.5gb {i.uuid} {','.join(i.files)} -'" for n, i in enumerate(instances)]
    (tmp_path / "slots").write_text("\n".join(lines) + "\n")
    return Node(tmp_path, lambda: gpus, fence)


def with_devices(gpus: list[Gpu], pids: Mapping[int, tuple[int, ...]]) -> list[Gpu]:
    """Instances whose files are there, some with processes."""
    return [
        replace(g, instances=tuple(
            replace(i, files=("/dev/null",), pids=pids.get(n, ()))
            for n, i in enumerate(g.instances)))
        for g in gpus
    ]  # fmt: skip


def test_in_doubt_the_driver_is_asked_and_the_mark_set(tmp_path: Path) -> None:
    found = node(tmp_path, with_devices([gpu(A100, 0, *ones(2))], {}))
    found.prolog({"SLURM_JOB_GPUS": "1", "SLURM_JOB_ID": "7"})
    assert [m.name for m in (tmp_path / "clean").iterdir()] == ["MIG-0-1g.5gb@1"]


@pytest.mark.parametrize(
    ("gpus", "wanted"),
    [
        ("0", "job 7: slot 0 (1g.5gb MIG-0-1g.5gb@0) is held by process 1 "),
        ("9", "job 7: slot 9 is no device"),
        ("x", "job 7: SLURM_JOB_GPUS is no list"),
    ],
)
def test_a_fault_drains_the_node_and_names_job_and_slot(
    tmp_path: Path, gpus: str, wanted: str
) -> None:
    fences: list[str] = []
    gpu_list = with_devices([gpu(A100, 0, *ones(2))], {0: (1,)})
    found = node(tmp_path, gpu_list, fence=fences.append)
    with pytest.raises(SlurmMigError):
        found.prolog({"SLURM_JOB_GPUS": gpus, "SLURM_JOB_ID": "7"})
    assert len(fences) == 1
    assert fences[0].startswith(wanted)


def test_an_instance_that_is_gone_or_has_other_files(tmp_path: Path) -> None:
    found = node(tmp_path, with_devices([gpu(A100, 0, *ones(2))], {}))
    found.look = lambda: with_devices([gpu(A100, 0, at("3g.20gb", 4))], {})
    with pytest.raises(SlurmMigError, match="does not exist"):
        found.prolog({"SLURM_JOB_GPUS": "0", "SLURM_JOB_ID": "7"})
    found.look = lambda: [gpu(A100, 0, *ones(2))]
    with pytest.raises(SlurmMigError, match="other device files now"):
        found.prolog({"SLURM_JOB_GPUS": "0", "SLURM_JOB_ID": "7"})


def test_marks_after_a_publish(tmp_path: Path) -> None:
    gpus = with_devices([gpu(A100, 0, *ones(3))], {1: (1,)})
    node(tmp_path, gpus)
    (tmp_path / "clean").mkdir()
    (tmp_path / "clean" / "MIG-old").write_text("clean\n")
    (tmp_path / "clean" / "MIG-0-1g.5gb@1").write_text("clean\n")
    refresh_marks(tmp_path, gpus)
    sizes = {m.name: m.stat().st_size for m in (tmp_path / "clean").iterdir()}
    assert set(sizes) == {f"MIG-0-1g.5gb@{n}" for n in range(3)}
    assert all(sizes.values())
    (tmp_path / "clean" / "MIG-0-1g.5gb@1").write_text("")
    refresh_marks(tmp_path, gpus)
    assert not (tmp_path / "clean" / "MIG-0-1g.5gb@1").stat().st_size


def test_the_check_ends_what_a_job_left_and_nothing_else(tmp_path: Path) -> None:
    env = {**os.environ, "SLURM_JOB_ID": "7"}
    left = subprocess.Popen(["sleep", "60"], env=env, user=2001)
    other = subprocess.Popen(["sleep", "60"], user=2002)
    try:
        pids = {0: (left.pid,), 1: (other.pid,), 2: ()}
        base = [gpu(A100, 0, *ones(3))]
        found = node(tmp_path, with_devices(base, pids))

        def look() -> list[Gpu]:
            alive = {0: (left.pid,) if left.poll() is None else (), 1: (other.pid,)}
            return with_devices(base, alive)

        found.look = look
        refresh_marks(tmp_path, look())
        (tmp_path / "ended").write_text("7 2001 0-1\nrubbish\n")
        said = found.check()
        assert left.wait(5)
        assert other.poll() is None
        assert len(said) == 1
        assert f"slot 1 (1g.5gb MIG-0-1g.5gb@1) is held by process {other.pid} (sleep" in said[0]
        sizes = {m.name[-1]: m.stat().st_size for m in (tmp_path / "clean").iterdir()}
        assert [n for n, size in sizes.items() if not size] == ["1"]
        assert not (tmp_path / "ended").exists()
        assert (tmp_path / "ended.kept").read_text() == "7 2001 0,1\n"
    finally:
        left.kill()
        other.kill()
        left.wait()
        other.wait()


def test_what_is_left_is_only_reported_where_the_site_says_so(tmp_path: Path) -> None:
    left = subprocess.Popen(["sleep", "60"], user=2001)
    try:
        found = node(tmp_path, with_devices([gpu(A100, 0, *ones(1))], {0: (left.pid,)}))
        found.leftover = "report"
        (tmp_path / "ended").write_text("7 2001 0\n")
        assert "is held by" in found.check()[0]
        assert left.poll() is None
    finally:
        left.kill()
        left.wait()
