"""Taking a node into our care, and giving it back.

The count and the type names of the node's gpus change here, once, so this needs a node without
gpu jobs and a reconfigure; afterwards the count never changes. Called by `slurm-mig enrol` and
`leave`, under the lock.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from slurm_mig.core import conditions, drift, geometry, ownership, slots
from slurm_mig.core.fences import orphaned
from slurm_mig.core.model import Gpu, Instance, SlurmNode, is_filler
from slurm_mig.core.records import REASON, ManagedNode, NodeFacts
from slurm_mig.errors import BusyError, ConfigError, SlurmMigError, UnreachableError, UsageError
from slurm_mig.ports import Clock, Cluster, Nodes

log = logging.getLogger(__name__)

POLL_S = 0.2


class SiteFiles(Protocol):
    """The site's slurm.conf and gres.conf (adapters/slurmfiles.py)."""

    def load(self) -> None: ...
    def node(self, name: str) -> Any: ...
    def gres_lines(self, node: str) -> Sequence[Any]: ...
    def partitions_of(self, node: str) -> Sequence[str]: ...
    def value(self, key: str) -> str | None: ...
    def stray(self, enrolled: Collection[str]) -> str: ...
    def manage(
        self,
        enrolled: Sequence[str],
        catalog: Sequence[str] = (),
        catalog_partitions: Mapping[str, Sequence[str]] | None = None,
    ) -> Sequence[Any]: ...


@dataclass(frozen=True)
class Timing:
    """Waiting, in seconds. `wait_s` is how long to wait for the node's gpu jobs to end."""

    wait_s: float = 0.0
    settle_s: float = 60.0


@dataclass(frozen=True)
class Whole:
    """What a site says of GPUs with MIG off: their Slurm type, and whether the mode may change."""

    type: str = ""
    mode_change: str = "never"

    def allows(self, gpu: Gpu) -> bool:
        """True if the GPU's MIG mode may change. A driver of R535 or older hides the profiles of a
        GPU with MIG off: such a GPU is enrolled with MIG on, or stays as it is."""
        if not self.type or not gpu.profiles or self.mode_change == "never":
            return False
        if gpu.owner or gpu.foreign:
            return False
        return self.mode_change == "reset" or not gpu.mode_needs_reset


def refuse_unsupported(site: SiteFiles, name: str) -> None:
    """Raises ConfigError for what slurm-mig cannot live beside (each with its reason)."""
    if fault := _of_the_cluster(site) or _of_the_node(site, name):
        raise ConfigError(f"{fault}; nothing was changed")


def unsupported(site: SiteFiles, names: Collection[str]) -> dict[str, str]:
    """The same, of nodes in our care, where it appeared after they were enrolled: by node."""
    everywhere = _of_the_cluster(site)
    stray = site.stray(names)
    found = {name: everywhere or stray or _of_the_node(site, name) for name in names}
    return {name: fault for name, fault in found.items() if fault}


def _of_the_cluster(site: SiteFiles) -> str:
    select = (site.value("SelectType") or "select/cons_tres").lower()
    if select != "select/cons_tres":
        return f"SelectType={select}: MIG types need select/cons_tres"
    types = {t.strip().lower() for t in (site.value("GresTypes") or "").split(",")}
    if "gpu" not in types:
        return "GresTypes in slurm.conf lacks gpu"
    for sharing in sorted(types & {"mps", "shard"}):
        return f"GresTypes has {sharing}: fillers would carry {sharing}s too"
    return ""


def _of_the_node(site: SiteFiles, name: str) -> str:
    cores = site.node(name).get("RestrictedCoresPerGPU")
    if cores and cores != "0":
        return (
            f"{name} has RestrictedCoresPerGPU={cores}: cores would be kept for fillers too, and "
            "for an instance as many as for a whole GPU"
        )
    return ""


def refuse_other_way(site: SiteFiles, config: str) -> None:
    """Raises ConfigError where slurm.conf and our `slurm.config` say different things."""
    parameters = (site.value("SlurmctldParameters") or "").lower().split(",")
    configless = "enable_configless" in [p.strip() for p in parameters]
    if configless == (config == "configless"):
        return
    if configless:
        raise ConfigError(
            "SlurmctldParameters has enable_configless: a slurmd or sackd without files gets no "
            f"included file whose name has a slash, as ours have with `config: {config}`; "
            "nothing was changed",
            hint="Set `config: configless` in the configuration here and on the nodes.",
        )
    raise ConfigError(
        "`config: configless`, and SlurmctldParameters in slurm.conf lacks enable_configless; "
        "nothing was changed"
    )


def managed_node(
    site: SiteFiles,
    name: str,
    facts: NodeFacts,
    caps_dir: str,
    whole: Whole = Whole(),
    own_lines: Sequence[Any] = (),
    claims: Sequence[ownership.Claim] = (),
    *,
    slotted: bool = True,
) -> ManagedNode:
    """What the node will be in our care: constant count, slots of what is there, fillers, guard.

    `own_lines` are the gpu lines of a gres.conf that the node has for itself, `claims` what the
    site gives to others than Slurm. Without slots there are no fillers, and the count is what is
    there. Raises ConfigError for a node whose GPUs or lines are not understood.
    """
    outside = ownership.settle(claims, facts.gpus)
    gpus = ownership.stamped(facts.gpus, outside)
    definition = site.node(name)
    attributes = {
        k: v for k, v in definition.attributes.items() if k.lower() not in ("nodename", "gres")
    }
    lines = [*site.gres_lines(name), *own_lines]
    switchable = frozenset(g.index for g in gpus if whole.allows(g))
    types = _whole_types(name, gpus, lines, whole.type)
    types |= {index: whole.type for index in switchable if index not in types}
    _refuse_unusual(name, gpus)
    cut = [gpu for gpu in gpus if gpu.mig or gpu.index in switchable]
    total = sum(gpu.capacity if gpu in cut else 1 for gpu in gpus)
    devices = [d for gpu in gpus for d in slots.devices_of(gpu, types.get(gpu.index, ""))]
    order = slots.arrange(total, {}, devices) if slotted else slots.in_a_row(devices)
    arranged = slots.with_files(order, gpus, caps_dir)
    most = geometry.most_of(cut, types.values())
    return ManagedNode(
        name=name,
        attributes=attributes,
        slots=arranged,
        possible=tuple(sorted(most)),
        whole_types=types,
        switchable=switchable,
        profiles={gpu.index: gpu.profiles for gpu in gpus if gpu.index in switchable},
        cores=_cores(gpus, lines),
        baseline={
            g.index: tuple(sorted(g.layout - g.foreign)) for g in gpus if g.mig and not g.owner
        },
        partitions=tuple(site.partitions_of(name)),
        cards=drift.cards(facts.gpus),
        other_gres=_other_gres(definition.get("Gres") or ""),
        slotted=slotted,
        most=most,
        outside=outside,
        part_types=tuple(sorted(slots.part_types(p for gpu in cut for p in gpu.profiles))),
    )


def _other_gres(value: str) -> str:
    """The entries of a Gres value that are not about gpus."""
    entries = (entry.strip() for entry in re.split(r",(?![^(]*\))", value))
    return ",".join(e for e in entries if e and not re.match(r"gpu(:|$)", e, re.IGNORECASE))


def _refuse_unusual(name: str, gpus: Sequence[Gpu]) -> None:
    for gpu in gpus:
        if gpu.owner:
            continue
        for instance in gpu.instances:
            if instance.owner:
                continue
            if not instance.compute_instances:
                raise ConfigError(
                    f"{name} GPU {gpu.index}: {instance.placement} has no compute instance",
                    hint="Destroy that GPU instance first; nothing was changed.",
                )
            if not _comes_back(instance):
                raise ConfigError(
                    f"{name} GPU {gpu.index}: the compute instances of {instance.placement} would "
                    "come back with other ids after a boot; nothing was changed",
                    hint="Destroy that GPU instance, and make it with `slurm-mig apply`.",
                )
        if gpu.mig != gpu.mig_pending:
            raise ConfigError(
                f"{name} GPU {gpu.index}: a MIG mode change is pending; reset the GPU first"
            )


def _comes_back(instance: Instance) -> bool:
    """True if the same compute instances, made again widest first, have the same ids."""
    made = [(c.ci, c.slices) for c in instance.computes]
    return made == list(enumerate(sorted((c.slices for c in instance.computes), reverse=True)))


def _whole_types(
    name: str, gpus: Sequence[Gpu], lines: Sequence[Any], default: str
) -> dict[int, str]:
    """Slurm type of each GPU without MIG: the site's own, by its device file."""
    found = {}
    for gpu in gpus:
        if gpu.mig or gpu.owner:
            continue
        named = [_type(line) for line in lines if gpu.file in _files(line)]
        chosen = next((t for t in named if t), default)
        if not chosen:
            raise ConfigError(
                f"{name} GPU {gpu.index} ({gpu.model}) has MIG off and no Type in gres.conf",
                hint="Give it a Type there, or set whole_type in the configuration.",
            )
        found[gpu.index] = chosen
    return found


def _attribute(line: Any, key: str) -> str:
    return next((v for k, v in line.attributes.items() if k.lower() == key.lower()), "")


def _type(line: Any) -> str:
    return _attribute(line, "Type")


def _files(line: Any) -> list[str]:
    """Device files of a gres.conf line, `nvidia[0-1]` expanded."""
    text = _attribute(line, "File") or _attribute(line, "MultipleFiles")
    found = []
    for part in re.findall(r"[^,\[\]]+(?:\[[^\]]*\])?", text):
        match = re.fullmatch(r"([^\[]*)\[([^\]]*)\]", part)
        if match:
            found += [f"{match[1]}{i}" for i in sorted(_numbers(match[2]))]
        else:
            found.append(part)
    return found


def _numbers(text: str) -> set[int]:
    numbers: set[int] = set()
    for part in text.split(","):
        low, _, high = part.partition("-")
        numbers.update(range(int(low), int(high or low) + 1))
    return numbers


def _cores(gpus: Sequence[Gpu], lines: Sequence[Any]) -> dict[int, str]:
    found = {}
    for gpu in gpus:
        for line in lines:
            cores = _attribute(line, "Cores")
            if cores and gpu.file in _files(line):
                found[gpu.index] = cores
    return found


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

    def _facts(self, names: Sequence[str]) -> dict[str, NodeFacts]:
        found = {}
        for name, facts in self._nodes.observe(names).items():
            if isinstance(facts, SlurmMigError):
                raise facts
            found[name] = facts
        return found

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
        written = False
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
            self._apply(names, new, timing)
        except SlurmMigError:
            if written:
                self._commit(before, names)
                self._cluster.reconfigure()
            for name in fenced:
                self._resume(name)
            raise
        for name in names:
            self._release(name, timing)

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
