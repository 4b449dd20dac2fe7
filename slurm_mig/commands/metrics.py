"""`slurm-mig metrics`: what a cycle writes for Prometheus, of the cluster as it is now."""

from __future__ import annotations

from pathlib import Path

import click

from slurm_mig import config
from slurm_mig.commands.options import CONFIG_OPTION


@click.command()
@CONFIG_OPTION
def metrics(config_path: Path) -> None:
    """Print the metrics in Prometheus' text format: gauges as of now, counters from the cycles.

    A cycle writes the same to monitoring.metrics_file. Changes nothing.
    """
    from slurm_mig.assembly import Assembly
    from slurm_mig.core.monitoring import Ended
    from slurm_mig.core.records import CycleReport
    from slurm_mig.monitor import metrics as text

    assembly = Assembly.of(config.load(config_path))
    with assembly.nodes:
        reconciler = assembly.reconciler()
        seen = reconciler.observe()
        plan = reconciler.plan(seen)
    report = assembly.store.report() or CycleReport(0.0, "")
    cycle: Ended = reconciler.afterwards(seen, plan, report)
    click.echo(text(cycle, assembly.monitor.counters), nl=False)
