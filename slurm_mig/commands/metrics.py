"""`slurm-mig metrics`: what a cycle writes for Prometheus, of the cluster as it is now."""

from __future__ import annotations

from pathlib import Path

import click

from slurm_mig.commands.controller import assembled
from slurm_mig.commands.options import CONFIG_OPTION


@click.command()
@CONFIG_OPTION
def metrics(config_path: Path) -> None:
    """Print the metrics in Prometheus' text format: gauges as of now, counters from the cycles.

    A cycle writes the same to monitoring.metrics_file. Changes nothing.
    """
    from slurm_mig.monitor import metrics as text

    assembly = assembled(config_path)
    with assembly.nodes:
        now = assembly.reconciler().look()
    click.echo(text(now, assembly.monitor.counters), nl=False)
