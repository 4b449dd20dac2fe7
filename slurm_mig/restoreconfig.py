"""Bringing back an earlier text of the site's slurm.conf or gres.conf, and seeing it taken up.

What comes back is the site's own text. The nodes that are in our care now stay so, whatever they
were when the backup was made: otherwise slurmctld would read a Gres that is not there, and kill the
gpu jobs of the node. Called by `slurm-mig restore-config`, under the lock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from slurm_mig.adapters.managedfiles import ManagedFiles
from slurm_mig.adapters.slurmfiles import Backup, FileEdit, SlurmFiles
from slurm_mig.core import slots
from slurm_mig.core.model import SlurmNode
from slurm_mig.core.records import ManagedNode
from slurm_mig.errors import SlurmMigError, UnreachableError
from slurm_mig.ports import Clock, Cluster

SETTLE_S = 60.0
POLL_S = 0.2


@dataclass(frozen=True)
class Return:
    """A backup that is to come back: the edits, and what they mean for nodes not in our care."""

    edits: Sequence[FileEdit]
    nodes: Sequence[str]
    """Every node that slurmctld shows then."""
    harmed: Sequence[str]
    """Nodes of the site's own whose Gres would be another, or that would be gone: slurmctld ends
    their gpu jobs when it reads that."""


def considered(files: ManagedFiles, backup: Backup, managed: Sequence[ManagedNode]) -> Return:
    """What bringing the backup back would do. Raises UsageError or ConfigError where it cannot."""
    now = files.site()
    then, edits = files.bringing_back(backup, managed)
    ours = {node.name for node in managed}
    left = {name: _gres(then, name) for name in then.node_names() if name not in ours}
    harmed = [
        name for name in now.node_names() if name not in ours and left.get(name) != _gres(now, name)
    ]
    return Return(edits, [name for name in then.node_names() if not _hidden(then, name)], harmed)


def bring_back(
    files: ManagedFiles,
    cluster: Cluster,
    clock: Clock,
    back: Return,
    managed: Sequence[ManagedNode],
) -> None:
    """Write, have all daemons read it, and see that slurmctld shows what it should; or undo.

    Raises UnreachableError when it does not: the files are then as they were before, read again.
    """
    site = files.site()
    site.write(back.edits, files.backups)
    wanted = {node.name: slots.tally(node.slots) for node in managed}
    try:
        cluster.reconfigure()
        _wait(cluster, clock, lambda shown: _amiss(shown, back.nodes, wanted))
    except SlurmMigError as error:
        undone = [FileEdit(e.path, e.after, e.before) for e in back.edits]
        site.write(undone, files.backups)
        cluster.reconfigure()
        raise UnreachableError(
            f"slurmctld does not show what the files say: {error}; the files are as they were",
            hint="slurmctld's log says why; `--write-only` writes without a reconfigure.",
        ) from error


def _gres(site: SlurmFiles, name: str) -> str:
    return (site.node(name).get("Gres") or "").replace(" ", "")


def _hidden(site: SlurmFiles, name: str) -> bool:
    """slurmctld does not show a node that is defined for later."""
    return (site.node(name).get("State") or "").upper().startswith("FUTURE")


def _wait(cluster: Cluster, clock: Clock, amiss: Callable[[Mapping[str, SlurmNode]], str]) -> None:
    deadline = clock.now() + SETTLE_S
    while True:
        try:
            said = amiss(cluster.nodes())
        except UnreachableError as error:
            said = str(error.args[0])
        if not said:
            return
        if clock.now() > deadline:
            raise UnreachableError(said)
        clock.sleep(POLL_S)


def _amiss(
    shown: Mapping[str, SlurmNode],
    nodes: Sequence[str],
    wanted: Mapping[str, Mapping[str, int]],
) -> str:
    """What slurmctld does not show as it should; empty when all is well."""
    lost = [name for name in nodes if name not in shown]
    if lost:
        return f"it knows no node {lost[0]}"
    for name, gres in wanted.items():
        node = shown[name]
        if list(node.gres.items()) != list(gres.items()):
            return f"{name} has Gres {dict(node.gres)}, published was {dict(gres)}"
    refused = [name for name in nodes if "INVALID_REG" in shown[name].states]
    return f"{refused[0]}'s registration was refused" if refused else ""
