"""Taking a node into our care, and giving it back.

The count and the type names of the node's gpus change here, once, so this needs a node without
gpu jobs and a reconfigure; afterwards the count never changes. Called by `slurm-mig enrol` and
`leave`, under the lock.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from slurm_mig.core import conditions, slots
from slurm_mig.core.fences import orphaned
from slurm_mig.core.model import SlurmNode, is_filler
from slurm_mig.core.records import REASON, ManagedNode, NodeFacts
from slurm_mig.errors import BusyError, SlurmMigError, UnreachableError, UsageError
from slurm_mig.ports import Clock, Cluster, Nodes

log = logging.getLogger(__name__)

POLL_S = 0.2
SLURMD_S = 5.0


@dataclass(frozen=True)
class Timing:
    """Waiting, in seconds. `wait_s` is how long to wait for the node's gpu jobs to end."""

    wait_s: float = 0.0
    settle_s: float = 60.0


class Enrolment:
    """Enrol and leave, over the ports. `commit` writes the site's and our files for a set of
    managed nodes, of which those named come or go; `remember` and `forget` keep the records."""

    def __init__(
        self,
        cluster: Cluster,
        nodes: Nodes,
        clock: Clock,
        commit: Callable[[Sequence[ManagedNode], Sequence[str]], None],
        remember: Callable[[ManagedNode], None],
        forget: Callable[[str], None],
    ) -> None:
        self._cluster = cluster
        self._nodes = nodes
        self._clock = clock
        self._commit = commit
        self._remember = remember
        self._forget = forget

    def enrol(
        self,
        names: Sequence[str],
        managed: Mapping[str, ManagedNode],
        build: Callable[[str, NodeFacts], ManagedNode],
        timing: Timing,
    ) -> list[ManagedNode]:
        """Take nodes into our care together, with one reconfigure. On failure they are as before.

        Raises BusyError when a node has gpu jobs after `wait_s`, UsageError for a wrong name.
        """
        new = self.would_be(names, managed, build)
        with_new = [*managed.values(), *new]
        self._switch(names, timing, with_new, list(managed.values()), new)
        for node in new:
            self._remember(node)
        return new

    def would_be(
        self,
        names: Sequence[str],
        managed: Mapping[str, ManagedNode],
        build: Callable[[str, NodeFacts], ManagedNode],
    ) -> list[ManagedNode]:
        """What the nodes would be in our care; changes nothing."""
        self._must_exist(names)
        for name in names:
            if name in managed:
                raise UsageError(f"{name} is already enrolled; nothing was changed")
        self._must_last(names)
        facts = self._facts(names)
        return [build(name, facts[name]) for name in names]

    def would_stay(
        self, names: Sequence[str], managed: Mapping[str, ManagedNode]
    ) -> list[ManagedNode]:
        """The nodes that stay in our care when these leave; changes nothing."""
        for name in names:
            if name not in managed:
                raise UsageError(f"{name} is not enrolled; nothing was changed")
        self._must_exist(names)
        return [node for name, node in managed.items() if name not in names]

    def leave(
        self, names: Sequence[str], managed: Mapping[str, ManagedNode], timing: Timing
    ) -> None:
        """Give nodes back to the site's own lines; their instances stay as they are."""
        rest = self.would_stay(names, managed)
        self._switch(names, timing, rest, list(managed.values()), [])
        for name in names:
            self._forget(name)
            if managed[name].outside:
                self._nodes.own(name, ())

    def _must_exist(self, names: Sequence[str]) -> None:
        shown = self._cluster.nodes()
        for name in names:
            if name not in shown:
                raise UsageError(
                    f"slurmctld knows no node {name}; nothing was changed",
                    hint=f"It knows: {', '.join(sorted(shown))}",
                )
            states = shown[name].states
            if states & (conditions.NOT_TOUCHED - conditions.MAINTENANCE):
                raise BusyError(f"{name} is {'+'.join(sorted(states))}; nothing was changed")

    def _must_last(self, names: Sequence[str]) -> None:
        """A cloud node begins anew at each power-up, without the record that makes its instances
        again: slurmd would look for device files that are not there, and end."""
        shown = self._cluster.nodes()
        for name in names:
            if "CLOUD" in shown[name].states:
                raise UsageError(
                    f"{name} is a CLOUD node; nothing was changed",
                    hint="Only a node whose disk outlives a boot can be enrolled: its state "
                    "directory has what its GPUs are to be.",
                )

    def _facts(self, names: Sequence[str]) -> dict[str, NodeFacts]:
        found = {}
        for name, facts in self._nodes.observe(names).items():
            if isinstance(facts, SlurmMigError):
                raise facts
            found[name] = facts if facts.slurmd_pid else self._with_slurmd(name)
        return found

    def _with_slurmd(self, name: str) -> NodeFacts:
        """The node's facts once its slurmd is seen there, which a reload hides for a moment. A node
        whose slurmd we never see could not be told of a reshape."""
        deadline = self._clock.elapsed() + SLURMD_S
        while self._clock.elapsed() < deadline:
            facts = self._nodes.observe([name])[name]
            if isinstance(facts, NodeFacts) and facts.slurmd_pid:
                return facts
            self._clock.sleep(POLL_S)
        raise UnreachableError(
            f"{name}: no slurmd is found there; nothing was changed",
            hint="Start it; `slurm-mig check` on the node says how it is looked for.",
        )

    def _switch(
        self,
        names: Sequence[str],
        timing: Timing,
        target: Sequence[ManagedNode],
        before: Sequence[ManagedNode],
        new: Sequence[ManagedNode],
    ) -> None:
        """Fence, wait for an empty node, write, reconfigure, verify, release; or undo."""
        fenced: list[str] = []
        written = told = False
        try:
            for name in names:
                self._fence(name)
                fenced.append(name)
            for name in names:
                self._wait_empty(name, timing.wait_s)
            for node in new:
                self._nodes.own(node.name, node.outside)
                self._nodes.prepare(node.name, node.slots)
            written = True
            self._commit(target, names)
            told = True
            self._apply(names, new, timing)
        except SlurmMigError:
            if not written or self._put_back(before, names, told=told):
                for name in fenced:
                    self._resume(name)
            raise
        for name in names:
            self._release(name, timing)

    def _put_back(self, before: Sequence[ManagedNode], names: Sequence[str], *, told: bool) -> bool:
        """Files and slurmctld as before; may the nodes be used again? Where the files cannot be
        written (a full disk, a file system that root may not write), they may as long as slurmctld
        has not been told of the new ones."""
        try:
            self._commit(before, names)
            self._cluster.reconfigure()
        except SlurmMigError as error:
            state = "left drained" if told else "used as before"
            log.error(
                "what was written could not be undone: %s; %s: %s", error, state, ", ".join(names)
            )
            return not told
        return True

    def _fence(self, name: str) -> None:
        node = self._cluster.node(name)
        # Our own drain may be left of an enrolment that was killed, or of a record that was lost.
        if "DRAIN" in node.states and not orphaned(node):
            raise BusyError(f"{name} is drained ({node.reason}); nothing was changed")
        self._cluster.drain(name, f"{REASON}: enrolment")

    def _wait_empty(self, name: str, wait_s: float) -> None:
        deadline = self._clock.elapsed() + wait_s
        while True:
            node = self._cluster.node(name)
            jobs = sorted(str(a.job_id) for a in node.allocations)
            if not jobs and not node.unsettled:
                return
            if self._clock.elapsed() > deadline:
                raise BusyError(
                    f"{name} has gpu jobs ({', '.join(jobs) or node.unsettled[0]}): its gpu count "
                    f"would change under them; nothing was changed",
                    hint="Wait for them, or give `--wait SECONDS`.",
                )
            self._clock.sleep(POLL_S)

    def _apply(self, names: Sequence[str], new: Sequence[ManagedNode], timing: Timing) -> None:
        """All daemons read the new lines; each node must then register as wanted."""
        wanted = {node.name: slots.tally(node.slots) for node in new}
        self._cluster.reconfigure()
        for name in names:
            self._wait_for(name, lambda n: _registered(n, wanted.get(n.name)), timing.settle_s)

    def _wait_for(self, name: str, ready: Callable[[SlurmNode], bool], deadline_s: float) -> None:
        deadline = self._clock.elapsed() + deadline_s
        while True:
            try:
                node = self._cluster.watch(name)
                if ready(node):
                    return
                seen = f"{'+'.join(sorted(node.states))}, Gres {dict(node.gres)}, {node.reason!r}"
            except UnreachableError as error:
                seen = str(error)
            if self._clock.elapsed() > deadline:
                raise UnreachableError(f"{name} did not register as wanted: {seen}")
            self._clock.sleep(POLL_S)

    def _resume(self, name: str) -> None:
        """Out of FAIL, so that the node needs no registration before it is used again."""
        self._cluster.loosen(name)
        self._cluster.resume(name)

    def _release(self, name: str, timing: Timing) -> None:
        self._resume(name)
        self._wait_for(name, lambda n: not n.states & {"NOT_RESPONDING", "DRAIN"}, timing.settle_s)
        log.info("%s: released", name)


def _registered(node: SlurmNode, wanted: Mapping[str, int] | None) -> bool:
    if node.states & {"INVALID_REG", "NOT_RESPONDING", "DOWN"}:
        return False
    if wanted is None:
        return not any(is_filler(t) for t in node.gres)
    return list(node.gres.items()) == list(wanted.items())
