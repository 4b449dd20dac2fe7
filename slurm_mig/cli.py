"""The command line: the only module that prints, and the one that turns errors into exit codes."""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slurm_mig import __version__, config
from slurm_mig.commands import gpus
from slurm_mig.commands.care import enrol, leave, restore_config, rewrite
from slurm_mig.commands.catalog import catalog
from slurm_mig.commands.controller import assembled, roots
from slurm_mig.commands.files import files
from slurm_mig.commands.history import history
from slurm_mig.commands.hook import hook
from slurm_mig.commands.install import install, uninstall
from slurm_mig.commands.metrics import metrics
from slurm_mig.commands.options import CONFIG_OPTION, JSON_OPTION
from slurm_mig.commands.pause import pause, resume
from slurm_mig.commands.release import release
from slurm_mig.commands.report import report
from slurm_mig.commands.snapshot import record
from slurm_mig.commands.undo import undo
from slurm_mig.errors import Exit, SlurmMigError
from slurm_mig.printing import PlainFormatter, say

if TYPE_CHECKING:
    from slurm_mig.assembly import Assembly
    from slurm_mig.core.changes import Plan
    from slurm_mig.core.model import NodeView
    from slurm_mig.core.records import CycleReport


MISSING = """\
  This command is the controller's: `scripts/build-pyslurm VENV`, then `pip install '.[controller]'`
  in that environment. A GPU node's installation has hooks and commands about its own GPUs."""
"""A GPU node has no pyslurm, no solver and no ClusterShell, and needs none."""


SECTIONS = {
    "Look": ("status", "plan", "history", "report", "metrics", "catalog", "snapshot"),
    "Put in place": ("install", "uninstall", "enrol", "leave"),
    "Act": ("reconcile", "pause", "resume", "undo", "release", "rewrite", "restore-config"),
    "A node's GPUs": ("inventory", "check", "profiles", "apply", "assert", "mode", "export",
                      "gres"),
    "Called by the controller, Slurm or systemd": ("node", "files", "hook", "restore"),
}  # fmt: skip
"""The commands as `--help` lists them: in the order in which a newcomer needs them."""


class Commands(click.Group):
    """A group whose commands end with the exit code of the error that stopped them."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Each with its first sentence, whole."""
        for title, names in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(n, self.commands[n].get_short_help_str(200)) for n in names])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SlurmMigError as error:
            say(f"slurm-mig: {error}", err=True)
            ctx.exit(int(error.exit_code))
        except ImportError as error:
            if not error.name or error.name.startswith("slurm_mig"):
                raise
            say(f"slurm-mig: {error}; nothing was done\n{MISSING}", err=True)
            ctx.exit(int(Exit.REFUSED))


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "--version", prog_name="slurm-mig")
@click.option("-v", "--verbose", is_flag=True, help="Also log every decision.")
def main(verbose: bool) -> None:  # noqa: FBT001 - click passes it by name
    """Reshape NVIDIA MIG GPUs to what the Slurm queue asks for, while the node's jobs run.

    \b
    Exit codes: 0 done or nothing to do, 1 refused, 2 wrong usage, 3 a bad file,
    4 slurmctld, a node or the driver does not answer, 5 busy, 6 a node needs a person.

    `slurm-mig COMMAND --help` says more of each. Begin with `status` and `plan`: they change
    nothing.
    """
    # What we write is read by SlurmUser and by users; root's own mask may be 077.
    os.umask(0o022)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PlainFormatter("%(levelname)s %(message)s"))
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, handlers=[handler])


@main.command()
@CONFIG_OPTION
@click.option("--loop", "loop_s", type=click.FloatRange(min=0.1),
              help="Repeat, pausing SECONDS, or less when woken.")  # fmt: skip
@click.option("--woken", is_flag=True, help="Keep the minimum interval since the last cycle.")
@click.option("--dry-run", is_flag=True, help="Plan only; the same as `slurm-mig plan`.")
def reconcile(config_path: Path, loop_s: float | None, woken: bool, dry_run: bool) -> None:  # noqa: FBT001
    """Run one cycle: give the queue the MIG instances it waits for, where that is safe."""
    if dry_run:
        _print_plan(config_path, as_json=False)
        return
    from slurm_mig.commands import loop

    roots()
    if loop_s is None:
        sys.exit(Exit.ATTENTION if loop.once(config_path, woken=woken) else Exit.OK)
    loop.run(config_path, loop_s, woken=woken)


@main.command()
@click.option("--config", "config_path", type=click.Path(path_type=Path),
              envvar="SLURM_MIG_CONFIG", help="Configuration file.")  # fmt: skip
@JSON_OPTION
@click.option("--nodes", "nodes_path", type=click.Path(path_type=Path),
              help="Plan for the nodes in this file (see `slurm-mig snapshot`).")  # fmt: skip
@click.option("--jobs", "jobs_path", type=click.Path(path_type=Path),
              help="Plan for the jobs in this file.")  # fmt: skip
def plan(
    config_path: Path | None,
    as_json: bool,  # noqa: FBT001
    nodes_path: Path | None,
    jobs_path: Path | None,
) -> None:
    """Show what the next cycle would do, as a diff with reasons; change nothing.

    With --nodes and --jobs: what the planner would do for a recorded or made-up cluster and queue,
    on any machine; policy that needs a history (cool-down) is left out.
    """
    from slurm_mig.commands.snapshot import hypothetical

    if (nodes_path is None) != (jobs_path is None):
        raise click.UsageError("--nodes and --jobs go together")
    if nodes_path is not None and jobs_path is not None:
        _show_plan(*hypothetical(config_path, nodes_path, jobs_path), as_json=as_json)
        return
    _print_plan(config_path or Path(config.DEFAULT_PATH), as_json=as_json)


def _print_plan(config_path: Path, *, as_json: bool) -> None:
    assembly = assembled(config_path)
    with assembly.nodes:
        reconciler = assembly.reconciler()
        seen = reconciler.observe()
        wanted = reconciler.plan(seen)
    _show_plan(wanted, seen.views, as_json=as_json)


def _show_plan(wanted: Plan, views: Sequence[NodeView], *, as_json: bool) -> None:
    from slurm_mig import render

    if as_json:
        click.echo(json.dumps(render.plan_json(wanted, views), indent=2))
    else:
        width = shutil.get_terminal_size((100, 24)).columns
        say(render.plan_text(wanted, views, width), nl=False)


@main.command()
@CONFIG_OPTION
@JSON_OPTION
def status(config_path: Path, as_json: bool) -> None:  # noqa: FBT001
    """Draw every managed GPU's instances, who has them, what waits and why."""
    from slurm_mig import render
    from slurm_mig.core.demand import why

    assembly = assembled(config_path)
    with assembly.nodes:
        reconciler = assembly.reconciler()
        seen = reconciler.observe()
        reasons = {r.job_id: r.reason for r in reconciler.plan(seen).refusals}
    report, pauses = assembly.store.report(), assembly.store.pauses()
    reasons = {**_said_last(report), **reasons}
    if trouble := assembly.store.trouble() or _lost(assembly):
        reasons = {r.job_id: trouble for r in seen.requests}
    waiting = [(r, why(r, reasons)) for r in seen.requests]
    transactions = [t for t in seen.transactions.values() if t.is_open]
    if as_json:
        shown = render.status_json(
            seen.views,
            waiting=waiting,
            transactions=transactions,
            report=report,
            pauses=pauses,
        )
        click.echo(json.dumps(shown, indent=2))
        return
    say(
        render.status_text(
            seen.views,
            waiting=waiting,
            transactions=transactions,
            report=report,
            pauses=pauses,
            width=shutil.get_terminal_size((100, 24)).columns,
        ),
        nl=False,
    )


def _lost(assembly: Assembly) -> str:
    """What the state directory should have and has not."""
    from slurm_mig.core import publish

    names = assembly.files.without_record(assembly.store.managed())
    return str(publish.lost_records(names)) if names else ""


def _said_last(report: CycleReport | None) -> dict[int, str]:
    """What the last cycle could not do for a job, should this one's plan look better."""
    said = report.refusals if report else {}
    return {job: f"the last cycle said: {reason}" for job, reason in said.items()}


@main.group()
def node() -> None:
    """What runs on a GPU node, as root; called by the controller."""


def _agent(config_path: Path, name: str | None) -> Any:
    from slurm_mig.adapters import trust
    from slurm_mig.adapters.system import require_root
    from slurm_mig.node import NodeAgent

    require_root("the node command")
    settings = config.load_node(config_path)
    trust.refuse_writable("the directory of the slot map", Path(settings.run_dir))
    trust.refuse_writable("the state directory", Path(settings.state_dir))
    return NodeAgent(settings, name or socket.gethostname().partition(".")[0])


NAME_OPTION = click.option("--name", help="The node's NodeName; by default its short host name.")


@node.command()
@CONFIG_OPTION
@NAME_OPTION
def serve(config_path: Path, name: str | None) -> None:
    """Answer JSON requests, one a line on stdin, until it ends."""
    from slurm_mig.adapters.requests import Code, Requests
    from slurm_mig.node import serve as answer

    code = Code([config_path])
    agent = _agent(config_path, name)
    gpus = agent.gpus
    answer(agent, Requests(0, gpus.close, gpus.open, code.changed), sys.stdout)


@node.command()
@CONFIG_OPTION
@NAME_OPTION
def observe(config_path: Path, name: str | None) -> None:
    """Print this node's GPUs and instances as JSON; change nothing."""
    from slurm_mig.core.codec import encode

    click.echo(json.dumps(encode(_agent(config_path, name).observe()), indent=2))


main.add_command(enrol)
main.add_command(leave)
main.add_command(rewrite)
main.add_command(restore_config)
main.add_command(files)
main.add_command(record)
main.add_command(catalog)
main.add_command(hook)
main.add_command(install)
main.add_command(uninstall)
main.add_command(pause)
main.add_command(resume)
main.add_command(history)
main.add_command(undo)
main.add_command(release)
main.add_command(metrics)
main.add_command(report)
for verb in gpus.VERBS:
    main.add_command(verb)


if __name__ == "__main__":
    main(prog_name="slurm-mig")
