"""`slurm-mig report`: the cluster's GPUs as one HTML page."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from slurm_mig.commands.controller import assembled
from slurm_mig.commands.options import CONFIG_OPTION
from slurm_mig.errors import UsageError


@click.command()
@CONFIG_OPTION
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False),
              help="Write to this file, in one step, instead of standard output.")  # fmt: skip
@click.option("--hours", type=click.FloatRange(min=0.1, max=24 * 366), default=24.0,
              show_default=True, help="How far the timeline goes back.")  # fmt: skip
@click.option("--refresh", "refresh_s", type=click.FloatRange(min=0), default=0.0,
              help="Have browsers load the page again every SECONDS.")  # fmt: skip
def report(config_path: Path, output: Path | None, hours: float, refresh_s: float) -> None:
    """Draw the cluster's GPUs, what waits and what was done as one HTML page.

    The page needs nothing from elsewhere and has no script. A cycle writes the same to
    monitoring.report_file. Changes nothing.
    """
    if output is None and sys.stdout.isatty():
        raise UsageError(
            "the report is a page for a browser; nothing was written",
            hint="Name a file, --output report.html, or pipe it.",
        )
    from slurm_mig.adapters.atomic import write_atomic
    from slurm_mig.adapters.system import RealClock
    from slurm_mig.report.page import Picture, html

    assembly = assembled(config_path)
    with assembly.nodes:
        cycle = assembly.reconciler().look()
    history = list(assembly.store.history.entries())
    pauses = assembly.store.pauses()
    text = html(Picture(cycle, history, RealClock().now(), hours, refresh_s, pauses))
    if output is None:
        click.echo(text, nl=False)
    else:
        write_atomic(output, text)
