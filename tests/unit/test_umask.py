"""Root's own umask is not that of what slurm-mig puts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("mask", [0o027, 0o077])
def test_what_install_puts_can_be_read_by_all(tmp_path: Path, mask: int) -> None:
    root = tmp_path / "root"
    (root / "etc/slurm").mkdir(parents=True)
    (root / "etc/slurm/slurm.conf").write_text("ClusterName=x\n")
    before = set(root.rglob("*"))
    subprocess.run(
        [sys.executable, "-m", "slurm_mig", "install", f"--root={root}"],
        check=False, capture_output=True, umask=mask,
    )  # fmt: skip
    put = set(root.rglob("*")) - before
    folders = [path for path in put if path.is_dir()]
    assert any(path.name == "slurm-mig" for path in folders)
    assert [p for p in folders if os.lstat(p).st_mode & 0o755 != 0o755] == []
    assert [p for p in put if p.is_file() and not os.lstat(p).st_mode & 0o004] == []
