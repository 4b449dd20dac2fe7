"""The environment of Slurm's commands: the caller's, without what would change their answers."""

from __future__ import annotations

import os
from collections.abc import Mapping

CHANGES_ANSWERS = ("SQUEUE_", "SINFO_", "SACCT", "SCONTROL_")
"""Filters and formats of one person: `SQUEUE_PARTITION=mine` hides the others' running jobs."""

ALSO = frozenset(
    {"SLURM_CLUSTERS", "SLURM_TIME_FORMAT", "SLURM_BITSTR_LEN", "SLURM_JSON", "SLURM_YAML"}
)


def environment(given: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What Slurm's commands are started with. `SLURM_CONF` and all else stays."""
    return {
        name: value
        for name, value in given.items()
        if not name.startswith(CHANGES_ANSWERS) and name not in ALSO
    }
