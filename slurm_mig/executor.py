"""Reshape one node while its jobs run: fence, reshape, publish, release.

Called by the reconciler, under the lock. Every change is journalled before it is made and looked
at afterwards. An executor that dies is followed by another that calls `recover` with the journal's
transaction: it goes through the same steps from what it sees.

Never: resumes a node that was not drained by us, destroys an instance that Slurm or NVML says is
used, or releases a node whose views differ.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from slurm_mig.core.changes import NodeChange
from slurm_mig.core.fences import ours
from slurm_mig.core.policy import ago
from slurm_mig.core.records import REASON, ManagedNode, Phase, Transaction
from slurm_mig.core.transitions import Situation, Step, steps
from slurm_mig.errors import (
    ArrangementError,
    BusyError,
    DriftError,
    GoneError,
    GpuError,
    InvariantError,
    LeftAloneError,
    LeftOverError,
    SlurmMigError,
    UnreachableError,
)
from slurm_mig.noderun import Limits, NodeRun, Ports
from slurm_mig.ports import Clock, Cluster, Files, Nodes, Store

log = logging.getLogger(__name__)

TRIES = 3
"""How many cycles at least try to finish before a person is asked for."""

FOR_A_PERSON = (DriftError, LeftOverError, InvariantError)
"""What another try cannot mend."""

NEEDS_LIMIT = 300
"""Characters of a node's reason that say what is needed."""


@dataclass(frozen=True)
class Outcome:
    """What became of one node's change."""

    node: str
    phase: Phase
    seconds: float
    note: str = ""
    done: str = "reshaped"

    @property
    def sentence(self) -> str:
        if self.phase is Phase.RELEASED:
            return f"{self.node} {self.done} in {self.seconds:.2f} s"
        return f"{self.node} {self.phase.value}: {self.note}"


class Executor:
    """Carries out planned changes. `alive` is called between steps (tests stop it there)."""

    def __init__(
        self,
        cluster: Cluster,
        nodes: Nodes,
        files: Files,
        store: Store,
        clock: Clock,
        limits: Limits = Limits(),  # noqa: B008 frozen
        alive: Callable[[Step], None] = lambda _: None,
        *,
        by_reconfigure: bool = False,
    ) -> None:
        self._at = Ports(cluster, nodes, files, store, clock, limits, by_reconfigure)
        self._alive = alive

    def reshape(self, node: ManagedNode, change: NodeChange) -> Outcome:
        """Carry out a planned change, or leave the node as it was and say why."""
        return self._still_open(node) or self._run(self._begin(node, change))

    def reshape_all(self, work: Sequence[tuple[ManagedNode, NodeChange]]) -> list[Outcome]:
        """`reshape` of several nodes. Where a reconfigure publishes, they share one."""
        if not self._at.by_reconfigure:
            return [self.reshape(node, change) for node, change in work]
        ended = {node.name: self._still_open(node) for node, _ in work}
        runs = [
            NodeRun(self._at, self._begin(node, change), Situation())
            for node, change in work
            if ended[node.name] is None
        ]
        ended |= {run.name: self._advance(run, Step.REGISTER) for run in runs}
        ready = [run for run in runs if ended[run.name] is None]
        if ready:
            failure = self._reconfigure(ready)
            for run in ready:
                ended[run.name] = self._hold(run, failure) if failure else self._advance(run)
        return [outcome for outcome in ended.values() if outcome is not None]

    def _reconfigure(self, runs: Sequence[NodeRun]) -> UnreachableError | None:
        """One reconfigure for all of them; returns why it failed, if it did."""
        try:
            self._at.cluster.reconfigure()
        except UnreachableError as error:
            return error
        for run in runs:
            run.reconfigured = True
        return None

    def _still_open(self, node: ManagedNode) -> Outcome | None:
        """Refuses a second change where one is not finished: its fence would be taken for the new
        one's, and its journal lost. The next cycle goes on with the first."""
        journal = self._at.store.transaction(node.name)
        if journal is None or not journal.is_open:
            return None
        why = f"transaction {journal.id} is not finished: the next cycle goes on with it"
        return Outcome(node.name, Phase.ABANDONED, 0.0, why)

    def _begin(self, node: ManagedNode, change: NodeChange) -> Transaction:
        ident, limits = uuid.uuid4().hex[:8], self._at.limits
        fence_s = limits.fence_waits.get(node.name, limits.fence_wait_s)
        return Transaction(
            id=ident,
            node=node.name,
            phase=Phase.FENCED,
            reason=f"{REASON}: reshaping ({ident})",
            started=self._at.clock.now(),
            change=change,
            before=node.slots,
            until=self._at.clock.now() + fence_s if change.behind_fence else 0.0,
        )

    def repair(self, node: ManagedNode, why: str) -> Outcome:
        """Publish what is there again, where slurmctld and the record no longer agree."""
        log.warning("%s: publishing again: %s", node.name, why)
        return self.reshape(
            node,
            NodeChange(node.name, (), node.slots, (), node.withheld, why=f"published again: {why}"),
        )

    def give_up(self, transaction: Transaction, why: str) -> Outcome:
        """Take down a fence that waits for running jobs."""
        run = NodeRun(self._at, transaction, Situation(fenced=True))
        try:
            run.hold()
        except (BusyError, GoneError) as error:
            return self._finish(transaction, Phase.ABANDONED, str(error))
        except SlurmMigError as error:
            # Not seen, so not known to be gone: on a paused node nobody else would take it down.
            return self._hold(run, error)
        return self._abandon(run, why)

    def recover(self, transaction: Transaction) -> Outcome:
        """Finish what an earlier process left open, from what is seen now.

        The fence may not be there: it was lost with slurmctld, never made, or an administrator
        has lifted it or put his own drain in its place.
        """
        level = logging.INFO if transaction.waits else logging.WARNING
        log.log(level, "%s: resuming transaction %s (%s)", transaction.node, transaction.id,
                transaction.phase.value)  # fmt: skip
        try:
            node = self._at.cluster.node(transaction.node)
        except GoneError as error:
            return self._finish(transaction, Phase.ABANDONED, str(error))
        if "DRAIN" in node.states and not transaction.touched and not ours(node, transaction):
            return self._finish(
                transaction, Phase.ABANDONED, f"drained by somebody else: {node.reason}"
            )
        if "DRAIN" not in node.states:
            managed = self._at.store.managed().get(transaction.node)
            confirmed = managed is not None and managed.slots == transaction.slots
            if transaction.phase is Phase.PUBLISHED and confirmed:
                return self._was_released(transaction)
            return self._run(transaction)
        return self._run(transaction, Situation(fenced=True))

    def _was_released(self, transaction: Transaction) -> Outcome:
        """All was done but for the record, and jobs may have started on the new slots since."""
        run = NodeRun(self._at, transaction, Situation())
        try:
            run.see_it_respond()
        except UnreachableError as error:
            return self._hold(run, error)
        return self._finish(transaction, Phase.RELEASED)

    def _run(self, transaction: Transaction, seen: Situation = Situation()) -> Outcome:  # noqa: B008
        outcome = self._advance(NodeRun(self._at, transaction, seen))
        assert outcome is not None
        return outcome

    def _advance(self, run: NodeRun, until: Step = Step.DONE) -> Outcome | None:
        """The steps before `until`: None when that is the next one, else what became of the run."""
        try:
            remaining = steps(run.seen)
            step = next(remaining)
            while step is not Step.DONE:
                if step is until:
                    return None
                self._alive(step)
                run.do(step)
                step = remaining.send(run.seen)
        except GoneError as error:
            return self._finish(run.transaction, Phase.ABANDONED, str(error))
        except SlurmMigError as error:
            return self._stopped(run, error)
        note = f"left drained by somebody else: {run.theirs}" if run.theirs else ""
        return self._finish(run.transaction, Phase.RELEASED, note)

    def _stopped(self, run: NodeRun, error: SlurmMigError) -> Outcome:
        """A step failed. What was not touched is let go; what was is published as it is now, where
        that can be known; else the views differ and the fence stays."""
        if not run.fenced_once:
            return self._finish(run.transaction, Phase.ABANDONED, str(error))
        if not run.touched or isinstance(error, (BusyError, ArrangementError, GpuError)):
            return self._wait_fenced(run, str(error)) or self._abandon(run, str(error))
        return self._hold(run, error)

    def _wait_fenced(self, run: NodeRun, why: str) -> Outcome | None:
        """Leave the fence up for the next cycle, where the plan and the time allow it."""
        waiting = run.transaction
        # Before its beginning: the clock was set back, and nobody knows how long it has stood.
        if run.touched or not waiting.started <= self._at.clock.now() <= waiting.until:
            return None
        if not ours(self._at.cluster.watch(waiting.node), waiting):
            return None
        self._at.store.save_transaction(replace(waiting, note=why))
        seconds = self._at.clock.now() - waiting.started
        return Outcome(waiting.node, Phase.FENCED, seconds, why)

    def _abandon(self, run: NodeRun, why: str) -> Outcome:
        """The change cannot be made now. Publish what is there, and let the node go."""
        log.warning("%s: not reshaped: %s", run.transaction.node, why)
        if not run.fenced_once:
            return self._finish(run.transaction, Phase.ABANDONED, why)
        try:
            if run.touched:
                run.look_again()
                run.keep_withheld()
                run.seen = Situation(fenced=True, reshaped=True)
                remaining = steps(run.seen)
                step = next(remaining)
                while step is not Step.DONE:
                    run.do(step)
                    step = remaining.send(run.seen)
            else:
                run.release()
        except SlurmMigError as error:
            if run.resumed and not run.touched:
                # Let go as it was; that it does not respond yet is the next ping's business.
                return self._finish(run.transaction, Phase.ABANDONED, f"{why}; then {error}")
            return self._hold(run, error, f"{why}; then {error}")
        return self._finish(run.transaction, Phase.ABANDONED, why)

    def _hold(self, run: NodeRun, error: SlurmMigError, why: str = "") -> Outcome:
        """The fence stays and the journal stays open. The next cycles try again; a person is needed
        when that cannot help, or has not for a while, and the node's reason says so then."""
        why = why or str(error)
        log.error("%s: left drained: %s", run.transaction.node, why)
        now, so_far = self._at.clock.now(), run.transaction
        since = so_far.failing_since or now
        failures = so_far.failures + (not isinstance(error, LeftAloneError))
        tried = replace(so_far, note=why, failures=failures, failing_since=since)
        lasting = tried.failures >= TRIES and ago(since, now) >= self._at.limits.quarantine_after_s
        if so_far.needs or lasting or isinstance(error, FOR_A_PERSON):
            tried = replace(tried, needs=_needs(tried.node, error))
            run.say(tried.needs)
        self._at.store.save_transaction(tried)
        phase = Phase.QUARANTINED if tried.needs else Phase.HELD
        return Outcome(tried.node, phase, now - tried.started, why)

    def release(self, transaction: Transaction) -> Outcome:
        """A person says that it can go on: the steps that remain, from what is seen. Where that
        fails the node stays as it is, and its reason says what is wrong now."""
        return self.recover(transaction)

    def leave_alone(self, transaction: Transaction) -> Outcome:
        """A node that waits for a person: only his resume, or its end, is taken up."""
        try:
            node = self._at.cluster.watch(transaction.node)
        except GoneError as error:
            return self._finish(transaction, Phase.ABANDONED, str(error))
        if "DRAIN" not in node.states:
            return self.recover(transaction)
        NodeRun(self._at, transaction, Situation(fenced=True)).say(transaction.needs)
        seconds = self._at.clock.now() - transaction.started
        return Outcome(transaction.node, Phase.QUARANTINED, seconds, transaction.needs)

    def _finish(self, transaction: Transaction, phase: Phase, note: str = "") -> Outcome:
        now = self._at.clock.now()
        self._at.store.save_transaction(
            replace(transaction, phase=phase, finished=now, note=note, needs="")
        )
        did = "reshaped" if transaction.change.gpus else "published"
        outcome = Outcome(transaction.node, phase, now - transaction.started, note, did)
        log.info("%s", outcome.sentence)
        return outcome


def _needs(node: str, error: SlurmMigError) -> str:
    """One line for the node's reason: what is wrong, what to do, and how to go on."""
    what = " ".join(f"{error.args[0]}. {error.hint}".split())
    if len(what) > NEEDS_LIMIT:
        what = what[: NEEDS_LIMIT - 1] + "…"
    return f"needs a person: {what} Then: slurm-mig release {node}"
