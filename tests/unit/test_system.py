"""The node's device files and slurmd."""

from __future__ import annotations

from pathlib import Path

import pytest

from slurm_mig.adapters import system
from slurm_mig.errors import ConfigError, UnreachableError


@pytest.mark.parametrize("minor", [1, 2])
def test_the_right_to_change_mig_is_never_handed_out(minor: int) -> None:
    with pytest.raises(ConfigError, match="no slot may have it"):
        system.ensure_device_files([f"/dev/nvidia-caps/nvidia-cap{minor}"])


def test_a_missing_file_that_is_no_capability_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        system.ensure_device_files([str(tmp_path / "nvidia0")])


def test_what_exists_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "nvidia-cap30"
    file.touch()
    assert system.ensure_device_files([str(file)]) == []


def test_constrained_devices_are_read_from_cgroup_conf(tmp_path: Path) -> None:
    conf = tmp_path / "slurm.conf"
    assert not system.devices_constrained(conf)
    (tmp_path / "cgroup.conf").write_text("# ConstrainDevices=yes\n")
    assert not system.devices_constrained(conf)
    (tmp_path / "cgroup.conf").write_text("constraindevices = YES\n")
    assert system.devices_constrained(conf)


def test_a_slurmd_that_does_not_come_up_is_reported(tmp_path: Path) -> None:
    pid_file = tmp_path / "slurmd.pid"
    slurmd = system.Slurmd(str(pid_file), ["/bin/true"], deadline_s=0.05)
    assert slurmd.pid() == 0
    with pytest.raises(UnreachableError, match="not up"):
        slurmd.restart()
    with pytest.raises(UnreachableError, match="restarting slurmd failed"):
        system.Slurmd(str(pid_file), ["/bin/false"], deadline_s=1).restart()
