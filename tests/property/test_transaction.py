"""Killed at every moment of a transaction, and again while it is being recovered: the same end.

The executor is the real one, over ports in memory (tests/fakes/world.py) that look at the
invariants after every change. tests/cluster/test_recovery.py does some of the same on a real Slurm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from slurm_mig.core import geometry, slots
from slurm_mig.core.changes import GpuChange, NodeChange
from slurm_mig.core.layouts import Cut
from slurm_mig.core.model import Layout, Placement, SlurmNode
from slurm_mig.core.ownership import Outside
from slurm_mig.core.records import REASON, ManagedNode, NodeFacts, Phase, Transaction
from slurm_mig.core.transitions import Situation, Step, broken, next_step, steps
from slurm_mig.errors import (
    DriftError,
    InvariantError,
    LeftAloneError,
    SlurmMigError,
    UnreachableError,
)
from tests.fakes.gpus import FakeGpus, made_instance, sorted_by_place
from tests.fakes.world import NODE, FakeCluster, FakeFiles, FakeNodes, KilledError, World, record
from tests.unit.builders import A100, gpu

LAYOUTS = sorted(
    (frozenset(), *geometry.layouts(gpu(A100), ["1g.5gb", "2g.10gb", "3g.20gb", "4g.20gb"])),
    key=sorted,
)
FEW = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


@dataclass(frozen=True)
class Case:
    """A GPU in a layout, with running jobs on some instances, that is to get another layout."""

    start: Layout
    target: Layout
    busy: Layout

    def world(self) -> World:
        empty = gpu(A100)
        made = [made_instance(empty, Cut(p), (7,) if p in self.busy else ()) for p in self.start]
        cut = replace(empty, instances=tuple(sorted_by_place(made)))
        managed = record([cut])
        held = [n for n, d in enumerate(managed.slots) if d.placement in self.busy]
        jobs = {100 + n: frozenset({n}) for n in held}
        return World(FakeGpus(cut), managed, jobs)

    def change(self) -> NodeChange:
        parts = (
            tuple(sorted(self.start & self.target)),
            tuple(sorted(self.start - self.target)),
            tuple(sorted(self.target - self.start)),
        )
        return NodeChange(NODE, (GpuChange(0, *parts),), (), (1,))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    start = draw(st.sampled_from(LAYOUTS))
    busy = frozenset(draw(st.sets(st.sampled_from(sorted(start))))) if start else frozenset()
    fitting = [layout for layout in LAYOUTS if busy <= layout and layout != start]
    assume(fitting)
    return Case(start, draw(st.sampled_from(fitting)), busy)


def until_done(world: World, case: Case) -> None:
    """One process after another, as the timer starts them, until the layout is there."""
    for _ in range(12):
        try:
            if world.transaction is not None and world.transaction.is_open:
                world.executor().recover(world.transaction)
            elif (
                world.gpus.gpu(0).layout == case.target
                or world.executor().reshape(world.managed, case.change()).phase is Phase.ABANDONED
            ):
                return
        except KilledError:
            continue
    raise AssertionError(f"no end: {world.names}")


def die() -> None:
    raise KilledError


def end(world: World) -> tuple[Layout, dict[str, int]]:
    """What is there when all is done."""
    assert world.transaction is not None
    assert not world.transaction.is_open
    assert not world.drained, f"left drained: {world.reason}; {world.names}"
    assert not world.silent
    world.must_hold("at the end")
    assert world.managed.slots == world.slurmd
    return world.gpus.gpu(0).layout, world.shown


@FEW
@given(cases(), st.integers(1, 40), st.sampled_from((1, -1)))
def test_killed_at_every_moment_and_once_again(case: Case, again: int, side: int) -> None:
    plain = case.world()
    until_done(plain, case)
    wanted = end(plain)
    for moment, where in product(range(1, plain.moments + 1), (1, -1)):
        world = case.world()
        # Counted from the first death: while the second process recovers.
        world.happen = {where * moment: die, side * (moment + again): die}
        until_done(world, case)
        assert end(world) == wanted, world.names


def hand(world: World, done: list[int]) -> Callable[[], None]:
    """An administrator drains the node, once."""

    def drain() -> None:
        done.append(world.moments)
        world.drained, world.loose, world.reason = True, False, "fan is loud"

    return drain


@FEW
@given(cases())
def test_a_drain_of_somebody_else_at_every_moment_stays(case: Case) -> None:
    plain = case.world()
    until_done(plain, case)
    # After each change, and between our look and the one that makes FAIL of the fence.
    for moment in (*range(1, plain.moments), -1 - plain.names.index("loosen")):
        done: list[int] = []
        world = case.world()
        world.happen = {moment: hand(world, done)}
        world.executor().reshape(world.managed, case.change())
        assert done
        assert world.drained, world.names
        assert world.reason == "fan is loud", world.names
        assert world.slurmd == world.files == world.managed.slots, world.names
        assert list(world.shown.items()) == list(slots.tally(world.slurmd).items())


@FEW
@given(cases(), st.integers(1, 12))
def test_nvml_fails_at_every_change(case: Case, which: int) -> None:
    """What is there afterwards is published, whatever it is, and the node goes on."""
    world = case.world()
    world.gpus.fail_at = which
    outcome = world.executor().reshape(world.managed, case.change())
    assert outcome.phase in (Phase.RELEASED, Phase.ABANDONED)
    end(world)
    offered = {d.placement for d in world.slurmd if d.placement}
    assert offered == set(world.gpus.gpu(0).layout)


def test_what_is_not_slurms_is_looked_at_once_more() -> None:
    """A change that no plan makes: an instance was given away since."""
    world = CASE.world()
    given = Outside("containers", 0, tuple(CASE.start))
    world.managed = replace(world.managed, outside=(given,))
    outcome = world.executor().reshape(world.managed, CASE.change())
    assert outcome.phase is Phase.ABANDONED
    assert "containers's in the way" in outcome.note
    assert world.gpus.gpu(0).layout == CASE.start
    assert end(world)


class Refusing(FakeCluster):
    """A slurmctld that shows something else for ever."""

    def watch(self, name: str) -> SlurmNode:
        return replace(super().watch(name), gres={"1g.5gb": 1})


CASE = Case(
    frozenset({Placement(0, 4, "4g.20gb")}), frozenset({Placement(4, 4, "3g.20gb")}), frozenset()
)  # fmt: skip


def held(cycles: int, pause_s: float) -> World:
    """The node after so many cycles with such a slurmctld."""
    world = CASE.world()
    world.executor(Refusing(world)).reshape(world.managed, CASE.change())
    for _ in range(cycles - 1):
        world.clock.sleep(pause_s)
        recover(world, Refusing(world))
    return world


def recover(world: World, cluster: FakeCluster | None = None) -> Phase:
    assert world.transaction is not None
    return world.executor(cluster).recover(world.transaction).phase


@pytest.mark.parametrize(("cycles", "pause_s"), [(2, 3600), (9, 10)])
def test_no_person_is_asked_for_before_time(cycles: int, pause_s: float) -> None:
    world = held(cycles, pause_s)
    assert world.transaction is not None
    assert (world.transaction.failures, world.transaction.needs) == (cycles, "")
    assert world.reason == world.transaction.reason
    assert recover(world) is Phase.RELEASED


def test_a_cycle_that_does_not_ask_the_node_is_no_try() -> None:
    """However long it is left alone: nobody has looked whether the last try has mended it."""

    class LeftAlone(FakeCluster):
        def watch(self, name: str) -> SlurmNode:
            raise LeftAloneError(f"{name}: it is asked again in 30 s")

    world = held(1, 0)
    for _ in range(5):
        world.clock.sleep(600)
        assert recover(world, LeftAlone(world)) is Phase.HELD
    assert world.transaction is not None
    assert world.transaction.failures == 1
    assert recover(world) is Phase.RELEASED


def test_a_fence_is_not_forgotten_while_slurmctld_is_away() -> None:
    """It is to be taken down, and cannot be looked at: with its transaction closed it would stand
    for as long as the node is paused."""

    class Away(FakeCluster):
        def watch(self, name: str) -> SlurmNode:
            raise UnreachableError("reading node n1 from slurmctld: away")

    world = CASE.world()
    waiting = Transaction(
        "1a2b3c4d", NODE, Phase.FENCED, f"{REASON}: reshaping (1a2b3c4d)", world.clock.now(),
        CASE.change(), world.managed.slots, until=world.clock.now() + 900,
    )  # fmt: skip
    world.transaction, world.drained, world.reason = waiting, True, waiting.reason
    assert world.executor(Away(world)).give_up(waiting, "paused").phase is Phase.HELD
    assert world.transaction.waits
    assert world.executor().give_up(world.transaction, "paused").phase is Phase.ABANDONED
    assert end(world) == (CASE.start, world.shown)


@pytest.mark.parametrize("what", [{"unsettled": ("job 9 is COMPLETING",)}, {"batch_jobs": {9}}])
def test_where_no_slurmd_runs_nothing_is_waited_for(what: dict[str, Any]) -> None:
    """Seen in a soak: instances had changed, slurmd was killed and could not start on old files,
    and a job whose end slurmctld had not heard of kept the node from settling."""

    class Unsettled(FakeCluster):
        def node(self, name: str) -> SlurmNode:
            return replace(super().node(name), **what)

    class NoSlurmd(FakeNodes):
        def observe(self, names: Sequence[str]) -> dict[str, NodeFacts | SlurmMigError]:
            return {name: NodeFacts(self.w.gpus.inventory()) for name in names}

    world = held(1, 0)
    assert world.transaction is not None
    alive = world.executor(Unsettled(world)).recover(world.transaction)
    assert alive.phase is Phase.HELD
    assert "did not settle: job 9" in alive.note
    executor = world.executor(Unsettled(world), nodes=NoSlurmd(world))
    assert executor.recover(world.transaction).phase is Phase.ABANDONED
    assert not world.drained


def test_a_person_is_asked_for_and_says_when_to_go_on() -> None:
    world = held(3, 300)
    asked = world.transaction
    assert asked is not None
    assert world.reason == f"{asked.reason}: {asked.needs}"
    assert "waited 0.1 s for slurmctld to show the new Gres" in asked.needs
    assert asked.needs.endswith(f"Then: slurm-mig release {NODE}")
    before = list(world.names)
    assert world.executor().leave_alone(asked).phase is Phase.QUARANTINED
    assert world.names == before
    assert recover(world, Refusing(world)) is Phase.QUARANTINED
    assert world.drained
    assert recover(world) is Phase.RELEASED
    end(world)


def test_his_resume_says_it_too() -> None:
    world = held(3, 300)
    world.drained, world.reason, world.silent = False, "", True
    assert world.transaction is not None
    assert world.executor().leave_alone(world.transaction).phase is Phase.RELEASED
    end(world)


def test_slurmctlds_own_words_do_not_hide_what_is_needed() -> None:
    """Restarted from an older state, it shows the plain reason."""
    world = held(3, 300)
    asked = world.transaction
    assert asked is not None
    world.reason = asked.reason
    world.executor().leave_alone(asked)
    assert world.reason == f"{asked.reason}: {asked.needs}"


def test_what_another_try_cannot_mend_is_said_at_once() -> None:
    world = CASE.world()

    class Edited(FakeFiles):
        def write(self, nodes: Sequence[ManagedNode], changed: str) -> None:
            raise DriftError("gres.conf was edited by hand: line 3", hint="Undo the edit.")

    outcome = world.executor(files=Edited(world)).reshape(world.managed, CASE.change())
    assert outcome.phase is Phase.QUARANTINED
    assert "needs a person: gres.conf was edited by hand: line 3. Undo the edit." in world.reason
    assert recover(world) is Phase.RELEASED


SITUATIONS = [Situation(*flags) for flags in product((False, True), repeat=5)]


@pytest.mark.parametrize("before", SITUATIONS)
def test_the_order_is_watched_over(before: Situation) -> None:
    """From every situation to every other: the generator goes on, or says what is broken."""
    for after in SITUATIONS:
        remaining = steps(before)
        step = next(remaining)
        if step is Step.DONE:
            assert before.released
        elif broken(step, before, after):
            with pytest.raises(InvariantError):
                remaining.send(after)
        else:
            assert after.fenced
            assert next_step(after) is not step
            if after.released:
                assert after.agreed
                assert before.agreed
                assert step is Step.RELEASE
            assert remaining.send(after) is (Step.DONE if after.released else next_step(after))


def test_entered_again_after_every_step_the_rest_follows() -> None:
    flags = ("fenced", "reshaped", "written", "registered", "released")
    whole = [Step.FENCE, Step.RESHAPE, Step.WRITE, Step.REGISTER, Step.RELEASE, Step.DONE]
    for done in range(len(flags) + 1):
        seen = Situation(**dict.fromkeys(flags[:done], True))
        remaining, found = steps(seen), []
        step = next(remaining)
        while step is not Step.DONE:
            found.append(step)
            seen = replace(seen, **{flags[whole.index(step)]: True})
            step = remaining.send(seen)
        assert [*found, Step.DONE] == whole[done:]
