"""What is asked of other hosts: `slurm-mig node serve` on each GPU node, `slurm-mig files serve` on
the other controllers' hosts.

Answers of a node are decoded strictly and looked at before anything is done with them: a node that
has been taken over can only make its own reshape fail.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from slurm_mig.adapters.sessions import Sessions
from slurm_mig.core import answers
from slurm_mig.core.changes import NodeChange
from slurm_mig.core.codec import decode, encode
from slurm_mig.core.model import Slots
from slurm_mig.core.ownership import Outside
from slurm_mig.core.records import ManagedNode, NodeFacts
from slurm_mig.core.silence import Silences
from slurm_mig.errors import SilentError, SlurmMigError


class RemoteNodes(Sessions):
    """The GPU nodes: `slurm-mig node serve`. `silences` has those that `observe` leaves alone."""

    silences = Silences()

    def observe(self, names: Sequence[str]) -> dict[str, NodeFacts | SlurmMigError]:
        """Facts of all nodes, asked at the same time; a node that fails gives its error, and one
        that is left alone the reason for it."""
        found: dict[str, NodeFacts | SlurmMigError] = {
            name: error for name in names if (error := self.silences.left_alone(name))
        }
        for name, answer in self.ask([n for n in names if n not in found], "observe").items():
            found[name] = _facts(name, answer)
            if isinstance(answer, SilentError):
                self.silences.noted(name, answer)
            else:
                self.silences.heard(name)
        return found

    def call(self, name: str, verb: str, data: Any) -> Any:
        """As of every session; who keeps a reshape waiting is left alone by the next cycles."""
        try:
            return super().call(name, verb, data)
        except SilentError as error:
            self.silences.noted(name, error)
            raise

    def reshape(self, name: str, change: NodeChange) -> NodeFacts:
        facts = _facts(name, self.call(name, "reshape", encode(change)))
        if isinstance(facts, SlurmMigError):
            raise facts
        return facts

    def own(self, name: str, outside: Sequence[Outside]) -> None:
        self.call(name, "own", encode(list(outside)))

    def prepare(self, name: str, slots: Slots) -> None:
        self.call(name, "prepare", encode(slots))

    def publish(self, name: str, slots: Slots) -> None:
        self.call(name, "publish", encode(slots))

    def preregister(self, name: str, slots: Slots) -> None:
        self.call(name, "preregister", encode(slots))

    def follow(self, name: str, slurmd_pid: int) -> None:
        self.call(name, "follow", slurmd_pid)

    def announce(self, name: str) -> None:
        self.call(name, "announce", None)

    def gpus(self, name: str, request: Any) -> Any:
        """A verb about the node's GPUs, encoded, and its encoded answer."""
        return self.call(name, "gpus", request)

    def write_files(self, name: str, node: ManagedNode) -> None:
        self.call(name, "write_files", encode(node))

    def commit_files(self, name: str, node: ManagedNode) -> None:
        self.call(name, "commit_files", encode(node))

    def leave_files(self, name: str) -> None:
        self.call(name, "leave_files", None)

    def gres_lines(self, name: str) -> list[dict[str, str]]:
        """Attributes of the gpu lines in the node's own gres.conf."""
        lines = decode(list[dict[str, str]], self.call(name, "gres_lines", None), name)
        return answers.gres_lines(lines, name)


class RemoteControllers(Sessions):
    """The other slurmctlds' hosts: `slurm-mig files serve`."""

    def __init__(self, hosts: Sequence[str], command: Sequence[str], timeout_s: float) -> None:
        super().__init__(command, timeout_s)
        self.hosts = tuple(hosts)

    def check(
        self, host: str, nodes: Sequence[ManagedNode], also: Sequence[ManagedNode]
    ) -> list[str]:
        """Stale files there. Raises DriftError as ManagedFiles.check does."""
        both = [encode(list(nodes)), encode(list(also))]
        return decode(list[str], self.call(host, "check", both), host)

    def commit(self, host: str, nodes: Sequence[ManagedNode]) -> None:
        self.call(host, "commit", encode(list(nodes)))


def _facts(name: str, answer: Any) -> NodeFacts | SlurmMigError:
    if isinstance(answer, SlurmMigError):
        return answer
    try:
        return answers.believed(decode(NodeFacts, answer, name), name)
    except SlurmMigError as error:
        return error
