"""What a job may never have is in no slot, whatever the node says of itself."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from slurm_mig.adapters import system
from slurm_mig.core import publish, slots
from slurm_mig.core.model import Gpu
from slurm_mig.core.records import ManagedNode
from slurm_mig.errors import ConfigError
from tests.unit.builders import A30, A100, at, gpu, node, ones

RIGHTS = frozenset({"/caps/nvidia-cap1", "/caps/nvidia-cap2"})
WHOLE = replace(gpu(A100, 1), mig=False)


def gates(gpus: tuple[Gpu, ...]) -> set[str]:
    """What stands between a job and each GPU and instance that the node can have."""
    caps = {f"/caps/nvidia-cap{m}" for g in gpus for m in g.instance_minors}
    return caps | {g.file for g in gpus}


@pytest.mark.parametrize(
    "gpus",
    [
        (gpu(A100, 0, *ones()),),
        (gpu(A100, 0, *ones(3)), gpu(A100, 1)),
        (gpu(A100, 0), gpu(A100, 1)),
        (gpu(A100, 0, at("3g.20gb", 0), at("3g.20gb", 4)), WHOLE),
        (gpu(A30, 0, at("1g.6gb", 0)), WHOLE),
    ],
    ids=["full", "one empty", "all empty", "beside a whole one", "A30"],
)
def test_every_gpu_and_instance_is_in_some_slot_and_no_right_to_change_mig(
    gpus: tuple[Gpu, ...],
) -> None:
    arranged = node(gpus).slots
    listed = {file for device in arranged for file in device.files}
    assert gates(gpus) <= listed
    assert not RIGHTS & listed
    others = {file for device in arranged[:-1] for file in device.files}
    assert not set(arranged[-1].files) & others, "what a job holds is not the guard's"


def test_withheld_instances_and_their_gpu_go_to_the_guard() -> None:
    gpus = (gpu(A100, 0, *ones()), gpu(A100, 1, *ones()))
    kept = slots.devices_of(gpus[0], "whole")
    guard = slots.with_files(slots.arrange(14, {}, kept), gpus, "/caps")[-1]
    withheld = {i.files[1] for i in gpus[1].instances}
    assert withheld | {"/dev/nvidia1"} <= set(guard.files)
    assert "/dev/nvidia0" not in guard.files


def test_gres_conf_names_every_gate_once_or_as_a_neighbours() -> None:
    gpus = (gpu(A100, 0, *ones(2)), gpu(A100, 1))
    text = publish.gres_conf([ManagedNode("n1", {}, node(gpus).slots, ("1g.5gb",))])
    numbers = re.findall(r"nvidia-cap(?:\[([\d,]+)\]|(\d+))", text)
    minors = {int(n) for many, one in numbers for n in (many or one).split(",")}
    assert {m for g in gpus for m in g.instance_minors} <= minors
    assert not {1, 2} & minors
    assert "Type=guard MultipleFiles=/dev/nvidia1,/caps/nvidia-cap[" in text


@pytest.mark.parametrize("file", ["nvidia-cap1", "nvidia-cap2", "nvidia-cap01"])
def test_the_right_to_change_mig_stops_all(tmp_path: Path, file: str) -> None:
    """As when the driver's list of capabilities were read wrongly: nothing else is made either."""
    caps = tmp_path / "caps"
    with pytest.raises(ConfigError, match="no slot may have it"):
        system.ensure_device_files([f"{caps}/nvidia-cap30", f"{caps}/{file}"], lambda: 511)
    assert not caps.exists()


def test_missing_nodes_are_made_for_everybody_to_read(tmp_path: Path) -> None:
    files = [str(tmp_path / "caps" / f"nvidia-cap{minor}") for minor in (12, 13)]
    assert system.ensure_device_files([*files, files[0]], lambda: 511) == files
    found = [os.stat(file) for file in files]
    assert [f.st_rdev for f in found] == [os.makedev(511, 12), os.makedev(511, 13)]
    assert {f.st_mode for f in found} == {stat.S_IFCHR | 0o444}
    assert system.ensure_device_files(files, lambda: 511) == []
    assert sorted(os.listdir(tmp_path / "caps")) == ["nvidia-cap12", "nvidia-cap13"]


def test_a_node_of_an_earlier_driver_is_replaced(tmp_path: Path) -> None:
    """The major number of capabilities is given out at each load of the driver."""
    file = str(tmp_path / "nvidia-cap12")
    os.mknod(file, stat.S_IFCHR | 0o444, os.makedev(508, 12))
    assert system.ensure_device_files([file], lambda: 511) == [file]
    assert os.stat(file).st_rdev == os.makedev(511, 12)
