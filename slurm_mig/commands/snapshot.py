"""`slurm-mig snapshot`, and plans for recorded or made-up clusters and queues."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from slurm_mig import config
from slurm_mig.commands.controller import assembled
from slurm_mig.commands.options import CONFIG_OPTION
from slurm_mig.core import snapshot
from slurm_mig.core.changes import Plan
from slurm_mig.core.model import NodeView
from slurm_mig.errors import ConfigError


@click.command("snapshot")
@CONFIG_OPTION
@click.option("--nodes", "nodes_path", type=click.Path(path_type=Path), required=True,
              help="Where to write the managed nodes.")  # fmt: skip
@click.option("--jobs", "jobs_path", type=click.Path(path_type=Path), required=True,
              help="Where to write the pending jobs.")  # fmt: skip
@click.option("--anonymous", is_flag=True, help="Without any name, UUID or reason.")
def record(config_path: Path, nodes_path: Path, jobs_path: Path, *, anonymous: bool) -> None:
    """Record the managed nodes and the queue, so that the same plan can be made elsewhere:
    `slurm-mig plan --nodes FILE --jobs FILE`. Changes nothing else."""
    from slurm_mig.adapters.atomic import write_atomic
    from slurm_mig.core.recordedrules import recorded

    assembly = assembled(config_path)
    reconciler = assembly.reconciler()
    with assembly.nodes:
        asked = reconciler.question(reconciler.observe())
    baselines = {
        name: {gpu: tuple(sorted(layout)) for gpu, layout in layouts.items()}
        for name, layouts in asked.baselines.items()
    }
    nodes = snapshot.Nodes(asked.now, asked.views, baselines, recorded(asked.rules))
    jobs = snapshot.Jobs(asked.requests)
    if anonymous:
        nodes, jobs = snapshot.anonymous(nodes, jobs)
    for path, value in ((nodes_path, nodes), (jobs_path, jobs)):
        write_atomic(path, json.dumps(snapshot.plain(value), indent=1) + "\n")
    click.echo(f"{len(nodes.nodes)} nodes in {nodes_path}, {len(jobs.jobs)} jobs in {jobs_path}")


def hypothetical(
    config_path: Path | None, nodes_path: Path, jobs_path: Path
) -> tuple[Plan, tuple[NodeView, ...]]:
    """The plan for recorded nodes and jobs, by the rules recorded with them, those of a
    configuration instead, or the defaults.

    Raises ConfigError for a file that cannot be read or does not hold what it should.
    """
    from slurm_mig.core.planning.rules import Rules
    from slurm_mig.core.question import Question
    from slurm_mig.core.recordedrules import rules_of

    nodes = snapshot.nodes_of(_read(nodes_path), str(nodes_path))
    jobs = snapshot.jobs_of(_read(jobs_path), str(jobs_path))
    rules = rules_of(nodes.rules) if nodes.rules else Rules()
    if config_path is not None:
        from slurm_mig.siterules import planning_rules

        rules = planning_rules(config.load(config_path))
    baselines = {
        name: {gpu: frozenset(layout) for gpu, layout in layouts.items()}
        for name, layouts in nodes.baselines.items()
    }
    return Question(nodes.nodes, jobs.jobs, baselines, rules, nodes.time).answer(), nodes.nodes


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
