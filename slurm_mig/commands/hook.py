"""`slurm-mig hook …`: Slurm's hooks on a GPU node, in Python, and the check after a job.

scripts/prolog, scripts/epilog and scripts/task_prolog do the ordinary way without this; `prolog` is
what they come to in doubt, `check` what a path unit runs when an epilog has noted a job.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import click

from slurm_mig import config, hooks
from slurm_mig.commands.options import CONFIG_OPTION
from slurm_mig.core.model import Gpu
from slurm_mig.errors import Exit

if TYPE_CHECKING:
    from slurm_mig.adapters.gpus import NvmlGpus


@click.group()
def hook() -> None:
    """Slurm's hooks on a GPU node; called by slurmd and by systemd."""


class _Driver:
    """NVML, started at the first look and kept until `rest`."""

    def __init__(self, caps_dir: str) -> None:
        self._caps_dir = caps_dir
        self._gpus: NvmlGpus | None = None

    def look(self) -> tuple[Gpu, ...]:
        from slurm_mig.adapters.gpus import NvmlGpus

        self._gpus = self._gpus or NvmlGpus(self._caps_dir)
        return self._gpus.inventory()

    def rest(self) -> None:
        if self._gpus is not None:
            self._gpus.close()
            self._gpus = None


def _node(config_path: Path) -> tuple[hooks.Node, _Driver]:
    settings = config.load_node(config_path)
    name = os.environ.get("SLURMD_NODENAME") or socket.gethostname().partition(".")[0]
    driver = _Driver(settings.caps_dir)

    def fence(why: str) -> None:
        hooks.drain(name, why)

    return hooks.Node(Path(settings.run_dir), driver.look, fence, settings.leftover), driver


@hook.command()
@CONFIG_OPTION
def prolog(config_path: Path) -> None:
    """Slurm's Prolog: fail, and drain the node, when the job's slots are not there and free."""
    node, _ = _node(config_path)
    node.prolog(os.environ)


@hook.command()
@CONFIG_OPTION
def epilog(config_path: Path) -> None:
    """Slurm's Epilog: the job's slots are to be looked at before they are used again."""
    node, _ = _node(config_path)
    node.epilog(os.environ)


@hook.command("task-prolog")
@CONFIG_OPTION
def task_prolog(config_path: Path) -> None:
    """Slurm's TaskProlog: print the MIG UUIDs of the task's own devices."""
    node, _ = _node(config_path)
    known = node.known
    for line in hooks.task_prolog(os.environ, known) if known else []:
        click.echo(line)


@hook.command()
@CONFIG_OPTION
@click.option("--linger", "linger_s", type=click.FloatRange(min=0), default=0.0, show_default=True,
              help="Stay until no job has ended for SECONDS.")  # fmt: skip
@click.pass_context
def check(ctx: click.Context, config_path: Path, linger_s: float) -> None:
    """Look at the slots of jobs that have ended; end or report what they left there."""
    node, driver = _node(config_path)
    found = node.check()
    for line in found:
        click.echo(line)
    if linger_s:
        node.watch(linger_s, click.echo, driver.rest)
    ctx.exit(Exit.ATTENTION if found else Exit.OK)
