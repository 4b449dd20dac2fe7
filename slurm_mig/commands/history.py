"""`slurm-mig history`: what was done, when, why, for how long, and by which plan."""

from __future__ import annotations

import json
import re
from datetime import datetime
from pathlib import Path

import click

from slurm_mig import config
from slurm_mig.commands.options import CONFIG_OPTION, JSON_OPTION
from slurm_mig.core.records import Event, Transaction
from slurm_mig.errors import UsageError
from slurm_mig.printing import say

UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@click.command()
@CONFIG_OPTION
@JSON_OPTION
@click.option("--node", "nodes", multiple=True, help="Only what concerns these (a node set).")
@click.option("--since", help="Only what ended after: 2h, 3d, or 2026-11-25[ 14:00].")
@click.option("--last", type=click.IntRange(min=0), default=20, show_default=True,
              help="At most so many, the newest; 0: all that is kept.")  # fmt: skip
def history(
    config_path: Path,
    as_json: bool,  # noqa: FBT001
    nodes: tuple[str, ...],
    since: str | None,
    last: int,
) -> None:
    """Show what was done, oldest first: every reshape, given up or carried through, and what
    administrators had slurm-mig do."""
    from slurm_mig import historyrender as render
    from slurm_mig.adapters.nodesets import expand
    from slurm_mig.adapters.store import FileStore
    from slurm_mig.adapters.system import RealClock

    settings = config.load(config_path)
    names = {name for word in nodes for name in expand(word)}
    after = moment(since, RealClock().now()) if since else 0.0
    found = [
        entry
        for entry in FileStore(Path(settings.state_dir)).history.entries()
        if ended(entry) >= after and (not names or names.intersection(concerned(entry)))
    ]
    shown = found[-last:] if last else found
    if as_json:
        rows = [render.history_json(entry) for entry in shown]
        click.echo(json.dumps({"entries": rows, "earlier": len(found) - len(shown)}, indent=2))
        return
    if len(shown) < len(found):
        say(f"({len(found) - len(shown)} earlier: `--last 0` shows them)")
    for entry in shown:
        say(render.history_text(entry), nl=False)
    if not found:
        say("nothing was done")


def ended(entry: Transaction | Event) -> float:
    return entry.time if isinstance(entry, Event) else entry.finished


def concerned(entry: Transaction | Event) -> tuple[str, ...]:
    return entry.nodes if isinstance(entry, Event) else (entry.node,)


def moment(text: str, now: float) -> float:
    """`2h` ago, or a local date and time, in seconds since the epoch. Raises UsageError."""
    if found := re.fullmatch(r"(\d+)([smhd])", text):
        return now - int(found[1]) * UNITS_S[found[2]]
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError as error:
        raise UsageError(
            f"--since {text!r} is not understood", hint="Give 30m, 2h, 3d, or 2026-11-25 14:00."
        ) from error
