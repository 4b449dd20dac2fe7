"""What the controller's commands begin with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from slurm_mig import config

if TYPE_CHECKING:
    from slurm_mig.assembly import Assembly


def assembled(config_path: Path) -> Assembly:
    """All parts, for a command that asks nodes or changes something: it is root whom the nodes
    answer. Anybody else would be told that no node does, or that there is nothing to do."""
    from slurm_mig.assembly import Assembly

    roots()
    return Assembly.of(config.load(config_path))


def roots() -> None:
    """This command is root's: raises SlurmMigError for anybody else."""
    from slurm_mig.adapters.system import require_root

    require_root(f"`slurm-mig {click.get_current_context().info_name}`")
