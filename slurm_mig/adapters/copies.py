"""Every copy of the files that slurm-mig publishes, wherever it is: the executor's Files port.

| `slurm.config` | copies |
|---|---|
| `shared` | one |
| `per-host` | this controller's, every other controller's, each managed node's own part |
| `configless` | the controllers'; with `publish: node` each managed node's own part too |

A node's own part is its NodeName line and its gres.conf lines, and nothing of other nodes. Another
controller that does not answer is left out with a warning, not waited for: what a stale copy there
can cost is a refused registration after a takeover, and the first cycle that reaches it again
writes it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Sequence

from slurm_mig.adapters.managedfiles import ManagedFiles
from slurm_mig.adapters.remote import RemoteControllers, RemoteNodes
from slurm_mig.core import publish
from slurm_mig.core.records import ManagedNode
from slurm_mig.errors import DriftError, SlurmMigError, UnreachableError

log = logging.getLogger(__name__)


class Copies:
    """`nodes` is None where managed nodes have no files of their own.

    No node's lines are dropped but those of a node that leaves: slurmctld and slurmd would end its
    jobs. So what writes raises DriftError, before anything is written, where the records of nodes
    that our files have were lost.
    """

    def __init__(
        self,
        here: ManagedFiles,
        controllers: RemoteControllers,
        nodes: RemoteNodes | None,
        left: Callable[[], Iterable[str]] = tuple,
    ) -> None:
        """`left`: the nodes that were given back. A controller that was away then may have them."""
        self.here = here
        self._left = left
        self._controllers = controllers
        self._nodes = nodes
        self._silent: set[str] = set()
        """Controllers that did not answer: asked again by the next command, not in every step."""

    def check(self, nodes: Sequence[ManagedNode], also: Sequence[ManagedNode] = ()) -> list[str]:
        """Stale files, as `path` or `host:path`; see ManagedFiles.check. Raises DriftError, too,
        when ours have nodes of which there is no record: the state directory, or a part of it, was
        lost.

        The nodes' own copies are not asked here: their facts have them (`NodeFacts.copies`).
        """
        self._refuse_lost(node.name for node in nodes)
        stale = self.here.check(nodes, also)
        for host in self._answering():
            try:
                stale += [f"{host}:{path}" for path in self._controllers.check(host, nodes, also)]
            except UnreachableError as error:
                self._left_out(host, error)
        return stale

    def write(self, nodes: Sequence[ManagedNode], changed: str) -> None:
        """Every copy, after one node's slots have changed. Raises DriftError when the node's own
        copy was edited by hand, and UnreachableError when it cannot be written for another reason:
        the node must not be released then."""
        self._refuse_lost(node.name for node in nodes)
        if self._nodes is not None:
            own = next(node for node in nodes if node.name == changed)
            try:
                self._nodes.write_files(changed, own)
            except (UnreachableError, DriftError):
                raise
            except SlurmMigError as error:
                raise UnreachableError(
                    f"its own copy of our files was not written: {error}", hint=error.hint
                ) from error
        self.here.write(nodes)
        self._commit_elsewhere(nodes)

    def restore(self, nodes: Sequence[ManagedNode]) -> None:
        """All copies on controllers, with our lines in the site's files."""
        self._refuse_lost(node.name for node in nodes)
        self.here.commit(nodes)
        self._commit_elsewhere(nodes)

    def switch(self, nodes: Sequence[ManagedNode], names: Collection[str]) -> None:
        """`restore`, and the own files of the nodes `names`, which come into our care or leave:
        written over any edit."""
        self._refuse_lost([*(node.name for node in nodes), *names])
        self.here.commit(nodes)
        self._commit_elsewhere(nodes)
        if self._nodes is None:
            return
        ours = {node.name: node for node in nodes}
        for name in names:
            if name in ours:
                self._nodes.commit_files(name, ours[name])
            else:
                self._nodes.leave_files(name)

    def close(self) -> None:
        """End the sessions on other controllers' hosts."""
        self._controllers.close()

    def _refuse_lost(self, names: Iterable[str]) -> None:
        if lost := self.without_record(names):
            raise publish.lost_records(lost)

    def without_record(self, names: Iterable[str]) -> list[str]:
        """Nodes that our files have, that are not among these, and were not given back."""
        return self.here.without_record([*names, *self._left()])

    def _answering(self) -> list[str]:
        return [host for host in self._controllers.hosts if host not in self._silent]

    def _commit_elsewhere(self, nodes: Sequence[ManagedNode]) -> None:
        for host in self._answering():
            try:
                self._controllers.commit(host, nodes)
            except SlurmMigError as error:
                self._left_out(host, error)

    def _left_out(self, host: str, error: SlurmMigError) -> None:
        self._silent.add(host)
        log.warning("%s has an old copy of our files until a cycle reaches it: %s", host, error)
