"""What Slurm's commands see of the caller's environment."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from slurm_mig.adapters import squeue
from slurm_mig.adapters.slurmcommands import environment

DROPPED = (
    "SQUEUE_PARTITION", "SQUEUE_USERS", "SQUEUE_ACCOUNT", "SQUEUE_QOS", "SQUEUE_STATES",
    "SQUEUE_FORMAT2", "SINFO_FORMAT", "SACCT_FEDERATION", "SCONTROL_LOCAL", "SLURM_CLUSTERS",
    "SLURM_TIME_FORMAT", "SLURM_BITSTR_LEN", "SLURM_JSON", "SLURM_YAML",
)  # fmt: skip
KEPT = {"PATH": "/bin", "SLURM_CONF": "/etc/slurm/slurm.conf", "SLURM_JWT": "x", "HOME": "/root"}


def test_filters_and_formats_go_and_all_else_stays() -> None:
    assert environment({**KEPT, **dict.fromkeys(DROPPED, "x")}) == KEPT


def test_squeue_on_a_node_is_asked_without_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A squeue that hides every job where a filter is set, as Slurm's does."""
    for name, says in (
        ("squeue", '[ -n "$SQUEUE_USERS" ] || echo "7 gres/gpu:1"'),
        ("scontrol", ""),
    ):
        (tmp_path / name).write_text(f"#!/bin/sh\n{says}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SQUEUE_USERS", "root")
    assert squeue.gpu_jobs("n1") == [7]
