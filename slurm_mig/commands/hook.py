"""`slurm-mig hook …`: Slurm's hooks on a GPU node, in Python, and the check after a job.

scripts/prolog, scripts/epilog and scripts/task_prolog do the ordinary way without this; `prolog` is
what they come to in doubt, `check` what a path unit runs when an epilog has noted a job.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

import click

from slurm_mig import config, hooks
from slurm_mig.core.model import Gpu
from slurm_mig.errors import Exit

CONFIG_OPTION = click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    envvar="SLURM_MIG_CONFIG",
    default=Path(config.DEFAULT_PATH),
    show_default=True,
    help="Configuration file.",
)


@click.group()
def hook() -> None:
    """Slurm's hooks on a GPU node; called by slurmd and by systemd."""


def _node(config_path: Path) -> hooks.Node:
    settings = config.load_node(config_path)
    name = os.environ.get("SLURMD_NODENAME") or socket.gethostname().partition(".")[0]

    def look() -> tuple[Gpu, ...]:
        from slurm_mig.adapters.gpus import NvmlGpus

        gpus = NvmlGpus(settings.caps_dir)
        try:
            return gpus.inventory()
        finally:
            gpus.close()

    def fence(why: str) -> None:
        hooks.drain(name, why)

    return hooks.Node(Path(settings.run_dir), look, fence, settings.leftover)


@hook.command()
@CONFIG_OPTION
def prolog(config_path: Path) -> None:
    """Slurm's Prolog: fail, and drain the node, when the job's slots are not there and free."""
    _node(config_path).prolog(os.environ)


@hook.command()
@CONFIG_OPTION
def epilog(config_path: Path) -> None:
    """Slurm's Epilog: the job's slots are to be looked at before they are used again."""
    _node(config_path).epilog(os.environ)


@hook.command("task-prolog")
@CONFIG_OPTION
def task_prolog(config_path: Path) -> None:
    """Slurm's TaskProlog: print the MIG UUIDs of the task's own devices."""
    known = _node(config_path).known
    for line in hooks.task_prolog(os.environ, known) if known else []:
        click.echo(line)


@hook.command()
@CONFIG_OPTION
@click.pass_context
def check(ctx: click.Context, config_path: Path) -> None:
    """Look at the slots of jobs that have ended; end or report what they left there."""
    found = _node(config_path).check()
    for line in found:
        click.echo(line)
    ctx.exit(Exit.ATTENTION if found else Exit.OK)
