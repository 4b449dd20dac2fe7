"""Whole cycles over the world in memory: what one leaves open, the next ones go on with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from slurm_mig.core.changes import NodeChange
from slurm_mig.core.model import JobRequest, NodeCondition, Patience, Slots
from slurm_mig.core.planning.plan import plan
from slurm_mig.core.policy import Policy
from slurm_mig.core.records import CycleReport, NodeFacts, Phase, Transaction
from slurm_mig.errors import SlurmMigError, UnreachableError
from slurm_mig.executor import TRIES, Executor
from slurm_mig.noderun import Limits
from slurm_mig.reconciler import Reconciler
from tests.fakes.gpus import FakeGpus
from tests.fakes.world import NODE, FakeCluster, FakeFiles, FakeNodes, FakeStore, World, record
from tests.unit.builders import A100, at, gpu, job, node, ones
from tests.unit.test_withhold import after, only

BIG = job(1, {"7g.40gb": 1}, submit_time=1)
LIMITS = Limits(settle_s=0.1, register_s=0.1, release_s=0.1, fence_wait_s=1000)


class Waiting(FakeCluster):
    """Somebody waits for the whole GPU."""

    def pending(self) -> list[JobRequest]:
        return [BIG]


class Silent(FakeNodes):
    """A node whose slurmd takes nothing new, and that once does not answer a look either."""

    takes = True
    deaf_at = 0
    looks = 0

    def observe(self, names: Sequence[str]) -> dict[str, NodeFacts | SlurmMigError]:
        self.looks += 1
        if self.looks == self.deaf_at:
            return {name: UnreachableError("n1 does not answer") for name in names}
        return super().observe(names)

    def preregister(self, name: str, new: Slots) -> None:
        self._answer()
        super().preregister(name, new)

    def publish(self, name: str, new: Slots) -> None:
        self._answer()
        super().publish(name, new)

    def _answer(self) -> None:
        if not self.takes:
            raise UnreachableError("n1 does not answer")


class Site:
    """A GPU of 1g instances, a job on the first one, and cycles."""

    def __init__(self, policy: Policy) -> None:
        fake = FakeGpus(gpu(A100, 0, *ones()))
        self.world = World(fake, record(fake.inventory()), {7: frozenset({0})})
        self.nodes = Silent(self.world)
        self.policy = policy

    def cycle(self, seconds: float) -> CycleReport:
        """So much later, by a process of its own."""
        w, cluster = self.world, Waiting(self.world)
        w.clock.sleep(seconds)
        ports = (cluster, self.nodes, FakeFiles(w), FakeStore(w), w.clock)
        return Reconciler(*ports, Executor(*ports, LIMITS), self.policy).cycle()

    @property
    def journal(self) -> Transaction:
        assert self.world.transaction is not None
        return self.world.transaction

    @property
    def withheld(self) -> int:
        return sum(len(w.placements) for w in self.world.managed.withheld)


def test_a_fence_that_waits_outlasts_the_cycles_and_what_is_withheld_stays_withheld() -> None:
    site = Site(Policy(withhold_s=100, fence_wait_s=1000))
    site.cycle(0)
    assert site.withheld == 6
    site.cycle(150)
    fence = site.journal
    assert fence.waits
    for _ in range(3):
        site.cycle(10)
        now = site.journal
        assert (now.id, now.until, now.waits) == (fence.id, fence.until, True)
        assert site.world.drained
        assert site.withheld == 6
    site.world.jobs, site.world.devices = {}, {}
    site.cycle(10)
    assert site.world.gpus.gpu(0).layout == {at("7g.40gb", 0)}
    assert not site.world.drained
    assert not site.withheld


def half_done() -> Site:
    """The GPU is cut for the job, and slurmd does not take it."""
    site = Site(Policy(withhold_s=1000))
    site.cycle(0)
    site.world.jobs, site.world.devices = {}, {}
    site.nodes.takes = False
    site.cycle(10)
    assert site.journal.touched
    assert site.journal.failures == 1
    assert site.withheld == 6
    return site


def test_a_reshape_that_cannot_be_published_stays_the_same_one_until_a_person_is_asked() -> None:
    site = half_done()
    begun = now = site.journal
    for tries in range(2, TRIES + 1):
        site.cycle(400)
        now = site.journal
        assert (now.id, now.failures, now.change.gpus) == (begun.id, tries, begun.change.gpus)
    assert now.needs
    assert site.world.drained


@pytest.mark.parametrize("look", range(1, 6))
def test_a_node_half_done_is_not_let_go_when_a_look_at_it_fails(look: int) -> None:
    """Whichever look it is: the world itself asserts that nothing is offered that is not there."""
    site = half_done()
    site.nodes.looks, site.nodes.deaf_at = 0, look
    site.cycle(400)
    assert site.world.drained
    site.nodes.takes, site.nodes.deaf_at = True, 0
    site.cycle(400)
    assert not site.world.drained
    assert not site.withheld
    assert site.world.managed.slots == site.world.slurmd


@pytest.mark.parametrize("by_reconfigure", [False, True])
def test_nothing_is_begun_where_something_is_not_finished(*, by_reconfigure: bool) -> None:
    site = half_done()
    world, journal = site.world, site.journal
    executor = Executor(
        FakeCluster(world), site.nodes, FakeFiles(world), FakeStore(world), world.clock, LIMITS,
        by_reconfigure=by_reconfigure,
    )  # fmt: skip
    moments = world.moments
    change = NodeChange(NODE, (), world.managed.slots, ())
    (outcome,) = executor.reshape_all([(world.managed, change)])
    assert outcome.phase is Phase.ABANDONED
    assert f"transaction {journal.id} is not finished" in outcome.note
    assert (world.transaction, world.moments) == (journal, moments)


@pytest.mark.parametrize("condition", [c for c in NodeCondition if c is not NodeCondition.USABLE])
@pytest.mark.parametrize("looked_at", [True, False])
def test_what_is_withheld_on_a_node_that_is_left_alone_is_left_alone_too(
    condition: NodeCondition, *, looked_at: bool
) -> None:
    view = node([gpu(A100, 0, *ones())], {7: [0]})
    view = after(view, only(plan([view], [BIG]).changes))
    away = replace(view, condition=condition, note=condition.value)
    away = away if looked_at else replace(away, gpus=())
    for waiting in ([BIG], [replace(BIG, patience=Patience.NONE)], []):
        assert plan([away], waiting).changes == ()
    assert only(plan([view], []).changes).withheld == (), "offered again once it may be touched"
