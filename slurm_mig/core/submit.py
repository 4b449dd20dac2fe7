"""What the submit plugin must know, as Lua tables that etc/job_submit.lua reads."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from slurm_mig.core import demand
from slurm_mig.core.model import NodeCondition, NodeView, is_filler
from slurm_mig.core.publish import Record
from slurm_mig.core.records import ManagedNode


@dataclass(frozen=True)
class Partition:
    """A partition of the site: its nodes in our care, and the Gres of its others."""

    name: str
    managed: tuple[ManagedNode, ...] = ()
    others: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    """The names of all its nodes, ours and others."""

    @property
    def possible(self) -> frozenset[str]:
        """Every gpu type that a job can ever get here; of parts of split instances, which only an
        administrator makes, those that are there."""
        found = {t for node in self.managed for t in (*node.possible, *node.parts)}
        return frozenset(found.union(*(demand.parse_gres(gres) for gres in self.others)))

    @property
    def is_open(self) -> bool:
        """True if a node that is not ours has gpus without a type: not every type is known."""
        words = (word.split("(")[0].split(":") for gres in self.others for word in gres.split(","))
        return any(word[0] == "gpu" and len(word) < 3 for word in words)


def partitions(
    sites: Mapping[str, Collection[str]], managed: Sequence[ManagedNode], gres: Mapping[str, str]
) -> list[Partition]:
    """The partitions with a node in our care, from each one's node names and each node's Gres."""
    ours = {node.name: node for node in managed}
    found = (
        Partition(
            name,
            tuple(ours[n] for n in sorted(nodes) if n in ours),
            tuple(gres[n] for n in sorted(nodes) if n not in ours and gres.get(n)),
            tuple(sorted(nodes)),
        )
        for name, nodes in sites.items()
    )
    return [partition for partition in found if partition.managed]


@dataclass(frozen=True)
class Shape:
    """Managed nodes that are alike, and the catalog's records that stand for them."""

    nodes: tuple[str, ...]
    records: tuple[str, ...]
    most: Mapping[str, int]
    """The most devices of each type that one of them can have."""
    cpus: int
    """Of one of them; 0 where slurm.conf does not say."""


def shapes(records: Sequence[Record], managed: Sequence[ManagedNode]) -> list[Shape]:
    """The shapes that the catalog has records for."""
    ours = {node.name: node for node in managed}
    found: dict[tuple[str, ...], list[str]] = {}
    for record in records:
        found.setdefault(record.like, []).append(record.name)
    return [
        Shape(like, tuple(names), ours[like[0]].most, _cpus(ours[like[0]]))
        for like, names in found.items()
    ]


def _cpus(node: ManagedNode) -> int:
    text = {k.lower(): v for k, v in node.attributes.items()}.get("cpus", "")
    return int(text) if text.isdecimal() else 0


@dataclass(frozen=True)
class Rules:
    """What the site's configuration says of submission; etc/slurm-mig.yaml explains each."""

    default_types: Mapping[str, str] = field(default_factory=dict)
    untyped: str = "default"
    exclusive: str = "allow"
    long_names: Mapping[str, str] = field(default_factory=dict)
    wake_file: str = ""
    free_file: str = ""


def submit_table(
    rules: Rules,
    places: Sequence[Partition],
    fillers: Collection[str],
    alike: Sequence[Shape] = (),
) -> str:
    """`return { … }`: the rules, what is possible in each partition and on each node, what nobody
    may ask for."""
    table = {
        "untyped": rules.untyped,
        "exclusive": rules.exclusive,
        "default_types": dict(rules.default_types),
        "long_names": dict(rules.long_names),
        "possible": {p.name: sorted(p.possible) for p in places},
        "managed": sorted(p.name for p in places),
        "open": sorted(p.name for p in places if p.is_open),
        "fillers": sorted(fillers),
        "nodes": {p.name: list(p.nodes) for p in places} if alike else {},
        "shapes": [
            {"nodes": list(s.nodes), "records": list(s.records), "most": s.most, "cpus": s.cpus}
            for s in alike
        ],
        "parts": parts([node for place in places for node in place.managed]),
        "wake": rules.wake_file or None,
        "free": rules.free_file or None,
    }
    return _chunk(table)


def parts(managed: Iterable[ManagedNode]) -> dict[str, list[str]]:
    """Types of compute instances of split GPU instances, by node that has some."""
    return {node.name: sorted(node.parts) for node in managed if node.parts}


def knows_parts(table: str, managed: Iterable[ManagedNode]) -> bool:
    """True if a table was written while the nodes had the parts that they have."""
    return f"  parts = {_lua(parts(managed))},\n" in table


def free_table(at: float, free: Mapping[str, Mapping[str, int]]) -> str:
    """How many devices of each type a cycle left free in each partition, for the plugin's wake."""
    return _chunk({"at": f"{at:.6f}", "free": {p: dict(types) for p, types in free.items()}})


def free_by_partition(
    views: Iterable[NodeView], changed: Collection[str]
) -> dict[str, dict[str, int]]:
    """Devices that a job could have at once, by partition and type; none of a changed node, whose
    view is from before."""
    found: dict[str, dict[str, int]] = {}
    for view in views:
        if view.condition is not NodeCondition.USABLE or view.name in changed:
            continue
        for index, device in enumerate(view.slots):
            if is_filler(device.type) or index in view.busy:
                continue
            for partition in view.slurm.partitions:
                types = found.setdefault(partition, {})
                types[device.type] = types.get(device.type, 0) + 1
    return found


def _chunk(table: Mapping[str, Any]) -> str:
    lines = [f"  {key} = {_lua(value)},\n" for key, value in table.items() if value is not None]
    return f"-- Written by slurm-mig: do not edit.\nreturn {{\n{''.join(lines)}}}\n"


def _lua(value: object) -> str:
    """A text, a number, a list or a mapping as Lua writes it."""
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, Mapping):
        inside = ", ".join(f"[{_text(k)}] = {_lua(v)}" for k, v in sorted(value.items()))
        return f"{{ {inside} }}"
    if isinstance(value, list):
        return "{ " + ", ".join(map(_lua, value)) + " }"
    return repr(value)


def _text(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
