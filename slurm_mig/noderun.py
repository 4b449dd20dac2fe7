"""One pass over the steps of one node's reshape, each with its effect looked at afterwards.

Made by the executor, which decides what becomes of a pass that fails. Never: touches a node that is
not fenced by us, destroys an instance that Slurm or NVML says is used, or resumes a drain that is
not ours.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from slurm_mig.core import arrangement, ownership, publish, slots
from slurm_mig.core.changes import NodeChange
from slurm_mig.core.fences import KEPT_AWAY, lost, orphaned, ours, refused
from slurm_mig.core.layouts import steps
from slurm_mig.core.model import Gpu, Slots, SlurmNode
from slurm_mig.core.records import ManagedNode, NodeFacts, Phase, Transaction
from slurm_mig.core.transitions import Situation, Step
from slurm_mig.errors import BusyError, GoneError, SlurmMigError, UnreachableError
from slurm_mig.ports import Clock, Cluster, Files, Nodes, Store

log = logging.getLogger(__name__)

POLL_S = 0.005
LONGEST_POLL_S = 0.2


def pause_s(waited_s: float) -> float:
    """How long to wait before looking again: short at first, as most waits are, then a tenth of
    what was waited, so that a node that does not come costs slurmctld little."""
    return min(max(POLL_S, waited_s / 10), LONGEST_POLL_S)


@dataclass(frozen=True)
class Limits:
    """How long the executor waits, in seconds."""

    settle_s: float = 10.0
    register_s: float = 30.0
    release_s: float = 30.0
    caps_dir: str = "/dev/nvidia-caps"
    fence_wait_s: float = 0.0
    """How long a fence may wait for running jobs, where the plan asks for one that does."""
    quarantine_after_s: float = 600.0
    """How long cycles try to finish what does not succeed before a person is asked for."""
    fence_waits: Mapping[str, float] = field(default_factory=dict)
    """By node, instead of `fence_wait_s`."""


@dataclass(frozen=True)
class Ports:
    """The outside of a run, and how long it waits there."""

    cluster: Cluster
    nodes: Nodes
    files: Files
    store: Store
    clock: Clock
    limits: Limits
    by_reconfigure: bool


class NodeRun:
    """One pass over the steps: `seen` grows as each step's effect has been looked at."""

    def __init__(self, at: Ports, transaction: Transaction, seen: Situation) -> None:
        self._at = at
        self.transaction = transaction
        self.seen = seen
        self.fenced_once = seen.fenced
        self.touched = transaction.touched
        self.fenced_at = 0.0
        """When this pass drained the node, by the clock that never jumps; 0: an earlier one did."""
        self.resumed = False
        """Has our drain been lifted by us?"""
        self.theirs = ""
        """The reason of an administrator's drain that has taken our fence's place."""
        self.reconfigured = False
        """Has slurmctld been asked to read its files again since ours were written?"""
        self._facts: NodeFacts | None = None
        self._node: SlurmNode | None = None
        self._record: ManagedNode | None = None
        self._marks: dict[str, float] = {}

    @property
    def name(self) -> str:
        return self.transaction.node

    def do(self, step: Step) -> None:
        work = {
            Step.FENCE: self.fence,
            Step.RESHAPE: self.reshape,
            Step.WRITE: self.write,
            Step.REGISTER: self.register,
            Step.RELEASE: self.release,
        }
        start = self._at.clock.elapsed()
        if step not in (Step.FENCE, Step.RELEASE):
            self.hold()
        work[step]()
        self._marks[step.value] = self._at.clock.elapsed() - start
        self.transaction = replace(self.transaction, seconds=dict(self._marks))

    def fence(self) -> None:
        """Drain with our reason, then read again until the node is settled."""
        self._at.store.save_transaction(self.transaction)
        # Looked at last: between this and the drain is one call, in which his would be overwritten.
        before = self._at.cluster.watch(self.name)
        if before.states & KEPT_AWAY and not orphaned(before):
            raise BusyError(f"{self.name} was drained by somebody else: {before.reason}")
        log.info("%s: fencing for %s", self.name, self.transaction.id)
        self.fenced_at = self._at.clock.elapsed()
        self._at.cluster.drain(self.name, self.transaction.reason)
        self.fenced_once = True
        self.seen = replace(self.seen, fenced=True)
        self._wait_settled()

    def hold(self) -> None:
        """See that the fence still stands; an administrator may have lifted or replaced it. (The
        release, which comes last, looks for itself.)

        Before anything was touched, the node is his. Afterwards the views must first agree again:
        under his drain, which then stays, or, when he resumed it, behind a fence made anew.
        """
        node = self._at.cluster.watch(self.name)
        if ours(node, self.transaction):
            return
        if not self.touched:
            raise BusyError(f"{self.name} was changed by somebody else: {lost(node)}")
        if not node.states & KEPT_AWAY:
            log.warning("%s was resumed by somebody else in the middle: fenced again", self.name)
            self._at.cluster.drain(self.name, self.transaction.reason)
            self.look_again()
        elif not self.theirs:
            log.warning("%s was drained by somebody else: %s", self.name, node.reason)
            self.theirs = node.reason or "no reason given"

    def _wait_settled(self) -> None:
        start = self._at.clock.elapsed()
        while True:
            node = self._at.cluster.node(self.name)
            if not (self.theirs or ours(node, self.transaction)):
                raise BusyError(f"{self.name} was changed by somebody else: {lost(node)}")
            facts = self._observe()
            # Allocated in the last instant before the fence: it is running for slurmctld, but its
            # launch may still be on its way to slurmd.
            starting = sorted(node.batch_jobs - facts.stepd_jobs)
            waiting = _unsettled(node, facts, starting)
            waited = self._at.clock.elapsed() - start
            late = waited > self._at.limits.settle_s
            if not waiting or (late and self._stranded(facts)):
                self._node, self._facts = node, facts
                return
            if late:
                if starting and facts.slurmd_pid:
                    # A slurmctld that was killed may have forgotten that a job has ended. It ends a
                    # job that slurmd does not know when slurmd registers: now, not in half an hour.
                    self._at.nodes.announce(self.name)
                raise BusyError(f"{self.name} did not settle: {', '.join(waiting)}")
            self._at.clock.sleep(pause_s(waited))

    def _stranded(self, facts: NodeFacts) -> bool:
        """Does slurmd wait for us? Its old files name devices that are gone, so it cannot start,
        and without it nothing on the node ends for slurmctld, which kills every job there when
        SlurmdTimeout has passed. What starts or ends keeps its devices where they are; nothing is
        destroyed any more."""
        return self.touched and self.seen.reshaped and not facts.slurmd_pid

    def look_again(self) -> None:
        """Forget what was seen of the node: the next step reads it again."""
        self._node = self._facts = None

    def _observe(self) -> NodeFacts:
        facts = self._at.nodes.observe([self.name])[self.name]
        if isinstance(facts, SlurmMigError):
            raise facts
        return facts

    def _current(self) -> tuple[SlurmNode, NodeFacts]:
        if self._node is None or self._facts is None:
            self._wait_settled()
        assert self._node is not None
        assert self._facts is not None
        return self._node, self._facts

    def reshape(self) -> None:
        """Destroy and create instances, when none that must go is used."""
        node, facts = self._current()
        blocking = self.transaction.change.blocking
        for allocation in node.allocations:
            for index in allocation.indexes:
                device = self._managed().slots[index]
                if device.home in blocking:
                    raise BusyError(
                        f"job {allocation.job_id} has {device.placement} of GPU {device.gpu}"
                    )
        for index in sorted(node.promised - node.allocated):
            device = self._managed().slots[index]
            if device.home in blocking:
                raise BusyError(
                    f"a coming reservation needs {device.placement} of GPU {device.gpu}"
                )
        self._refuse_foreign()
        self._arrange(node, arrangement.after(facts.gpus, self.transaction.change))
        self._journal(Phase.RESHAPED)
        self.touched = True
        log.info("%s: reshaping %s", self.name, _describe(self.transaction.change))
        self._facts = self._at.nodes.reshape(self.name, self.transaction.change)
        self.seen = replace(self.seen, reshaped=True)

    def _refuse_foreign(self) -> None:
        """No plan has what is not Slurm's; this is the last look."""
        outside = self._managed().outside
        for part in self.transaction.change.gpus:
            for placement in (None, *part.destroyed):
                if owner := ownership.owner_of(outside, part.gpu, placement):
                    raise BusyError(f"GPU {part.gpu} of {self.name} has {owner}'s in the way")

    def _arrange(self, node: SlurmNode, gpus: Sequence[Gpu]) -> Slots:
        """The slots for these GPUs with every busy device at its index."""
        managed, caps_dir = self._managed(), self._at.limits.caps_dir
        gpus = ownership.stamped(gpus, managed.outside)
        return arrangement.arranged(managed, node, gpus, self.transaction.change, caps_dir)

    def _managed(self) -> ManagedNode:
        """The node's record, read once: under the lock nobody else changes it."""
        if self._record is None:
            self._record = self._at.store.managed().get(self.name)
        if self._record is None:
            raise publish.lost_records([self.name])
        return self._record

    def write(self) -> None:
        """gres.conf and the node's line, both written before slurmd may read them.

        The device files come first: from here on anybody may restart slurmd, or reconfigure.
        """
        node, facts = self._current()
        new = self._arrange(node, facts.gpus)
        if self._managed().outside:
            self._at.nodes.own(self.name, self._managed().outside)
        self._at.nodes.prepare(self.name, new)
        self.transaction = replace(self.transaction, slots=new)
        self._journal(Phase.PUBLISHED)
        managed = self._at.store.managed()
        for name, other in managed.items():
            # What another node in transition is about to publish is in the files too.
            open_one = self._at.store.transaction(name)
            if open_one is not None and open_one.phase is Phase.PUBLISHED:
                managed[name] = replace(other, slots=open_one.slots)
        self._at.files.write(list(managed.values()), self.name)
        self.reconfigured = False
        self.seen = replace(self.seen, written=True)

    def register(self) -> None:
        """slurmctld gets the new Gres, slurmd reads its files again, and both must say the same.

        When a type vanishes while jobs use gpus of the node this takes two registrations
        (`slots.bridge_line`).
        """
        managed = self._published()
        if self._at.by_reconfigure or not managed.slotted:
            self._register_by_reconfigure(managed)
        else:
            self._register_by_node(managed)
        self._at.store.save_managed(managed)
        self._record = managed
        self.seen = replace(self.seen, registered=True)

    def _register_by_reconfigure(self, managed: ManagedNode) -> None:
        """slurmctld reads its files again and has every slurmd do the same. Its answer says little:
        the node's slurmd must be another one, and slurmctld must show the slots."""
        _, facts = self._current()
        if not self.reconfigured:
            self._at.cluster.reconfigure()
            self.reconfigured = True
        self._at.nodes.follow(self.name, facts.slurmd_pid)
        self._shows(managed)
        self._say_the_reason_again()

    def _shows(self, managed: ManagedNode) -> None:
        wanted = slots.tally(managed.slots)
        self._wait(
            lambda n: (
                "INVALID_REG" not in n.states and list(n.gres.items()) == list(wanted.items())
            ),
            "slurmctld to show the new Gres",
        )

    def _register_by_node(self, managed: ManagedNode) -> None:
        """Only this node's slurmd registers, once or twice."""
        node, _ = self._current()
        bridge = None
        if node.allocations:
            bridge = slots.bridge_line(node.gres, managed.slots, publish.all_types(managed))
        if bridge:
            self._at.cluster.set_gres(self.name, publish.with_others(managed, bridge))
            # slurmctld is about to write its own words over the reason: whose it is, is read now.
            self.hold()
            self._at.nodes.preregister(self.name, managed.slots)
            self._wait(
                lambda n: (
                    # It may be there from before: then the types tell that this one has come.
                    "INVALID_REG" in n.states and set(n.gres) == set(slots.tally(managed.slots))
                ),
                "the first registration",
            )
            self._say_the_reason_again()
        self._at.cluster.set_gres(self.name, publish.node_gres(managed))
        self._at.nodes.publish(self.name, managed.slots)
        self._shows(managed)

    def _published(self) -> ManagedNode:
        """The node's record once this transaction's slots are confirmed."""
        now, change, managed = self._at.clock.now(), self.transaction.change, self._managed()
        reshaped = {part.gpu: now for part in change.gpus if self.touched}
        offered = {d.key for d in self.transaction.slots}
        withheld = []
        for part in change.withheld:
            there = frozenset(p for p in part.placements if (part.gpu, p) not in offered)
            if there:
                withheld.append(replace(part, placements=there, since=part.since or now))
        return replace(
            managed,
            slots=self.transaction.slots,
            withheld=tuple(withheld),
            published=now,
            reshaped={**managed.reshaped, **reshaped},
        )

    def say(self, needs: str) -> None:
        """Put what a person must do into the node's reason, where the drain is ours."""
        node = self._at.cluster.watch(self.name)
        wanted = f"{self.transaction.reason}: {needs}"
        if ours(node, self.transaction) and not node.reason.startswith(wanted):
            self._at.cluster.drain(self.name, wanted)

    def keep_withheld(self) -> None:
        """The change is not made: what was withheld before it stays so."""
        change = replace(self.transaction.change, withheld=self._managed().withheld)
        self.transaction = replace(self.transaction, change=change)

    def _say_the_reason_again(self) -> None:
        """slurmctld put its own words in the reason's place: whose the drain is stays as it was."""
        node = self._at.cluster.watch(self.name)
        if refused(node):
            self._at.cluster.drain(self.name, self.theirs or self.transaction.reason)

    def _wait(self, ready: Callable[[SlurmNode], bool], what: str) -> SlurmNode:
        start = self._at.clock.elapsed()
        while True:
            try:
                node = self._at.cluster.watch(self.name)
                if ready(node):
                    return node
                shown = ",".join(f"{t}:{n}" for t, n in node.gres.items())
                seen = f"{'+'.join(sorted(node.states))}, Gres {shown}, reason {node.reason!r}"
            except GoneError:
                raise
            except UnreachableError as error:
                # slurmctld starts anew in a reconfigure, and another one may be taking over.
                seen = str(error)
            waited = self._at.clock.elapsed() - start
            if waited > self._at.limits.register_s:
                raise UnreachableError(
                    f"{self.name}: waited {self._at.limits.register_s:g} s for {what}; "
                    f"it shows {seen}"
                )
            self._at.clock.sleep(pause_s(waited))

    def release(self) -> None:
        """Resume, and see that slurmctld can reach the node.

        Out of FAIL, not out of DRAIN: out of DRAIN slurmctld would not count it as responding
        until it registers again, and a running job that asks for its first step meanwhile waits
        two minutes for it (docs/facts.md).
        """
        node = self._at.cluster.watch(self.name)
        if ours(node, self.transaction):
            node = self._loosened()
        if ours(node, self.transaction):
            self._at.cluster.resume(self.name)
            self.resumed = True
            self._marks["fenced"] = self._fenced_s()
        elif node.states & KEPT_AWAY:
            self.theirs = node.reason or "no reason given"
        if not self.theirs:
            self.see_it_respond()
        self.seen = replace(self.seen, released=True)

    def _loosened(self) -> SlurmNode:
        """The node with our fence as FAIL, or as an administrator's hand left it meanwhile.

        What he did between our look and `loosen` is FAIL as well: his drain, with his reason, is
        made a drain again; what he resumed, with no reason left, is resumed.
        """
        self._at.cluster.loosen(self.name)
        node = self._at.cluster.watch(self.name)
        if "FAIL" not in node.states:
            return node
        if node.reason:
            self._at.cluster.drain(self.name, node.reason)
        else:
            self._at.cluster.resume(self.name)
        return self._at.cluster.watch(self.name)

    def _fenced_s(self) -> float:
        """From the drain to now; of a fence that another process made, by the clock."""
        if self.fenced_at:
            return self._at.clock.elapsed() - self.fenced_at
        return max(0.0, self._at.clock.now() - self.transaction.started)

    def see_it_respond(self) -> None:
        """Wait until slurmctld counts the node as responding. It does, unless somebody resumed it
        out of DRAIN or slurmctld has just started: then slurmd registers at once."""
        if "NOT_RESPONDING" in self._at.cluster.watch(self.name).states:
            self._at.nodes.announce(self.name)
        self._wait(
            lambda n: not n.states & {"NOT_RESPONDING", "DRAIN", "INVALID_REG"},
            "the node to respond after its release",
        )

    def _journal(self, phase: Phase) -> None:
        self.transaction = replace(self.transaction, phase=phase)
        self._at.store.save_transaction(self.transaction)


def _unsettled(node: SlurmNode, facts: NodeFacts, starting: Sequence[int]) -> list[str]:
    """What is starting or ending on the node."""
    return [
        *node.unsettled,
        *(f"{hook} runs" for hook in facts.hooks),
        *(f"job {job} has no slurmstepd yet" for job in starting),
    ]


def _describe(change: NodeChange) -> str:
    parts = []
    for gpu in change.gpus:
        parts.append(f"GPU {gpu.gpu}: {' '.join(sign + what for sign, what in steps(gpu))}")
    return "; ".join(parts)
