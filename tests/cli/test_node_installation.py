"""What a GPU node's installation says, where pyslurm, the solver and ClusterShell are not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from slurm_mig.cli import MISSING
from slurm_mig.errors import Exit

SOURCE = Path(__file__).parents[2]
WITHOUT = (
    "import sys; sys.modules['pyslurm'] = None; from slurm_mig.cli import main; main(sys.argv[1:])"
)


@pytest.mark.parametrize("command", ["plan", "status", "reconcile"])
def test_a_command_of_the_controllers(command: str) -> None:
    words = [sys.executable, "-c", WITHOUT, command, "--config"]
    done = subprocess.run(
        [*words, str(SOURCE / "etc" / "slurm-mig.yaml")],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.stdout == ""
    assert done.returncode == Exit.REFUSED, done.stderr
    first, *rest = done.stderr.splitlines()
    assert "pyslurm" in first
    assert first.endswith("; nothing was done")
    assert "\n".join(rest) == MISSING
