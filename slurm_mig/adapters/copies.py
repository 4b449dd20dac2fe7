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
from collections.abc import Collection, Sequence

from slurm_mig.adapters.managedfiles import ManagedFiles
from slurm_mig.adapters.remote import RemoteControllers, RemoteNodes
from slurm_mig.core.records import ManagedNode
from slurm_mig.errors import SlurmMigError, UnreachableError

log = logging.getLogger(__name__)


class Copies:
    """`nodes` is None where managed nodes have no files of their own."""

    def __init__(
        self, here: ManagedFiles, controllers: RemoteControllers, nodes: RemoteNodes | None
    ) -> None:
        self.here = here
        self._controllers = controllers
        self._nodes = nodes
        self._silent: set[str] = set()
        """Controllers that did not answer: asked again by the next command, not in every step."""

    def check(self, nodes: Sequence[ManagedNode], also: Sequence[ManagedNode] = ()) -> list[str]:
        """Stale files, as `path` or `host:path`; see ManagedFiles.check.

        The nodes' own copies are not asked here: their facts have them (`NodeFacts.copies`).
        """
        stale = self.here.check(nodes, also)
        for host in self._answering():
            try:
                stale += [f"{host}:{path}" for path in self._controllers.check(host, nodes, also)]
            except UnreachableError as error:
                self._left_out(host, error)
        return stale

    def write(self, nodes: Sequence[ManagedNode], changed: str) -> None:
        """Every copy, after one node's slots have changed. Raises UnreachableError when the node's
        own copy cannot be written, for whatever reason: it must not be released then, and what is
        wrong with one node's files is no reason to stop at others."""
        if self._nodes is not None:
            own = next(node for node in nodes if node.name == changed)
            try:
                self._nodes.write_files(changed, own)
            except UnreachableError:
                raise
            except SlurmMigError as error:
                raise UnreachableError(
                    f"its own copy of our files was not written: {error}", hint=error.hint
                ) from error
        self.here.write(nodes)
        self._commit_elsewhere(nodes)

    def restore(self, nodes: Sequence[ManagedNode]) -> None:
        """All copies on controllers, with our lines in the site's files."""
        self.here.commit(nodes)
        self._commit_elsewhere(nodes)

    def switch(self, nodes: Sequence[ManagedNode], names: Collection[str]) -> None:
        """`restore`, and the own files of the nodes `names`, which come into our care or leave."""
        self.here.commit(nodes)
        self._commit_elsewhere(nodes)
        if self._nodes is None:
            return
        ours = {node.name: node for node in nodes}
        for name in names:
            if name in ours:
                self._nodes.write_files(name, ours[name])
            else:
                self._nodes.leave_files(name)

    def close(self) -> None:
        """End the sessions on other controllers' hosts."""
        self._controllers.close()

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
