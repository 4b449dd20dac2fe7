"""A cluster and its queue as plain values, so that a plan can be made again elsewhere.

Written by `slurm-mig snapshot`, read by `slurm-mig plan --nodes FILE --jobs FILE`. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from slurm_mig.core.codec import decode, encode
from slurm_mig.core.model import Device, Gpu, JobRequest, NodeView, Placement
from slurm_mig.core.recordedrules import RecordedRules, renamed

VERSION = 1


@dataclass(frozen=True)
class Nodes:
    """The managed nodes at one moment."""

    time: float
    """In seconds since the epoch."""
    nodes: tuple[NodeView, ...]
    baselines: Mapping[str, Mapping[int, tuple[Placement, ...]]] = field(default_factory=dict)
    rules: RecordedRules | None = None
    """What the site wanted of a plan then; None: the defaults."""
    version: int = VERSION


@dataclass(frozen=True)
class Jobs:
    """Every pending job that asks for gpus, in no order."""

    jobs: tuple[JobRequest, ...]
    version: int = VERSION


def plain(value: Nodes | Jobs) -> dict[str, Any]:
    """For a JSON file."""
    encoded: dict[str, Any] = encode(value)
    return encoded


def nodes_of(data: Any, where: str) -> Nodes:
    """Raises ConfigError, naming the place of the first fault."""
    return decode(Nodes, data, where)


def jobs_of(data: Any, where: str) -> Jobs:
    """Raises ConfigError, naming the place of the first fault."""
    return decode(Jobs, data, where)


def anonymous(nodes: Nodes, jobs: Jobs) -> tuple[Nodes, Jobs]:
    """The same without names: of nodes, users, accounts, partitions, features and reservations,
    and without UUIDs and reasons. The same plan comes of it, in other words."""
    names = _Names()
    views = tuple(_view(view, names) for view in nodes.nodes)
    baselines = {names.of("node", n): layouts for n, layouts in nodes.baselines.items()}
    rules = renamed(nodes.rules, names.of) if nodes.rules else None
    requests = tuple(_request(request, names) for request in jobs.jobs)
    hidden = replace(nodes, nodes=views, baselines=baselines, rules=rules)
    return hidden, replace(jobs, jobs=requests)


class _Names:
    """`node1`, `node2`, … for what is first met first."""

    def __init__(self) -> None:
        self._known: dict[str, dict[str, str]] = {}

    def of(self, kind: str, name: str) -> str:
        if not name:
            return name
        known = self._known.setdefault(kind, {})
        return known.setdefault(name, f"{kind}{len(known) + 1}")

    def all_of(self, kind: str, names: Iterable[str]) -> frozenset[str]:
        return frozenset(self.of(kind, name) for name in sorted(names))


def _view(view: NodeView, names: _Names) -> NodeView:
    slurm = view.slurm
    shown = replace(
        slurm,
        name=names.of("node", slurm.name),
        reason="",
        partitions=names.all_of("partition", slurm.partitions),
        features=names.all_of("feature", slurm.features),
        allocations=tuple(replace(a, user=names.of("user", a.user)) for a in slurm.allocations),
        unsettled=tuple("unsettled" for _ in slurm.unsettled),
        reservations=tuple(
            replace(r, name=names.of("reservation", r.name)) for r in slurm.reservations
        ),
    )
    return replace(
        view,
        slurm=shown,
        note="" if not view.note else view.condition.value,
        gpus=tuple(_gpu(gpu) for gpu in view.gpus),
        slots=tuple(_without_uuid(device) for device in view.slots),
        outside=tuple(_gpu(gpu) for gpu in view.outside),
    )


def _gpu(gpu: Gpu) -> Gpu:
    instances = tuple(
        replace(i, uuid="", computes=tuple(replace(c, uuid="") for c in i.computes))
        for i in gpu.instances
    )
    return replace(gpu, uuid=f"GPU-{gpu.index}", pci="", instances=instances)


def _without_uuid(device: Device) -> Device:
    return replace(device, uuid="")


def _request(request: JobRequest, names: _Names) -> JobRequest:
    partitions = request.partition.split(",")
    return replace(
        request,
        user=names.of("user", request.user),
        account=names.of("account", request.account),
        partition=",".join(names.of("partition", p) for p in partitions),
        features=tuple(names.all_of("feature", wanted) for wanted in request.features),
        required_nodes=names.all_of("node", request.required_nodes),
        excluded_nodes=names.all_of("node", request.excluded_nodes),
        reservation=names.of("reservation", request.reservation),
    )
