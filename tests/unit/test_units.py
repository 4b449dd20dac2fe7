"""The systemd units, by systemd's own judgement."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

UNITS = Path(__file__).resolve().parents[2] / "etc" / "systemd"


@pytest.mark.parametrize(
    ("unit", "threshold"),
    [("slurm-mig", 25), ("slurm-mig-check", 55), ("slurm-mig-restore", 55)],
)
def test_exposure(unit: str, threshold: int, tmp_path: Path) -> None:
    """At most so many tenths; docs/security.md says what is left and why."""
    text = (UNITS / f"{unit}.service").read_text().replace("/usr/bin/slurm-mig", "/bin/true")
    copy = tmp_path / f"{unit}.service"
    copy.write_text(text)
    words = ["security", "--offline=yes", "--no-pager", f"--threshold={threshold}", str(copy)]
    done = subprocess.run(["systemd-analyze", *words], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-300:] + done.stderr
    assert "Unknown" not in done.stderr, done.stderr
