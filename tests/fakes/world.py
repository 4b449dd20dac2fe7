"""Stateful fakes of the ports over one `World`, and an outside checker of what must always hold.

The world is slurmctld, slurmd, the GPUs, our published files and our state directory, as values in
memory. Every call of a port goes through `World.called`, where a test may stop the caller, let an
administrator act or let slurmd register. After each call slurmctld starts what it can and the
checker looks. What it finds is kept in `World.violations`, so that no caller can swallow it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from slurm_mig.core import demand, publish, slots
from slurm_mig.core.model import (
    Allocation,
    Device,
    Gpu,
    GpuChange,
    Instance,
    JobRequest,
    NodeChange,
    Placement,
    Profile,
    Slots,
    SlurmNode,
    is_filler,
)
from slurm_mig.core.records import CycleReport, ManagedNode, NodeFacts, Transaction
from slurm_mig.errors import BusyError, DriftError, GpuError, SlurmMigError, UnreachableError

NODE = "gpu-1"
CAPS = "/dev/nvidia-caps"

PROFILES = (
    Profile("1g.5gb", 19, 1, 1, (0, 1, 2, 3, 4, 5, 6), 7),
    Profile("2g.10gb", 14, 2, 2, (0, 2, 4), 3),
    Profile("3g.20gb", 9, 3, 4, (0, 4), 2),
    Profile("4g.20gb", 5, 4, 4, (0,), 1),
    Profile("7g.40gb", 0, 7, 8, (0,), 1),
)
"""Of an A100 40GB, attribute profiles left out."""

FIRST_GI = {"7g.40gb": 0, "3g.20gb": 1, "4g.20gb": 1, "2g.10gb": 3, "1g.5gb": 7}
"""GPU instance ids that the driver gives, lowest free first, by profile."""

BY_NAME = {p.name: p for p in PROFILES}


def place(profile: str, start: int) -> Placement:
    return Placement(start, BY_NAME[profile].size, profile)


def layout(*words: str) -> tuple[Placement, ...]:
    """`layout("3g.20gb@0", "1g.5gb@4")`."""
    parts = (word.split("@") for word in words)
    return tuple(place(name, int(start)) for name, start in parts)


ONES = layout(*(f"1g.5gb@{n}" for n in range(7)))


class Crash(BaseException):
    """The process dies here: nothing of ours may catch it."""


@dataclass
class Job:
    """A job as slurmctld has it, and the devices that it got when it started."""

    request: JobRequest
    node: str = ""
    devices: dict[int, tuple[Device, int]] = field(default_factory=dict)
    """By GRES index: the device, and the id of its GPU instance."""
    state: str = "PENDING"
    processes: bool = True
    """NVML sees its processes."""

    @property
    def job_id(self) -> int:
        return self.request.job_id

    @property
    def holds(self) -> bool:
        return self.state in ("RUNNING", "COMPLETING", "CONFIGURING")


@dataclass
class Node:
    """slurmctld's record of a node, and the slurmd that runs there."""

    name: str
    gpus: list[Gpu]
    line: dict[str, int]
    """The Gres that slurmctld was last told, zeros too: in force at the next registration."""
    gres: dict[str, int]
    """What slurmctld shows."""
    topology: list[str]
    """slurmctld's type of each GRES index."""
    slurmd: Slots
    """What slurmd read when it last started."""
    flags: set[str] = field(default_factory=set)
    reason: str = ""
    drained_by: str = ""
    """`us`, `admin` or nobody."""
    hooks: tuple[str, ...] = ()
    reachable: bool = True
    registrations: int = 0


Hook = Callable[[int, str], None]


class World:
    """All that the ports reach. `before` and `after` are called around every port call."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self.jobs: dict[int, Job] = {}
        self.files: dict[str, ManagedNode] = {}
        self.managed: dict[str, ManagedNode] = {}
        self.transactions: dict[str, Transaction] = {}
        self.history: list[Transaction] = []
        self.saved_report: CycleReport | None = None
        self.time = 1000.0
        self.calls: list[str] = []
        self.violations: list[str] = []
        self.before: Hook = lambda n, name: None
        self.after: Hook = lambda n, name: None
        self.controller_up = True
        self.gpu_errors: dict[str, int] = {}
        """`create` or `destroy` to how many more of them go well before one fails."""
        self.excused = False
        """An administrator resumed a node in our hands: what Slurm offers is his doing now."""
        self._devices = 0

    # Making a world.

    def add_node(self, *layouts: Sequence[Placement], name: str = NODE) -> Node:
        """A managed node, as it is after enrolment: one GPU for each layout."""
        gpus = [self._gpu(n) for n in range(len(layouts))]
        node = Node(name, gpus, {}, {}, [], ())
        self.nodes[name] = node
        for index, placements in enumerate(layouts):
            for placement in placements:
                self.make_instance(node, index, placement)
        total = sum(gpu.capacity for gpu in node.gpus)
        devices = [d for gpu in node.gpus for d in slots.devices_of(gpu, "")]
        first = slots.with_files(slots.arrange(total, {}, devices), node.gpus, CAPS)
        managed = ManagedNode(
            name=name,
            attributes={"CPUs": "32", "RealMemory": "64000"},
            slots=first,
            possible=tuple(p.name for p in PROFILES),
            baseline={g.index: tuple(sorted(g.layout)) for g in node.gpus},
            partitions=("gpu",),
            most={p.name: p.max_count * len(gpus) for p in PROFILES},
        )
        self.managed[name] = managed
        self.files[name] = managed
        node.line = demand.parse_gres(publish.node_gres(managed))
        self.register(name)
        return node

    def _gpu(self, index: int) -> Gpu:
        base = index * 150
        return Gpu(
            index=index,
            minor=index,
            uuid=f"GPU-{index}",
            model="NVIDIA A100-PCIE-40GB",
            memory_mib=40960,
            mig=True,
            profiles=PROFILES,
            file=f"/dev/nvidia{index}",
            instance_minors=tuple(base + 3 + 9 * gi for gi in range(14)),
            spare_minors=tuple(base + 130 + n for n in range(7)),
        )

    def submit(
        self,
        job_id: int,
        gpus: dict[str, int],
        *,
        processes: bool = True,
        reason: str = "Resources",
    ) -> Job:
        request = JobRequest(
            job_id=job_id,
            user="ann",
            partition="gpu",
            priority=1000 - job_id,
            gpus=gpus,
            submit_time=int(self.time),
            reason=reason,
        )
        job = Job(request, processes=processes)
        self.jobs[job_id] = job
        return job

    def run_job(self, job_id: int, index: int, *, node: str = NODE, processes: bool = True) -> Job:
        """A job that has just started on the slot at `index`."""
        gres_type = self.nodes[node].topology[index]
        job = self.submit(job_id, {gres_type: 1}, processes=processes)
        self._start(job, self.nodes[node], [index])
        return job

    # What others do.

    def admin_drain(self, name: str = NODE, reason: str = "bad fan, Bob") -> None:
        node = self.nodes[name]
        node.flags.add("DRAIN")
        node.reason, node.drained_by = reason, "admin"

    def admin_resume(self, name: str = NODE) -> None:
        if self.nodes[name].drained_by == "us":
            self.excused = True
        self._resume(self.nodes[name])

    def end_job(self, job_id: int) -> None:
        self.jobs[job_id].state = "COMPLETED"

    def register(self, name: str = NODE) -> None:
        """slurmd starts or gets SIGHUP: it reads the published files and registers."""
        node = self.nodes[name]
        node.registrations += 1
        node.slurmd = self.files[name].slots
        node.flags.discard("NOT_RESPONDING")
        have = Counter(d.type for d in node.slurmd)
        gone = [t for t in dict.fromkeys(node.topology) if not node.line.get(t)]
        if gone and self.running(name):
            self._refuse(node, "gres/gpu type changed and jobs are using them")
            return
        node.topology = [d.type for d in node.slurmd]
        low = [t for t, n in node.line.items() if n > have[t]]
        if low:
            wanted = node.line[low[0]]
            self._refuse(node, f"gres/gpu count too low ({have[low[0]]} < {wanted})")
            return
        node.gres = slots.published(node.line)
        node.flags.discard("INVALID_REG")
        if "DRAIN" not in node.flags:
            node.reason = ""

    def _refuse(self, node: Node, why: str) -> None:
        node.flags.add("INVALID_REG")
        node.reason = why

    def _resume(self, node: Node) -> None:
        node.flags.discard("DRAIN")
        node.flags.add("NOT_RESPONDING")
        node.reason = node.drained_by = ""

    def running(self, name: str = NODE) -> list[Job]:
        return [j for j in self.jobs.values() if j.holds and j.node == name]

    def schedulable(self, node: Node) -> bool:
        return not node.flags & {"DRAIN", "INVALID_REG", "NOT_RESPONDING", "DOWN"}

    def schedule(self) -> None:
        """slurmctld starts every waiting job that fits on what it offers."""
        waiting = [j for j in self.jobs.values() if j.state == "PENDING"]
        for job in sorted(waiting, key=lambda j: -j.request.priority):
            for node in self.nodes.values():
                chosen = self._free(node, job) if self.schedulable(node) else None
                if chosen:
                    self._start(job, node, chosen)
                    break

    def _free(self, node: Node, job: Job) -> list[int] | None:
        busy = {i for j in self.running(node.name) for i in j.devices}
        chosen: list[int] = []
        for gres_type, count in job.request.gpus.items():
            free = [
                i
                for i, t in enumerate(node.topology)
                if t == gres_type and i not in busy and i not in chosen
            ]
            chosen += free[:count]
            if len(free) < count or node.gres.get(gres_type, 0) < count:
                return None
        return chosen

    def _start(self, job: Job, node: Node, indexes: Sequence[int]) -> None:
        job.node, job.state = node.name, "RUNNING"
        for index in indexes:
            device = node.slurmd[index]
            found = self.instance(node, device)
            job.devices[index] = (device, found.gi if found else -1)

    # GPUs.

    def instance(self, node: Node, device: Device) -> Instance | None:
        if not 0 <= device.gpu < len(node.gpus):
            return None
        instances = node.gpus[device.gpu].instances
        return next((i for i in instances if i.placement == device.placement), None)

    def make_instance(self, node: Node, index: int, placement: Placement) -> Instance:
        """A GPU instance and its compute instance, as NVML makes them: one after the other."""
        gpu = node.gpus[index]
        if any(placement.overlaps(i.placement) for i in gpu.instances):
            raise GpuError(f"GPU {index}: no room for {placement}", code=19)
        taken = {i.gi for i in gpu.instances}
        gi = next(n for n in range(FIRST_GI[placement.profile], 14) if n not in taken)
        minor = gpu.instance_minors[gi]
        half = Instance(placement, gi, "", minor, (), (), compute_instances=0)
        self._set_instances(node, index, (*gpu.instances, half))
        with self.called("gpu.compute"):
            pass
        self._devices += 1
        files = (gpu.file, f"{CAPS}/nvidia-cap{minor}", f"{CAPS}/nvidia-cap{minor + 1}")
        made = Instance(placement, gi, f"MIG-{self._devices}", minor, files)
        self._set_instances(node, index, (*gpu.instances, made))
        return made

    def remove_instance(self, node: Node, index: int, gi: int) -> None:
        instances = node.gpus[index].instances
        rest = tuple(i for i in instances if i.gi != gi)
        bare = tuple(replace(i, uuid="", files=()) for i in instances if i.gi == gi)
        self._set_instances(node, index, (*rest, *bare))
        with self.called("gpu.instance"):
            pass
        self._set_instances(node, index, rest)

    def _set_instances(self, node: Node, index: int, instances: Sequence[Instance]) -> None:
        ordered = tuple(sorted(instances, key=lambda i: i.placement))
        node.gpus[index] = replace(node.gpus[index], instances=ordered)

    def inventory(self, node: Node) -> tuple[Gpu, ...]:
        """The GPUs with the processes that NVML sees now."""
        pids = {
            device.key: (10_000 + job.job_id,)
            for job in self.running(node.name)
            if job.processes
            for device, _ in job.devices.values()
        }
        return tuple(
            replace(
                gpu,
                instances=tuple(
                    replace(i, pids=pids.get((gpu.index, i.placement), ())) for i in gpu.instances
                ),
            )
            for gpu in node.gpus
        )

    # Every call, and the checker.

    @contextmanager
    def called(self, name: str) -> Iterator[None]:
        number = len(self.calls)
        self.calls.append(name)
        self.before(number, name)
        yield
        self.schedule()
        self.check()
        self.after(number, name)

    def violate(self, what: str) -> None:
        if what not in self.violations:
            self.violations.append(what)

    def check(self) -> list[str]:
        """Look at everything from outside; returns all violations so far."""
        for node in self.nodes.values():
            self._check_offered(node)
        for job in self.jobs.values():
            if job.holds:
                self._check_job(job, self.nodes[job.node])
        return self.violations

    def _check_offered(self, node: Node) -> None:
        if not self.schedulable(node) or self.excused:
            return
        if dict(Counter(node.topology)) != node.gres:
            self.violate(f"{node.name}: shows {node.gres}, topology {node.topology}")
        for index, gres_type in enumerate(node.topology):
            if is_filler(gres_type):
                continue
            device = node.slurmd[index]
            found = self.instance(node, device)
            if found is None or not found.uuid or found.placement.profile != gres_type:
                self.violate(f"{node.name}: offers {gres_type} at {index}, which does not exist")
            elif (device.uuid, device.files) != (found.uuid, found.files):
                self.violate(f"{node.name}: offers another device at {index} than is there")

    def _check_job(self, job: Job, node: Node) -> None:
        for index, (device, gi) in job.devices.items():
            if is_filler(device.type) or gi < 0:
                self.violate(f"job {job.job_id} started on {device.type} that does not exist")
                continue
            found = self.instance(node, device)
            if found is None or (found.gi, found.uuid) != (gi, device.uuid):
                self.violate(f"the instance of running job {job.job_id} was destroyed")
            if node.topology[index] != device.type:
                self.violate(f"job {job.job_id}: slurmctld has {node.topology[index]} at {index}")
            if node.slurmd[index] != device:
                self.violate(f"job {job.job_id}: slurmd has another device at {index}")

    def views_differ(self, name: str = NODE) -> list[str]:
        """How GPUs, files, records, slurmd and slurmctld differ; empty when all agree."""
        node, wanted = self.nodes[name], self.managed[name].slots
        there = {(g.index, i.placement, i.uuid) for g in node.gpus for i in g.instances}
        ours = {(d.gpu, d.placement, d.uuid) for d in wanted if d.placement}
        found = []
        if there != ours:
            found.append(f"GPU {sorted(map(str, there))}, record {sorted(map(str, ours))}")
        if self.files[name].slots != wanted:
            found.append("files and record")
        if node.slurmd != wanted:
            found.append("slurmd and record")
        if node.topology != [d.type for d in wanted]:
            found.append("slurmctld's topology and record")
        if list(node.gres.items()) != list(slots.tally(wanted).items()):
            found.append("slurmctld's Gres and record")
        return found


class FakeCluster:
    """slurmctld."""

    def __init__(self, world: World) -> None:
        self.world = world

    def _answer(self) -> None:
        if not self.world.controller_up:
            raise UnreachableError("slurmctld does not answer")

    def nodes(self) -> dict[str, SlurmNode]:
        with self.world.called("cluster.nodes"):
            self._answer()
            return {name: self._shown(name) for name in self.world.nodes}

    def node(self, name: str) -> SlurmNode:
        with self.world.called("cluster.node"):
            self._answer()
            return self._shown(name)

    def watch(self, name: str) -> SlurmNode:
        with self.world.called("cluster.watch"):
            self._answer()
            return replace(self._shown(name), allocations=(), unsettled=())

    def pending(self) -> list[JobRequest]:
        with self.world.called("cluster.pending"):
            self._answer()
            return [j.request for j in self.world.jobs.values() if j.state == "PENDING"]

    def drain(self, node: str, reason: str) -> None:
        with self.world.called("cluster.drain"):
            self._answer()
            record = self.world.nodes[node]
            if record.drained_by == "admin":
                self.world.violate(f"an administrator's drain was overwritten: {record.reason}")
            record.flags.add("DRAIN")
            record.reason, record.drained_by = reason, "us"
            self.world.excused = False

    def resume(self, node: str) -> None:
        with self.world.called("cluster.resume"):
            self._answer()
            record = self.world.nodes[node]
            if record.drained_by != "us":
                self.world.violate(f"resumed a node drained by {record.drained_by or 'nobody'}")
            for difference in self.world.views_differ(node):
                self.world.violate(f"released while views differ: {difference}")
            self.world._resume(record)

    def set_gres(self, node: str, gres: str) -> None:
        with self.world.called("cluster.set_gres"):
            self._answer()
            self.world.nodes[node].line = demand.parse_gres(gres)

    def reconfigure(self) -> None:
        with self.world.called("cluster.reconfigure"):
            self._answer()

    def _shown(self, name: str) -> SlurmNode:
        node = self.world.nodes[name]
        jobs = self.world.running(name)
        return SlurmNode(
            name=name,
            states=frozenset({"MIXED" if jobs else "IDLE", *node.flags}),
            reason=node.reason,
            gres=dict(node.gres),
            cpus=32,
            cpus_alloc=len(jobs),
            memory_mib=64000,
            memory_alloc_mib=0,
            partitions=frozenset({"gpu"}),
            allocations=tuple(
                Allocation(j.job_id, j.request.user, frozenset(j.devices), j.state)
                for j in jobs
                if j.devices
            ),
            unsettled=tuple(f"job {j.job_id} is {j.state}" for j in jobs if j.state != "RUNNING"),
        )


class FakeNodes:
    """The node agents: NVML and slurmd of each node."""

    def __init__(self, world: World) -> None:
        self.world = world

    def _reach(self, name: str) -> Node:
        node = self.world.nodes[name]
        if not node.reachable:
            raise UnreachableError(f"{name} does not answer")
        return node

    def observe(self, names: Sequence[str]) -> dict[str, NodeFacts | SlurmMigError]:
        with self.world.called("nodes.observe"):
            found: dict[str, NodeFacts | SlurmMigError] = {}
            for name in names:
                try:
                    found[name] = self._facts(self._reach(name))
                except UnreachableError as error:
                    found[name] = error
            return found

    def _facts(self, node: Node) -> NodeFacts:
        return NodeFacts(self.world.inventory(node), "550.1", 4242, node.hooks)

    def reshape(self, name: str, change: NodeChange) -> NodeFacts:
        """The rules of node.NodeAgent.reshape."""
        with self.world.called("nodes.reshape"):
            node = self._reach(name)
            gpus = {gpu.index: gpu for gpu in self.world.inventory(node)}
            for part in change.gpus:
                for instance in _going(gpus[part.gpu], part):
                    if instance.pids:
                        raise BusyError(f"GPU {part.gpu}: {instance.placement} is held")
            for part in change.gpus:
                self._reshape_gpu(node, gpus[part.gpu], part)
            return self._facts(node)

    def _reshape_gpu(self, node: Node, gpu: Gpu, part: GpuChange) -> None:
        try:
            for instance in _going(gpu, part):
                self._destroy(node, gpu.index, instance.gi)
            for placement in sorted(part.target - {i.placement for i in gpu.instances if i.uuid}):
                self._create(node, gpu.index, placement)
        except GpuError:
            self._restore(node, gpu, part)
            raise

    def _restore(self, node: Node, before: Gpu, part: GpuChange) -> None:
        now = node.gpus[before.index]
        for instance in now.instances:
            if instance.placement in part.created:
                self._destroy(node, before.index, instance.gi)
        for placement in sorted(before.layout - (now.layout - frozenset(part.created))):
            self._create(node, before.index, placement)

    def _destroy(self, node: Node, index: int, gi: int) -> None:
        with self.world.called("gpu.destroy"):
            self._fail("destroy")
            self.world.remove_instance(node, index, gi)

    def _create(self, node: Node, index: int, placement: Placement) -> None:
        with self.world.called("gpu.create"):
            self._fail("create")
            self.world.make_instance(node, index, placement)

    def _fail(self, what: str) -> None:
        left = self.world.gpu_errors.get(what)
        if left == 0:
            del self.world.gpu_errors[what]
            raise GpuError(f"NVML: {what} failed", code=999)
        if left is not None:
            self.world.gpu_errors[what] = left - 1

    def prepare(self, name: str, slots: Slots) -> None:
        with self.world.called("nodes.prepare"):
            self._reach(name)

    def publish(self, name: str, slots: Slots) -> None:
        with self.world.called("nodes.publish"):
            self._reach(name)
            self.world.register(name)

    def restart(self, name: str) -> None:
        with self.world.called("nodes.restart"):
            self._reach(name)
            self.world.register(name)

    def announce(self, name: str) -> None:
        with self.world.called("nodes.announce"):
            self._reach(name)
            self.world.register(name)


def _going(gpu: Gpu, part: GpuChange) -> list[Instance]:
    return [
        i
        for i in gpu.instances
        if i.placement in part.destroyed or (i.placement in part.created and not i.uuid)
    ]


class FakeFiles:
    """Our published files: what slurmd reads when it starts."""

    def __init__(self, world: World) -> None:
        self.world = world

    def check(self, nodes: Sequence[ManagedNode], also: Sequence[ManagedNode] = ()) -> None:
        with self.world.called("files.check"):
            found = publish.gres_conf(list(self.world.files.values()))
            if found not in (publish.gres_conf(nodes), publish.gres_conf(also)):
                raise DriftError("gres.conf was edited by hand; nothing was changed")

    def write(self, nodes: Sequence[ManagedNode]) -> None:
        with self.world.called("files.write"):
            self.world.files = {node.name: node for node in nodes}


class FakeStore:
    """The state directory: what it holds survives a crash."""

    def __init__(self, world: World) -> None:
        self.world = world

    def managed(self) -> dict[str, ManagedNode]:
        return dict(self.world.managed)

    def save_managed(self, node: ManagedNode) -> None:
        with self.world.called("store.save_managed"):
            self.world.managed[node.name] = node

    def transaction(self, node: str) -> Transaction | None:
        return self.world.transactions.get(node)

    def save_transaction(self, transaction: Transaction) -> None:
        with self.world.called("store.save_transaction"):
            self.world.transactions[transaction.node] = transaction
            if not transaction.is_open:
                self.world.history.append(transaction)

    def report(self) -> CycleReport | None:
        return self.world.saved_report

    def save_report(self, report: CycleReport) -> None:
        with self.world.called("store.save_report"):
            self.world.saved_report = report


class FakeClock:
    """Time passes only while somebody sleeps."""

    def __init__(self, world: World) -> None:
        self.world = world

    def now(self) -> float:
        return self.world.time

    def sleep(self, seconds: float) -> None:
        self.world.time += seconds
        self.world.schedule()
