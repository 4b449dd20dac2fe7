"""What our adapter reads, of the simulated models and, read-only, of a real host (--nvml real)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm_mig.adapters.gpus import NvmlGpus
from slurm_mig.adapters.shown import shown
from slurm_mig.config import NodeSettings
from slurm_mig.core.geometry import fits, placements_of
from slurm_mig.core.layouts import devices_of
from slurm_mig.core.observed import differences
from slurm_mig.core.profiles import parts
from slurm_mig.gpuverbs import GpuVerbs
from slurm_mig.tables import tables
from tests.contract.nvml.conftest import REAL
from tests.testbed.nvml_sim import GpuSpec, Simulator


@pytest.fixture
def gpus(model: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[NvmlGpus]:
    if model == REAL:
        found = NvmlGpus()
    else:
        sim: Simulator = request.getfixturevalue("sim")
        sim.create([GpuSpec(model, mig=True)], root=tmp_path)
        found = NvmlGpus(str(tmp_path / "dev" / "nvidia-caps"), str(tmp_path / "proc"))
    yield found
    found.close()


def test_every_profile_has_a_name_we_understand_and_a_place(gpus: NvmlGpus) -> None:
    for gpu in gpus.inventory():
        assert gpu.mig_capable or not gpu.profiles
        for profile in gpu.profiles:
            assert parts(profile.name) == (0, profile.name)
            assert profile.max_count >= 1
            assert fits(gpu, placements_of(profile)[:1])


def test_instances_have_what_identifies_them(gpus: NvmlGpus) -> None:
    for gpu in gpus.inventory():
        assert fits(gpu, gpu.layout)
        assert sum(devices_of(gpu).values()) == sum(len(i.computes) for i in gpu.instances)
        for instance in gpu.instances:
            assert all(c.uuid.startswith("MIG-") and c.minor for c in instance.computes)


def test_the_driver_agrees_on_what_still_fits(gpus: NvmlGpus) -> None:
    for gpu in gpus.inventory():
        for name, count in (gpus.remaining(gpu.index) if gpu.mig else {}).items():
            profile = gpu.profile(name)
            assert profile is not None
            room = [p for p in placements_of(profile) if fits(gpu, (*gpu.layout, p))]
            assert (count > 0) == bool(room)


def test_the_built_in_tables_say_the_same(gpus: NvmlGpus) -> None:
    """On real hardware what differs is what to correct: `slurm-mig inventory --record FILE`."""
    assert differences(shown(gpus.driver(), gpus.inventory()), tables()) == []


def test_reading_verbs_say_something_of_every_gpu(gpus: NvmlGpus) -> None:
    verbs = GpuVerbs(NodeSettings(caps_dir=gpus.caps_dir), "here", gpus)
    count = len(gpus.inventory())
    for answer in (verbs.inventory(), verbs.profiles(), verbs.check()):
        assert all(f"GPU {n}" in answer.text for n in range(count))
