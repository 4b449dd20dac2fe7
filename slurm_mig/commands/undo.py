"""`slurm-mig undo`: a node's GPUs as they were before their last change."""

from __future__ import annotations

import shutil
import sys
from contextlib import closing
from pathlib import Path

import click

from slurm_mig.commands.controller import assembled
from slurm_mig.commands.options import CONFIG_OPTION
from slurm_mig.errors import BusyError, Exit, UsageError
from slurm_mig.printing import say


@click.command()
@CONFIG_OPTION
@click.argument("node")
@click.option("--dry-run", is_flag=True, help="Show what would be done; change nothing.")
def undo(config_path: Path, node: str, *, dry_run: bool) -> None:
    """Bring back the layout that NODE's GPUs had before their last change.

    Done as any reshape is: running jobs keep their instances. Refused while one of the instances
    that would have to go is used. Undone twice, a change is there again.
    """
    from slurm_mig import render
    from slurm_mig.adapters.system import who_asks
    from slurm_mig.core import undo as core
    from slurm_mig.core.changes import Plan
    from slurm_mig.core.model import NodeCondition
    from slurm_mig.core.records import Phase

    assembly = assembled(config_path)
    with assembly.store.lock(), assembly.nodes, closing(assembly.files):
        managed = assembly.store.managed().get(node)
        if managed is None:
            raise UsageError(f"{node} is not enrolled; nothing was changed")
        last = core.last_change(assembly.store.history.entries(), node)
        if last is None:
            raise UsageError(f"the history has no change of {node}; nothing was changed")
        view = next(v for v in assembly.reconciler().observe().views if v.name == node)
        if view.condition is not NodeCondition.USABLE:
            raise BusyError(f"{node}: {view.note}; nothing was changed")
        change = core.undo(view, last, f"undo of {last.id}, by {who_asks()}")
        if dry_run:
            width = shutil.get_terminal_size((100, 24)).columns
            say(render.plan_text(Plan((change,)), (view,), width), nl=False)
            return
        outcome = assembly.executor().reshape(managed, change)
    say(outcome.sentence)
    if outcome.phase is Phase.RELEASED:
        say(f"As before {last.id}. The queue may want it otherwise: `slurm-mig pause {node}`"
                   " keeps it so.")  # fmt: skip
        return
    sys.exit(Exit.ATTENTION if outcome.phase in (Phase.HELD, Phase.QUARANTINED) else Exit.BUSY)
