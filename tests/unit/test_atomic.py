"""Files that are replaced whole, or stay as they were."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from slurm_mig.adapters import atomic
from slurm_mig.errors import ConfigError


def test_new_file_gets_the_mode(tmp_path: Path) -> None:
    atomic.write_atomic(tmp_path / "f", "a\r\n\udcff", mode=0o600)
    assert (tmp_path / "f").read_bytes() == b"a\r\n\xff"
    assert (tmp_path / "f").stat().st_mode & 0o7777 == 0o600


def test_existing_file_keeps_mode_owner_and_link(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.write_text("old")
    real.chmod(0o604)
    if os.geteuid() == 0:
        os.chown(real, 12, 34)
    (tmp_path / "link").symlink_to("real")
    owner = (real.stat().st_uid, real.stat().st_gid)
    atomic.write_atomic(tmp_path / "link", "new", mode=0o666)
    there = real.stat()
    assert (tmp_path / "link").is_symlink()
    assert (there.st_uid, there.st_gid, there.st_mode & 0o7777) == (*owner, 0o604)
    assert real.read_text() == "new"


def test_refusal_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="it was left as it is"):
        atomic.write_atomic(tmp_path / "no" / "f", "x")
    (tmp_path / "d").mkdir()
    with pytest.raises(ConfigError, match="it was left as it is"):
        atomic.write_atomic(tmp_path / "d", "x")
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_staged_can_be_discarded(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("old")
    atomic.stage(tmp_path / "f", "new").discard()
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]
