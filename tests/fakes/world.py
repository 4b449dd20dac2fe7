"""One node with its GPUs, files, slurmd, slurmctld and state directory, all in memory.

For property tests of the executor: every change to any of them is a moment at which the process
can be killed or somebody else can do something, and after every one the invariants of
docs/safety.md are looked at from outside. slurmctld's rules are those measured on the testbed
(docs/facts.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from slurm_mig.core import publish, slots
from slurm_mig.core.changes import NodeChange
from slurm_mig.core.model import (
    Allocation,
    Device,
    Gpu,
    JobRequest,
    Place,
    Placement,
    Slots,
    SlurmNode,
    is_filler,
)
from slurm_mig.core.ownership import Outside
from slurm_mig.core.records import (
    REASON,
    CycleReport,
    ManagedNode,
    NodeFacts,
    Pause,
    Transaction,
)
from slurm_mig.errors import SlurmMigError
from slurm_mig.executor import Executor
from slurm_mig.noderun import Limits
from slurm_mig.ports import Clock
from tests.fakes.gpus import FakeGpus

NODE = "n1"


class KilledError(BaseException):
    """The process ends here."""


class FakeClock:
    """Time passes only where somebody waits."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def now(self) -> float:
        return self.seconds

    def elapsed(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


@dataclass
class World:
    """All that there is. `moments` counts the changes; `happen` says what happens after which."""

    gpus: FakeGpus
    managed: ManagedNode
    jobs: Mapping[int, frozenset[int]] = field(default_factory=dict)
    """Running jobs and their GRES indexes."""
    happen: dict[int, Callable[[], None]] = field(default_factory=dict)
    """By moment: what happens right after that change, or, negative, right before it."""
    moments: int = 0
    drained: bool = False
    reason: str = ""
    refused: bool = False
    silent: bool = False
    """NOT_RESPONDING: resumed out of DRAIN and not registered since."""
    loose: bool = False
    """The fence is FAIL, not DRAIN."""
    transaction: Transaction | None = None
    report: CycleReport | None = None
    names: list[str] = field(default_factory=list)
    """The changes, in order."""

    def __post_init__(self) -> None:
        self.files: Slots = self.managed.slots
        self.slurmd: Slots = self.managed.slots
        self.line: dict[str, int] = dict(slots.tally(self.managed.slots))
        self.shown: dict[str, int] = dict(self.line)
        self.devices = {
            (job, i): self.managed.slots[i].key for job, held in self.jobs.items() for i in held
        }
        self.prepared: set[str] = {f for d in self.managed.slots for f in d.files}
        self.clock: Clock = FakeClock()

    def change(self, name: str, effect: Callable[[], None]) -> None:
        """Something changes, and the invariants must hold at once."""
        self.moments += 1
        self.names.append(name)
        if before := self.happen.get(-self.moments):
            before()
        effect()
        self.must_hold(name)
        if after := self.happen.get(self.moments):
            after()
            self.must_hold(f"{name}, and then something")

    def must_hold(self, name: str) -> None:
        """The invariants, from outside."""
        there = self.there
        for (job, index), key in self.devices.items():
            assert self.slurmd[index].key == key, f"{name}: job {job} lost its index {index}"
            assert key in there, f"{name}: job {job} lost its device {key}"
        assert len(self.slurmd) == len(self.managed.slots), f"{name}: the count changed"
        if self.drained or self.silent:
            return
        offered = {d.key for d in self.slurmd if not is_filler(d.type)}
        assert offered <= there, f"{name}: offered and not there: {offered - there}"
        assert list(self.shown.items()) == list(slots.tally(self.slurmd).items()), (
            f"{name}: slurmctld offers {self.shown}, slurmd has {slots.tally(self.slurmd)}"
        )
        assert self.files == self.slurmd, f"{name}: the files say something else"
        assert not self.refused, f"{name}: an open node whose registration was refused"

    @property
    def there(self) -> set[Place]:
        """The devices that exist."""
        found: set[Place] = set()
        for gpu in self.gpus.inventory():
            found |= {(gpu.index, i.placement) for i in gpu.instances} if gpu.mig else set()
            found |= set() if gpu.mig else {(gpu.index, None)}
        return found

    def register(self, new: Slots) -> None:
        """slurmd registers: slurmctld takes it, or refuses it as the real one does."""
        has = slots.tally(new)
        gone = [t for t, n in self.shown.items() if n and t not in has]
        if any(n > has.get(t, 0) for t, n in self.line.items()):
            self.refuse("gres/gpu count too low (x < y)")
            self.shown = dict(has)  # The topology is rebuilt from what slurmd really has.
        elif gone and self.jobs:
            self.refuse("gres/gpu type changed and jobs are using them")
        else:
            self.shown, self.refused = dict(has), False
            self.silent = False

    def refuse(self, words: str) -> None:
        self.refused, self.drained, self.reason = True, True, words

    def executor(
        self,
        cluster: FakeCluster | None = None,
        files: FakeFiles | None = None,
        nodes: FakeNodes | None = None,
    ) -> Executor:
        """A new process's, on whatever host."""
        return Executor(
            cluster or FakeCluster(self),
            nodes or FakeNodes(self),
            files or FakeFiles(self),
            FakeStore(self),
            self.clock,
            Limits(settle_s=0.1, register_s=0.1, release_s=0.1),
        )


class FakeCluster:
    """slurmctld."""

    def __init__(self, world: World) -> None:
        self.w = world

    def node(self, name: str) -> SlurmNode:
        w = self.w
        states = {"MIXED" if w.jobs else "IDLE"}
        ours = w.reason.startswith(f"{REASON}:")  # as the adapter shows our own FAIL
        states |= {"FAIL" if w.loose and not ours else "DRAIN"} if w.drained else set()
        states |= {"INVALID_REG"} if w.refused else set()
        states |= {"NOT_RESPONDING"} if w.silent else set()
        held = tuple(Allocation(job, "alice", indexes) for job, indexes in w.jobs.items())
        return SlurmNode(
            name, frozenset(states), w.reason, dict(w.shown), 32, 0, 64000, 0,
            frozenset({"main"}), allocations=held,
        )  # fmt: skip

    def nodes(self) -> dict[str, SlurmNode]:
        return {NODE: self.node(NODE)}

    def watch(self, name: str) -> SlurmNode:
        return replace(self.node(name), allocations=())

    def pending(self) -> list[JobRequest]:
        return []

    def drain(self, node: str, reason: str) -> None:
        def effect() -> None:
            self.w.drained, self.w.loose, self.w.reason = True, False, reason

        self.w.change("drain", effect)

    def loosen(self, node: str) -> None:
        def effect() -> None:
            self.w.drained = self.w.loose = True

        self.w.change("loosen", effect)

    def resume(self, node: str) -> None:
        def effect() -> None:
            self.w.silent = self.w.silent or not self.w.loose
            self.w.drained, self.w.loose, self.w.reason = False, False, ""

        self.w.change("resume", effect)

    def set_gres(self, node: str, gres: str) -> None:
        def effect() -> None:
            words = (word.split(":") for word in gres.split(","))
            self.w.line = {t: int(n) for _, t, n in words}

        self.w.change("set_gres", effect)

    def reconfigure(self) -> None:
        raise AssertionError("this world publishes by node, not by a reconfigure")


class FakeNodes:
    """The node command; each of its own changes is a moment too."""

    def __init__(self, world: World) -> None:
        self.w = world

    def observe(self, names: Sequence[str]) -> dict[str, NodeFacts | SlurmMigError]:
        return {name: NodeFacts(self.w.gpus.inventory(), slurmd_pid=7) for name in names}

    def reshape(self, name: str, change: NodeChange) -> NodeFacts:
        for part in change.gpus:
            for instance in self.w.gpus.gpu(part.gpu).instances:
                if instance.placement in part.destroyed:
                    self.w.change("destroy", self._destroy(part.gpu, instance.gi))
            for placement in part.created:
                if placement not in self.w.gpus.gpu(part.gpu).layout:
                    self.w.change("create", self._create(part.gpu, placement))
        return NodeFacts(self.w.gpus.inventory(), slurmd_pid=7)

    def own(self, name: str, outside: Sequence[Outside]) -> None:
        raise AssertionError("nothing in this world is given to others")

    def _destroy(self, gpu: int, gi: int) -> Callable[[], None]:
        return lambda: self.w.gpus.destroy(gpu, gi)

    def _create(self, gpu: int, placement: Placement) -> Callable[[], None]:
        return lambda: self.w.gpus.create(gpu, placement)

    def prepare(self, name: str, new: Slots) -> None:
        self.w.change("prepare", lambda: self.w.prepared.update(f for d in new for f in d.files))

    def preregister(self, name: str, new: Slots) -> None:
        self._read()
        self.w.change("preregister", lambda: self.w.register(self.w.files))

    def publish(self, name: str, new: Slots) -> None:
        self._read()

        def effect() -> None:
            self.w.slurmd = self.w.files
            self.w.register(self.w.slurmd)

        self.w.change("publish", effect)

    def _read(self) -> None:
        missing = {f for d in self.w.files for f in d.files} - self.w.prepared
        assert not missing, f"slurmd would die: {missing} is published and not there"

    def follow(self, name: str, slurmd_pid: int) -> None:
        raise AssertionError("this world publishes by node, not by a reconfigure")

    def announce(self, name: str) -> None:
        def effect() -> None:
            self.w.slurmd = self.w.files
            self.w.register(self.w.slurmd)

        self.w.change("announce", effect)


class FakeFiles:
    """Our files; writing them is one moment, as both are there before slurmd may read them."""

    def __init__(self, world: World) -> None:
        self.w = world

    def check(
        self, nodes: Sequence[ManagedNode], also: Sequence[ManagedNode] = ()
    ) -> Sequence[str]:
        return ()

    def write(self, nodes: Sequence[ManagedNode], changed: str) -> None:
        def effect() -> None:
            self.w.files = next(node.slots for node in nodes if node.name == changed)

        self.w.change("write files", effect)

    def restore(self, nodes: Sequence[ManagedNode]) -> None:
        raise AssertionError("the executor never restores files: a cycle does")


class FakeStore:
    """The state directory: each save is a moment."""

    def __init__(self, world: World) -> None:
        self.w = world

    def managed(self) -> dict[str, ManagedNode]:
        return {NODE: self.w.managed}

    def save_managed(self, node: ManagedNode) -> None:
        def effect() -> None:
            self.w.managed = node

        self.w.change("save node", effect)

    def transaction(self, node: str) -> Transaction | None:
        return self.w.transaction

    def save_transaction(self, transaction: Transaction) -> None:
        def effect() -> None:
            self.w.transaction = transaction

        self.w.change(f"journal {transaction.phase.value}", effect)

    def pauses(self) -> Sequence[Pause]:
        return ()

    def report(self) -> CycleReport | None:
        return self.w.report

    def save_report(self, report: CycleReport) -> None:
        self.w.report = report


def record(gpus: Sequence[Gpu]) -> ManagedNode:
    """The node as enrolled with these GPUs."""
    total = sum(gpu.capacity for gpu in gpus)
    devices: list[Device] = [d for gpu in gpus for d in slots.devices_of(gpu, "whole")]
    arranged = slots.with_files(slots.arrange(total, {}, devices), gpus, "/caps")
    types = {p.name for gpu in gpus for p in gpu.profiles}
    made = ManagedNode(NODE, {"CPUs": "32"}, arranged, tuple(sorted(types)))
    assert publish.node_gres(made)
    return made
