"""`slurm-mig release`: a person has done what a node was left drained for."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import click

from slurm_mig.commands.controller import assembled
from slurm_mig.commands.options import CONFIG_OPTION
from slurm_mig.errors import StillHeldError


@click.command()
@CONFIG_OPTION
@click.argument("node")
def release(config_path: Path, node: str) -> None:
    """Go on with NODE, which was left drained for a person: its reason says what was to be done.

    Everything is looked at again. What still disagrees is named and the node stays drained;
    otherwise what was begun is finished and our own drain, no other, is lifted.
    """
    from slurm_mig.core.records import Phase

    assembly = assembled(config_path)
    with assembly.store.lock(), assembly.nodes, closing(assembly.files):
        outcome = assembly.reconciler().release(node)
    if outcome.phase in (Phase.HELD, Phase.QUARANTINED):
        raise StillHeldError(f"{node} stays drained: {outcome.note}")
    click.echo(outcome.sentence)
