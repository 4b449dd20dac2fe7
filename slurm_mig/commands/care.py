"""`slurm-mig enrol`, `leave`, `rewrite` and `restore-config`: what changes the site's files."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from slurm_mig.commands.controller import assembled
from slurm_mig.commands.options import CONFIG_OPTION
from slurm_mig.errors import BusyError, SlurmMigError, UsageError
from slurm_mig.printing import say

if TYPE_CHECKING:
    from slurm_mig.adapters.slurmfiles import Backup, FileEdit
    from slurm_mig.assembly import Assembly
    from slurm_mig.core.records import ManagedNode

NODES = click.argument("nodes", nargs=-1, required=True)
WAIT = click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="Seconds to wait for the node's gpu jobs to end.",
)
DRY_RUN = click.option(
    "--dry-run",
    is_flag=True,
    help="Show what would be written, as a unified diff; change nothing.",
)


def _names(nodes: tuple[str, ...]) -> list[str]:
    from slurm_mig.adapters.nodesets import expand

    return [name for word in nodes for name in sorted(expand(word))]


def _remember(assembly: Assembly, did: str, nodes: Sequence[str], what: str = "") -> None:
    """A line in the history."""
    from slurm_mig.adapters.system import RealClock, who_asks
    from slurm_mig.core.records import Event

    event = Event(RealClock().now(), did, what or ", ".join(nodes), who_asks(), "", tuple(nodes))
    assembly.store.history.append(event)


def _show(assembly: Assembly, edits: Sequence[FileEdit], concerned: Sequence[str]) -> None:
    """The diff of this host's files, and what is not in it."""
    text = assembly.files.here.site().diff(edits)
    say(text or "No file would change.\n", nl=False)
    others = assembly.settings.slurm
    if others.nodes_have_own and concerned:
        say(f"Files of their own change likewise on: {', '.join(concerned)}")
    if others.controllers:
        say(f"Likewise on every controller: {', '.join(others.controllers)}")


@click.command()
@CONFIG_OPTION
@NODES
@WAIT
@DRY_RUN
def enrol(config_path: Path, nodes: tuple[str, ...], wait_s: float, *, dry_run: bool) -> None:
    """Take NODES into slurm-mig's care: constant gpu count, slots, fillers and guard.

    The node must have no gpu job (or end them within --wait); Slurm is reconfigured once.
    """
    from slurm_mig.enrolment import Timing

    assembly, names = assembled(config_path), _names(nodes)
    with assembly.store.lock(), assembly.nodes, closing(assembly.files):
        managed, enrolment = assembly.store.managed(), assembly.enrolment()
        if dry_run:
            new = enrolment.would_be(names, managed, assembly.build)
            _show(assembly, assembly.files.here.planned([*managed.values(), *new]), names)
            return
        new = enrolment.enrol(names, managed, assembly.build, Timing(wait_s))
        _remember(assembly, "enrolled", names)
    for node in new:
        say(f"{node.name} enrolled: {len(node.slots)} slots, types {' '.join(node.possible)}")


@click.command()
@CONFIG_OPTION
@NODES
@WAIT
@DRY_RUN
def leave(config_path: Path, nodes: tuple[str, ...], wait_s: float, *, dry_run: bool) -> None:
    """Give NODES back: the site's own lines return, the MIG instances stay as they are."""
    from slurm_mig.enrolment import Timing

    assembly, names = assembled(config_path), _names(nodes)
    with assembly.store.lock(), assembly.nodes, closing(assembly.files):
        managed, enrolment = assembly.store.managed(), assembly.enrolment()
        if dry_run:
            rest = enrolment.would_stay(names, managed)
            _show(assembly, assembly.files.here.planned(rest), names)
            return
        enrolment.leave(names, managed, Timing(wait_s))
        _remember(assembly, "given back", names)
    say(f"{', '.join(names)}: back on the site's own lines")


@click.command()
@CONFIG_OPTION
@DRY_RUN
def rewrite(config_path: Path, *, dry_run: bool) -> None:
    """Write nodes.conf, gres.conf and submit.lua again from the records, over any hand edit."""
    assembly = assembled(config_path)
    with assembly.store.lock(), assembly.nodes, closing(assembly.files):
        managed = list(assembly.store.managed().values())
        if dry_run:
            _show(assembly, assembly.files.here.planned(managed), [n.name for n in managed])
            return
        assembly.files.switch(managed, [node.name for node in managed])
        _remember(assembly, "written again", [], "our files")
    say(f"{assembly.files.here.directory}: written for {len(managed)} nodes")


@click.command("restore-config")
@CONFIG_OPTION
@click.argument("backup", required=False)
@DRY_RUN
@click.option("--write-only", is_flag=True, help="Write; have no daemon read it.")
def restore_config(
    config_path: Path, backup: str | None, *, dry_run: bool, write_only: bool
) -> None:
    """List the backups of slurm.conf, gres.conf and what they include, or bring BACKUP back.

    The site's own text of that time returns; the nodes that are enrolled now stay enrolled. Slurm
    is reconfigured, and what slurmctld shows is checked: if it is not as the files say, they are
    put back.
    """
    assembly = assembled(config_path)
    files = assembly.files.here
    found = {copy.name: copy for copy in files.list_backups()}
    if backup is None:
        _list(list(found.values()))
        return
    if backup not in found:
        raise UsageError(
            f"there is no backup {backup!r}; nothing was changed",
            hint="`slurm-mig restore-config` lists them.",
        )
    with assembly.store.lock(), closing(assembly.files):
        managed = assembly.store.managed()
        _bring_back(assembly, found[backup], list(managed.values()), dry_run=dry_run,
                    write_only=write_only)  # fmt: skip


def _list(found: Sequence[Backup]) -> None:
    for copy in found:
        when = copy.time.astimezone().isoformat(sep=" ", timespec="seconds")
        say(f"{copy.name}  {copy.of} as it was until {when}")
    if not found:
        say("no backup: slurm-mig has not changed the site's files here")


def _bring_back(
    assembly: Assembly,
    backup: Backup,
    managed: Sequence[ManagedNode],
    *,
    dry_run: bool,
    write_only: bool,
) -> None:
    from slurm_mig.adapters.system import RealClock
    from slurm_mig.restoreconfig import bring_back, considered

    for node in managed:
        transaction = assembly.store.transaction(node.name)
        if transaction is not None and transaction.is_open:
            raise BusyError(f"{node.name} is in transition; nothing was changed")
    files = assembly.files.here
    back = considered(files, backup, managed)
    if dry_run or not back.edits:
        _show(assembly, back.edits, [])
        return
    if write_only:
        files.site().write(back.edits, files.backups)
        say(f"{backup.of}: written. No daemon has read it: `scontrol reconfigure` "
                   "has them do so.")  # fmt: skip
    elif back.harmed:
        raise SlurmMigError(
            f"{', '.join(back.harmed)}: slurmctld would end the gpu jobs there, as their Gres "
            "would be another or they would be gone; nothing was changed",
            hint="When no gpu job runs there: --write-only, then `scontrol reconfigure`.",
        )
    else:
        bring_back(files, assembly.cluster, RealClock(), back, managed)
        say(f"{backup.of}: brought back; slurmctld shows every node as the files say")
    _remember(assembly, "brought back", [], backup.name)
