"""One cycle: observe, demand, plan, review, execute, one sentence.

Called by `slurm-mig reconcile` (a systemd timer) and, without acting, by `plan` and `status`.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from slurm_mig.core import (
    conditions,
    demand,
    drift,
    monitoring,
    ownership,
    pauses,
    policy,
    publish,
    purpose,
    slots,
    submit,
)
from slurm_mig.core.changes import Plan
from slurm_mig.core.fences import orphaned
from slurm_mig.core.model import Gpu, JobRequest, NodeCondition, NodeView, Patience, SlurmNode
from slurm_mig.core.question import Question
from slurm_mig.core.records import CycleReport, ManagedNode, NodeFacts, Phase, Transaction
from slurm_mig.core.silence import Silences
from slurm_mig.errors import SlurmMigError, UsageError
from slurm_mig.executor import Executor, Outcome
from slurm_mig.mending import Mending
from slurm_mig.ports import Clock, Cluster, Files, Nodes, Store

log = logging.getLogger(__name__)

LOOKED_AT_S = 1.0
"""How long a cycle waits for Slurm's scheduler to say why new jobs wait."""


@dataclass(frozen=True)
class Observation:
    """Everything that one cycle sees."""

    views: tuple[NodeView, ...]
    requests: tuple[JobRequest, ...]
    transactions: Mapping[str, Transaction]


class Reconciler:
    """The cycle over the ports."""

    def __init__(
        self,
        cluster: Cluster,
        nodes: Nodes,
        files: Files,
        store: Store,
        clock: Clock,
        executor: Executor,
        rules: policy.Policy,
        faults: Callable[[Collection[str]], Mapping[str, str]] = lambda _: {},
        ended: Callable[[monitoring.Ended], None] = lambda _: None,
        silences: Silences | None = None,
    ) -> None:
        """`faults` says what of the site's configuration slurm-mig cannot live with, by node;
        `ended` is told of each cycle that has come to its end; `silences` are the nodes' own."""
        self._faults = faults
        self._silences = silences or Silences()
        self._ended = ended
        self._cluster = cluster
        self._nodes = nodes
        self._files = files
        self._store = store
        self._clock = clock
        self._executor = executor
        self._rules = rules

    def cycle(self) -> CycleReport:
        """Recover what was interrupted, then do what the queue asks for. Call under the lock."""
        began = self._clock.now()
        outcomes = self._recover()
        paused = self._paused()
        if not self._all_paused(paused):
            self._check_files()
        seen = self.observe()
        mending = Mending(self._store, self._executor, self._files, self._rules, began)
        if mended := mending.mend(seen.views, paused):
            outcomes += mended
            seen = self.observe()
        looked = self._clock.now()
        plan = purpose.signed(self.plan(seen), seen.requests, uuid.uuid4().hex[:8])
        planned = self._clock.now()
        managed = self._store.managed()
        outcomes += self._executor.reshape_all([(managed[c.node], c) for c in plan.changes])
        now = self._clock.now()
        unserved = {r.job_id: r.reason for r in plan.refusals} | _failures(outcomes, plan)
        report = CycleReport(
            time=now,
            sentence="; ".join([_sentence(outcomes, plan, paused), *mending.said]),
            refusals=unserved,
            unserved_since={j: self._unserved_since().get(j, now) for j in unserved},
            free=submit.free_by_partition(seen.views, {o.node for o in outcomes}),
            drift=mending.seen,
            mended=mending.times,
            seconds=now - began,
            plan_seconds=planned - looked,
            silent=dict(self._silences.known),
        )
        before = self._store.report()
        self._store.save_report(report)
        log.info("%s", report.sentence)
        self._ended(self.afterwards(seen, plan, report, before))
        return report

    def look(self) -> monitoring.Ended:
        """The cluster as it is now, for monitoring: as if a cycle had ended that did nothing."""
        seen = self.observe()
        plan = self.plan(seen)
        last = self._store.report() or CycleReport(0.0, "")
        now = self._clock.now()
        refusals = {r.job_id: r.reason for r in plan.refusals}
        since = {job: last.unserved_since.get(job, now) for job in refusals}
        return self.afterwards(
            seen, plan, replace(last, refusals=refusals, unserved_since=since), last
        )

    def afterwards(
        self, seen: Observation, plan: Plan, report: CycleReport, before: CycleReport | None = None
    ) -> monitoring.Ended:
        """What monitoring is told: the nodes as they are now, after what was done."""
        managed = self._store.managed()
        open_ones = {n: t for n in managed if (t := self._store.transaction(n)) and t.is_open}
        views = tuple(
            monitoring.afterwards(view, managed[view.name], open_ones.get(view.name))
            for view in seen.views
            if view.name in managed
        )
        return monitoring.Ended(views, seen.requests, plan, open_ones, report, before)

    def observe(self) -> Observation:
        """Look at slurmctld and at every managed node; changes nothing."""
        managed = self._store.managed()
        shown = self._cluster.nodes() if managed else {}
        names = [n for n in managed if n in shown and not conditions.away(shown[n])]
        facts = self._nodes.observe(names)
        transactions = {n: t for n in managed if (t := self._store.transaction(n))}
        faults = self._faults(list(managed)) if managed else {}
        ours = self._rules.reservations
        views = tuple(
            _view(
                node,
                shown.get(name),
                facts.get(name),
                transactions.get(name),
                faults.get(name, ""),
                ours,
            )
            for name, node in managed.items()
        )
        return Observation(views, tuple(self._pending()), transactions)

    def _paused(self) -> dict[str, str]:
        """Nodes in which an administrator wants nothing begun, and the words for it."""
        return pauses.paused(self._store.pauses(), self._store.managed(), self._rules.groups)

    def _all_paused(self, paused: Collection[str]) -> bool:
        """True if nothing at all is to be begun: then our files, too, are left as they are."""
        managed = self._store.managed()
        return bool(managed) and len(paused) == len(managed)

    def _pending(self) -> list[JobRequest]:
        """The queue, once Slurm has looked at every job, for a moment at most."""
        deadline = self._clock.elapsed() + LOOKED_AT_S
        while True:
            requests = self._cluster.pending()
            unseen = any(r.reason == demand.NOT_LOOKED_AT for r in requests)
            if not unseen or self._clock.elapsed() > deadline:
                return requests
            self._clock.sleep(LOOKED_AT_S / 10)

    def plan(self, seen: Observation) -> Plan:
        """What the cycle would do with what it sees, after policy."""
        question = self.question(seen)
        rules = replace(self._rules, paused=self._paused())
        wanted = question.answer()
        waiting, managed = demand.waiting(question.requests), self._store.managed()
        return policy.review(wanted, waiting, managed, rules, question.now, self._unserved_since())

    def question(self, seen: Observation) -> Question:
        """What the planner is asked in this cycle."""
        now, since, managed = self._clock.now(), self._unserved_since(), self._store.managed()
        rules = replace(self._rules, paused=self._paused())
        requests = [
            self._patient(r, seen, _unserved_s(since, r.job_id, now)) for r in seen.requests
        ]
        baselines = rules.baselines(managed, seen.views)
        return Question(
            seen.views,
            tuple(requests),
            baselines.layouts,
            rules.rules(managed, now, _week_s(now)),
            now,
            tuple(baselines.notes),
        )

    def _patient(self, request: JobRequest, seen: Observation, unserved_s: float) -> JobRequest:
        """With what may be done for it; one that a fence waits for already gets no other place."""
        fenced = {j for t in seen.transactions.values() if t.is_open and t.waits
                  for j in t.change.serves}  # fmt: skip
        if request.job_id in fenced:
            return replace(request, patience=Patience.NONE, unserved_s=-1.0)
        patience = self._rules.patience(unserved_s)
        return replace(request, patience=patience, unserved_s=unserved_s)

    def _unserved_since(self) -> Mapping[int, float]:
        report = self._store.report()
        return report.unserved_since if report else {}

    def _recover(self) -> list[Outcome]:
        outcomes = []
        for name in self._store.managed():
            transaction = self._store.transaction(name)
            if transaction and transaction.is_open:
                outcomes.append(self._go_on(transaction))
        return outcomes

    def release(self, name: str) -> Outcome:
        """A person has done what a node was left fenced for: look at everything again, finish what
        was begun, and lift our own drain. Call under the lock.

        Raises SlurmMigError when there is nothing of ours to lift; the outcome says what still
        disagrees when the node stays as it is.
        """
        managed = self._store.managed()
        if name not in managed:
            raise UsageError(f"{name} is not enrolled; nothing was changed")
        self._check_files()
        self._silences.heard(name)
        transaction = self._store.transaction(name)
        if transaction and transaction.waits:
            return self._executor.give_up(transaction, "released by hand")
        if transaction and transaction.is_open:
            return self._executor.release(transaction)
        shown = self._cluster.node(name)
        if orphaned(shown):
            return self._executor.repair(managed[name], f"released by hand: {shown.reason}")
        if "DRAIN" in shown.states:
            raise SlurmMigError(
                f"{name} was drained by somebody else ({shown.reason}): slurm-mig lifts only its "
                "own drains; nothing was changed",
                hint=f"scontrol update NodeName={name} State=RESUME",
            )
        raise SlurmMigError(f"{name} is not held by slurm-mig; nothing was changed")

    def _go_on(self, transaction: Transaction) -> Outcome:
        if transaction.needs:
            return self._executor.leave_alone(transaction)
        if transaction.waits and (paused := self._paused().get(transaction.node)):
            return self._executor.give_up(transaction, paused)
        if transaction.waits:
            pending = {r.job_id for r in self._cluster.pending()}
            if not pending.intersection(transaction.change.serves):
                jobs = ", ".join(map(str, transaction.change.serves))
                return self._executor.give_up(transaction, f"job {jobs} no longer waits")
        return self._executor.recover(transaction)

    def _check_files(self) -> None:
        """Raises DriftError before anything is changed when our files were edited by hand.

        An earlier state of ours, brought back from a backup, is replaced by the present one.
        """
        managed = self._store.managed()
        also = []
        for name, node in managed.items():
            transaction = self._store.transaction(name)
            pending = transaction is not None and transaction.is_open and transaction.slots
            also.append(replace(node, slots=transaction.slots) if transaction and pending else node)
        stale = self._files.check(list(managed.values()), also)
        done = "written again" if self._rules.repair else "left so (repair: report)"
        for place in stale:
            log.warning("%s held an earlier state, or lost our part: %s", place, done)
        if stale and self._rules.repair:
            self._files.restore(list(managed.values()))


def _unserved_s(since: Mapping[int, float], job: int, now: float) -> float:
    """How long a job has waited unserved; 0 for one that is new, or the clock was set back."""
    return max(0.0, now - since.get(job, now))


def _week_s(now: float) -> float:
    """Seconds since Monday 00:00 on this host's clock."""
    here = datetime.fromtimestamp(now).astimezone()
    midnight = here.replace(hour=0, minute=0, second=0, microsecond=0)
    return here.weekday() * 86400 + (here - midnight).total_seconds()


def _disagreement(managed: ManagedNode, shown: SlurmNode) -> str:
    """What slurmctld says that is not what was last published, or a fence of ours without a
    transaction; empty when all is as it should be."""
    if orphaned(shown):
        return f"drained without a transaction: {shown.reason}"
    for device in managed.slots:
        if owner := ownership.owner_of(managed.outside, device.gpu, device.placement):
            return f"{device.type} of GPU {device.gpu} is published and is {owner}'s"
    wanted = slots.tally(managed.slots)
    if list(shown.gres.items()) != list(wanted.items()):
        return f"slurmctld shows Gres {_short(shown.gres)}, published was {_short(wanted)}"
    return "its registration was refused" if "INVALID_REG" in shown.states else ""


def _view(
    managed: ManagedNode,
    shown: SlurmNode | None,
    facts: NodeFacts | SlurmMigError | None,
    transaction: Transaction | None,
    fault: str,
    ours: Collection[str],
) -> NodeView:
    """A node as all sources together show it, and whether it may be touched."""
    if shown is None:
        shown = SlurmNode(managed.name, frozenset({"UNKNOWN"}), "", {}, 0, 0, 0, 0, frozenset())
    found = facts.gpus if isinstance(facts, NodeFacts) else ()
    gpus = ownership.stamped(found, managed.outside)
    condition, note = _condition(managed, shown, facts, transaction, ours)
    if fault and condition in (NodeCondition.USABLE, NodeCondition.BROKEN):
        condition, note = NodeCondition.UNSUPPORTED, fault
    if not shown.partitions:
        shown = replace(shown, partitions=frozenset(managed.partitions))
    return NodeView(
        shown,
        tuple(_with_profiles(gpu, managed) for gpu in gpus if not gpu.owner),
        managed.slots,
        condition,
        note,
        managed.possible,
        managed.whole_types,
        managed.switchable,
        managed.withheld,
        tuple(gpu for gpu in gpus if gpu.owner),
        managed.slotted,
    )


def _with_profiles(gpu: Gpu, managed: ManagedNode) -> Gpu:
    """A GPU whose driver does not tell its profiles while MIG is off (R535 and older)."""
    known = managed.profiles.get(gpu.index, ())
    return gpu if gpu.profiles or not known else replace(gpu, profiles=known)


def _condition(
    managed: ManagedNode,
    shown: SlurmNode,
    facts: NodeFacts | SlurmMigError | None,
    transaction: Transaction | None,
    ours: Collection[str],
) -> tuple[NodeCondition, str]:
    if state := conditions.away(shown):
        return NodeCondition.AWAY, state
    if transaction is not None and transaction.is_open and "DRAIN" in shown.states:
        note = transaction.needs or transaction.note
        return NodeCondition.OURS, note or f"in transition: {shown.reason}"
    if "DRAIN" in shown.states and not orphaned(shown):
        return NodeCondition.ADMIN, f"drained by an administrator: {shown.reason}"
    if reservation := conditions.reserved(shown, ours):
        return NodeCondition.RESERVED, reservation
    if not isinstance(facts, NodeFacts):
        return NodeCondition.AWAY, str(facts or "the node was not asked")
    if edited := _edited(facts):
        return NodeCondition.AWAY, edited
    if differs := drift.found(managed, shown, facts.gpus):
        return NodeCondition.DRIFTED, differs.note
    if job := conditions.frozen(shown, managed.slots):
        return NodeCondition.FROZEN, job
    disagreement = _disagreement(managed, shown) or _stale(managed, facts)
    if disagreement:
        return NodeCondition.BROKEN, disagreement
    return NodeCondition.USABLE, ""


def _edited(facts: NodeFacts) -> str:
    """A copy on the node itself that a person has edited: nothing is written over it."""
    names = ", ".join(name for name, found in facts.copies.items() if found == "edited")
    return f"its own {names} was edited by hand: `slurm-mig rewrite` writes it again" * bool(names)


def _stale(managed: ManagedNode, facts: NodeFacts) -> str:
    """A copy on the node itself that is not what was last published."""
    wanted = publish.own_copies(managed)
    return "; ".join(
        f"its own {name} is {found if ' ' in found or found == 'missing' else 'an earlier one'}"
        for name, found in facts.copies.items()
        if found != wanted.get(name)
    )


def _short(gres: Mapping[str, int]) -> str:
    return ",".join(f"{t}:{n}" for t, n in gres.items()) or "none"


def _failures(outcomes: list[Outcome], plan: Plan) -> dict[int, str]:
    """Jobs whose reshape was planned and did not happen."""
    failed = {o.node: o.note for o in outcomes if o.phase is not Phase.RELEASED}
    return {job: failed[c.node] for c in plan.changes if c.node in failed for job in c.serves}


def _sentence(outcomes: list[Outcome], plan: Plan, paused: Mapping[str, str]) -> str:
    """What the cycle did and why, in one line."""
    done = "; ".join(o.sentence for o in outcomes)
    if paused and not done and not plan.refusals:
        return f"nothing done; {'; '.join(dict.fromkeys(paused.values()))}"
    served = sorted({job for c in plan.changes for job in c.serves})
    if served:
        done += f" for job {', '.join(map(str, served))}"
    if plan.refusals:
        first = plan.refusals[0]
        more = f" (and {len(plan.refusals) - 1} more)" if len(plan.refusals) > 1 else ""
        waits = f"{first.wants or first.job_id} waits: {first.reason}{more}"
        return f"{done}; {waits}" if done else f"nothing to do; {waits}"
    return done or "nothing to do: no waiting job needs another layout"
