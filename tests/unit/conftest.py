"""What several of these tests need."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program file called slurmd, as slurmd is known by it: a Python."""
    monkeypatch.setenv("PYTHONHOME", sys.base_prefix)
    made = tmp_path / "slurmd"
    shutil.copy(os.path.realpath(sys.executable), made)
    return made
