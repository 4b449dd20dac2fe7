"""The reference pages of the verbs about GPUs (docs/verbs): every command of theirs, with exactly
what it prints and how it ends, on a machine of its own. `...` stands for UUIDs and process ids."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm_mig.commands.gpus import VERBS
from tests.contract.nvml.conftest import Opened
from tests.contract.nvml.machine import SOURCE, Machine
from tests.testbed import console
from tests.testbed.nvml_sim import GpuSpec, Simulator

pytestmark = pytest.mark.changes_gpus

PAGES = sorted((SOURCE / "docs" / "verbs").glob("*.md"))


@pytest.fixture
def holder() -> Iterator[int]:
    """A process of Slurm's job 17."""
    child = subprocess.Popen(["sleep", "60"], env={"SLURM_JOB_ID": "17"})
    yield child.pid
    child.kill()
    child.wait()


def test_there_is_a_page_for_every_verb() -> None:
    assert [page.stem for page in PAGES] == sorted(str(verb.name) for verb in VERBS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page(page: Path, sim: Simulator, opened: Opened, holder: int, tmp_path: Path) -> None:
    gpus = opened(GpuSpec("NVIDIA A100-SXM4-40GB", mig=True), GpuSpec("NVIDIA H100 80GB HBM3"))
    machine = Machine(sim, tmp_path)
    if page.stem != "restore":
        machine.run("slurm-mig", "apply", "gpu0=3g.20gb,1g.5gb*2")
        sim.add_process(holder, 0, next(i.gi for i in gpus.gpu(0).instances))
    for step in console.steps(page.read_text(encoding="utf-8")):
        done = machine.run("bash", "-c", f"exec 2>&1\n{step.command}")
        place = f"{page.name}:{step.line}: {step.command}\n{done.stdout}"
        assert done.returncode == step.exit, place
        assert console.matches(step.output, done.stdout), place
