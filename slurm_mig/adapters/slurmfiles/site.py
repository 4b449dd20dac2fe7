"""What the site's slurm.conf and gres.conf say about nodes, partitions and gpus.

Always the site's own text: where slurm-mig has put something else in force, this still gives what
the site wrote. Pure: lines in, frozen records out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from slurm_mig.adapters.slurmfiles.lines import Line, Pair
from slurm_mig.core.hostlists import elements, expand, fold_set
from slurm_mig.errors import ConfigError, UsageError

BY_POSITION = ("nodehostname", "nodeaddr", "bcastaddr", "port")
"""Attributes of a NodeName line that may list one value for each node (expand_nodeline_info)."""

_NOT_IN_DEFAULT = frozenset({"nodehostname", "nodeaddr", "bcastaddr"})
_SAME = {"feature": "features", "features": "feature"}

Attributes = dict[str, tuple[str, str]]
"""lower-case key -> (key as spelled, value)"""


@dataclass(frozen=True)
class NodeDefinition:
    """One node as the site defines it: `attributes` in the site's spelling, DEFAULTs merged in,
    of a list by position (NodeAddr, Port, …) the node's own value; never NodeName itself."""

    name: str
    attributes: Mapping[str, str]
    path: Path
    line: int

    def get(self, key: str) -> str | None:
        """The value of `key` in any case, or None."""
        return _get(self.attributes, key)


@dataclass(frozen=True)
class Partition:
    """A partition; `nodes` is a host list (NodeSet= names resolved), 'ALL', or ''."""

    name: str
    nodes: str
    path: Path
    line: int


@dataclass(frozen=True)
class GresLine:
    """A Name=gpu line of gres.conf; `nodes` is its NodeName value, None where it has none."""

    nodes: str | None
    attributes: Mapping[str, str]
    path: Path
    line: int

    def get(self, key: str) -> str | None:
        """The value of `key` in any case, or None."""
        return _get(self.attributes, key)


@dataclass(frozen=True)
class _Defined:
    line: Line
    position: int
    count: int
    defaults: Attributes


class Site:
    """Answers from the logical lines of slurm.conf and gres.conf, includes in place."""

    def __init__(self, slurm: Sequence[Line], gres: Sequence[Line]) -> None:
        self._slurm = slurm
        self._gres = gres

    def node(self, name: str) -> NodeDefinition:
        """The site's definition of a node.

        Raises UsageError where there is none, ConfigError where it is there twice or not
        understood.
        """
        defined = self.defined(name)
        merged = _merge(defined.defaults, defined.line.pairs[1:], defined.line)
        attributes = {
            spelled: value_at(key, value, defined.position, defined.count, defined.line.where)
            for key, (spelled, value) in merged.items()
        }
        return NodeDefinition(name, attributes, defined.line.path, defined.line.number)

    def defined(self, name: str) -> _Defined:
        """Where a node is defined; errors as `node`."""
        found = self._nodes.get(name, [])
        if not found:
            raise UsageError(f"no NodeName line defines {name}")
        if len(found) > 1:
            raise ConfigError(
                f"{found[1].line.where}: node {name} is already defined at "
                f"{found[0].line.where}; nothing was changed",
                hint="Remove one of the two definitions.",
            )
        return found[0]

    def node_names(self) -> list[str]:
        """All node names, in the order of the files. Raises ConfigError."""
        return list(self._nodes)

    def partitions(self) -> list[Partition]:
        """All partitions, in the order of the files. Raises ConfigError."""
        found = []
        default = ""
        for line in self._slurm:
            if line.kind != "partitionname":
                continue
            nodes = line.value("Nodes")
            if line.pairs[0].value.upper() == "DEFAULT":
                default = default if nodes is None else nodes
                continue
            text = self._resolved(default if nodes is None else nodes, line)
            found.append(Partition(line.pairs[0].value, text, line.path, line.number))
        return found

    def partitions_of(self, node: str) -> list[str]:
        """Names of the partitions that hold a node. Raises ConfigError."""
        held = []
        for partition in self.partitions():
            where = f"{partition.path}:{partition.line}"
            nodes = partition.nodes
            if nodes == "ALL" or (nodes and node in expand(nodes, where)):
                held.append(partition.name)
        return held

    def value(self, key: str) -> str | None:
        """The value of a simple option such as SelectType; the last line wins, as in Slurm."""
        found = [line.pairs[0].value for line in self._slurm if line.kind == key.lower()]
        return found[-1] if found else None

    def gres_lines(self, node: str) -> list[GresLine]:
        """The Name=gpu lines that apply to a node, in Slurm's order: those without NodeName first.

        Raises ConfigError for a NodeName that is not understood.
        """
        found = []
        for line in self._gres:
            if (line.value("Name") or "").lower() != "gpu" or line.kind not in ("name", "nodename"):
                continue
            nodes = line.value("NodeName")
            if nodes is None or node in expand(nodes, line.where):
                attributes = {p.key: p.value for p in line.pairs if p.key.lower() != "nodename"}
                found.append(GresLine(nodes, attributes, line.path, line.number))
        return sorted(found, key=lambda gres: gres.nodes is not None)

    def autodetect(self, node: str) -> str | None:
        """The AutoDetect in force for a node: its own, or the global one, or None."""
        everywhere = None
        for line in self._gres:
            value = line.value("AutoDetect")
            if value is None:
                continue
            if line.kind == "autodetect":
                everywhere = value
            elif line.kind == "nodename" and node in expand(line.pairs[0].value, line.where):
                return value
        return everywhere

    @cached_property
    def _nodes(self) -> dict[str, list[_Defined]]:
        nodes: dict[str, list[_Defined]] = {}
        defaults: Attributes = {}
        for line in self._slurm:
            if line.kind != "nodename":
                continue
            if is_default(line):
                defaults = _merge(defaults, line.pairs[1:], line)
                continue
            names = node_names(line)
            for position, name in enumerate(names):
                nodes.setdefault(name, []).append(_Defined(line, position, len(names), defaults))
        return nodes

    def _resolved(self, nodes: str, line: Line) -> str:
        """A partition's Nodes with NodeSet= names replaced by what they stand for."""
        if nodes.upper() == "ALL":
            return "ALL"
        if not nodes or not any(element in self._node_sets for element in elements(nodes)):
            return nodes
        names: dict[str, None] = {}
        for element in elements(nodes):
            if element not in self._node_sets:
                names.update(dict.fromkeys(expand(element, line.where)))
                continue
            for inside in self._node_sets[element]:
                if inside == "ALL":
                    return "ALL"
                names[inside] = None
        return fold_set(names) if names else ""

    @cached_property
    def _node_sets(self) -> dict[str, list[str]]:
        sets: dict[str, list[str]] = {}
        for line in self._slurm:
            if line.kind != "nodeset":
                continue
            members = sets.setdefault(line.pairs[0].value, [])
            nodes, feature = line.value("Nodes"), line.value("Feature")
            if nodes and nodes.upper() == "ALL":
                members.append("ALL")
            elif nodes:
                members.extend(expand(nodes, line.where))
            if feature:
                members.extend(name for name in self._nodes if feature in self._features(name))
        return sets

    def _features(self, name: str) -> list[str]:
        node = self.node(name)
        return (node.get("Feature") or node.get("Features") or "").split(",")


def is_default(line: Line) -> bool:
    """Is this a NodeName=DEFAULT line?"""
    return line.pairs[0].value.upper() == "DEFAULT"


def node_names(line: Line) -> list[str]:
    """The names that a NodeName line lists, in its order. Raises ConfigError."""
    pair = line.pairs[0]
    plain(line, pair)
    if pair.value.upper() == "ALL":
        raise ConfigError(f"{line.where}: NodeName=ALL is not allowed; nothing was changed")
    return expand(pair.value, line.where)


def plain(line: Line, pair: Pair) -> None:
    """Raises ConfigError for `Key+=…` and the like, which Slurm takes without adding anything."""
    if pair.op:
        raise ConfigError(
            f"{line.where}: {pair.key}{pair.op}= is not understood; nothing was changed",
            hint=f"Write {pair.key}= with the whole value.",
        )


def value_list(key: str, value: str, where: str) -> list[str]:
    """The single values of a NodeAddr, NodeHostname, BcastAddr or Port. Raises ConfigError."""
    if key == "port" and not value.startswith("[") and ("-" in value or "," in value):
        value = f"[{value}]"
    return expand(value, where)


def value_at(key: str, value: str, position: int, count: int, where: str) -> str:
    """The value for the node at `position` of `count`; other keys have one value for all.

    Raises ConfigError where a list has neither one value nor one for each node.
    """
    if key not in BY_POSITION or (count == 1 and "[" not in value):
        return value
    values = value_list(key, value, where)
    if len(values) == 1:
        return values[0]
    if len(values) != count:
        raise ConfigError(
            f"{where}: {value!r} has {len(values)} values for {count} nodes; nothing was changed",
            hint="Give one value, or one for each node.",
        )
    return values[position]


def _merge(defaults: Attributes, own: Sequence[Pair], line: Line) -> Attributes:
    keys = {pair.key.lower() for pair in own}
    # Feature and Features are one attribute: a node's own spelling displaces the default's other.
    merged = {key: value for key, value in defaults.items() if _SAME.get(key) not in keys}
    for pair in own:
        key = pair.key.lower()
        if is_default(line) and key in _NOT_IN_DEFAULT:
            raise ConfigError(
                f"{line.where}: {pair.key} is not allowed with NodeName=DEFAULT; "
                "nothing was changed"
            )
        merged[key] = (pair.key, pair.value)
    return merged


def _get(attributes: Mapping[str, str], key: str) -> str | None:
    found = [value for name, value in attributes.items() if name.lower() == key.lower()]
    return found[-1] if found else None
