"""`slurm-mig files`: the copies of our files on another controller's host.

The slurm-mig that is at work elsewhere calls `files serve` here, where slurmctld has files of its
own (`slurm.controllers` in the configuration). Only what this protocol has can be asked.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slurm_mig import config
from slurm_mig.commands.options import CONFIG_OPTION
from slurm_mig.errors import ConfigError

if TYPE_CHECKING:
    from slurm_mig.adapters.managedfiles import ManagedFiles


@click.group()
def files() -> None:
    """What runs on the host of another slurmctld, as root; called by slurm-mig."""


@files.command()
@CONFIG_OPTION
def serve(config_path: Path) -> None:
    """Answer JSON requests, one a line on stdin, until it ends."""
    from slurm_mig.adapters.system import require_root
    from slurm_mig.assembly import LocalFiles
    from slurm_mig.node import answer_all

    require_root("the files command")
    copies = LocalFiles(config.load(config_path))
    verbs = {
        "check": lambda data: _check(copies, data),
        "commit": lambda data: copies.commit(_records(data, "nodes")),
    }
    answer_all(verbs, sys.stdin, sys.stdout)


def _check(copies: ManagedFiles, data: Any) -> list[str]:
    """`data`: the records, and the records with an interrupted transaction's slots."""
    if not isinstance(data, list) or len(data) != 2:
        raise ConfigError("check: expected two lists of records")
    nodes, also = data
    return copies.check(_records(nodes, "nodes"), _records(also, "also"))


def _records(data: Any, where: str) -> Any:
    from slurm_mig.core.codec import decode
    from slurm_mig.core.records import ManagedNode

    return decode(list[ManagedNode], data, where)
