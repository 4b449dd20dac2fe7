"""The rights to change and to watch MIG are in nothing that the adapter or the node hands out."""

from __future__ import annotations

from pathlib import Path

import pytest

from slurm_mig.adapters.gpus import NvmlGpus
from slurm_mig.adapters.system import FORBIDDEN_MINORS, capability_of
from slurm_mig.config import NodeSettings
from slurm_mig.core import slots
from slurm_mig.core.model import Device
from slurm_mig.errors import ConfigError
from slurm_mig.node import NodeAgent


def test_no_gpu_has_them_among_its_minors_or_its_instances_files(
    nvml: list[str], tmp_path: Path
) -> None:
    gpus = NvmlGpus(proc=str(tmp_path / "proc") if nvml else "/proc/driver").inventory()
    minors = {m for gpu in gpus for m in (*gpu.instance_minors, *gpu.spare_minors)}
    files = {f for gpu in gpus for device in slots.devices_of(gpu, "whole") for f in device.files}
    assert minors
    assert not FORBIDDEN_MINORS & {*minors, *map(capability_of, files)}


@pytest.mark.usefixtures("nvml")
@pytest.mark.parametrize("minor", sorted(FORBIDDEN_MINORS))
def test_a_slot_that_has_one_changes_nothing_on_the_node(tmp_path: Path, minor: int) -> None:
    run = tmp_path / "run"
    agent = NodeAgent(NodeSettings(run_dir=str(run)), "n1")
    with pytest.raises(ConfigError, match="no slot may have it"):
        agent.prepare((Device("1g.5gb", (f"{tmp_path}/nvidia-cap{minor}",)),))
    assert not run.exists()
