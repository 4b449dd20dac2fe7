"""The site's files with the enrolled nodes taken out: a pure function of text and names.

Every edit starts from the site's own text, so the result depends on what is asked for and never on
what was asked for before; with nothing asked for it is that text, byte for byte.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from slurm_mig.adapters.slurmfiles import blocks
from slurm_mig.adapters.slurmfiles.lines import Line, Pair
from slurm_mig.adapters.slurmfiles.site import BY_POSITION, Site, is_default, plain, value_list
from slurm_mig.adapters.slurmfiles.tree import Tree
from slurm_mig.core.hostlists import expand, fold, fold_set, is_name
from slurm_mig.errors import ConfigError, UsageError


@dataclass(frozen=True)
class Wanted:
    """What the files shall say: nodes in our care, catalog nodes and the partitions they join."""

    enrolled: frozenset[str] = frozenset()
    catalog: frozenset[str] = frozenset()
    catalog_partitions: Mapping[str, Collection[str]] = field(default_factory=dict)
    one_host: bool = False
    """The files are the enrolled node's own: a gres.conf line without NodeName is that node's."""

    @property
    def nothing(self) -> bool:
        """Is nothing of ours wanted in the files?"""
        return not self.enrolled and not self.catalog


def check(wanted: Wanted, site: Site) -> None:
    """Raises UsageError or ConfigError where the site's files do not fit what is wanted."""
    for name in sorted(wanted.enrolled):
        site.defined(name)
    there = set(site.node_names())
    for name in sorted(wanted.catalog):
        if not is_name(name):
            raise UsageError(f"{name!r} is not a node name")
        if name in there:
            raise ConfigError(
                f"{site.defined(name).line.where}: the catalog node {name} is a node of the "
                "site's; nothing was changed",
                hint="Choose another name for the catalog node.",
            )
    partitions = {partition.name for partition in site.partitions()}
    for partition, names in wanted.catalog_partitions.items():
        if partition not in partitions:
            raise UsageError(f"no PartitionName line defines {partition}")
        for name in names:
            if name not in wanted.catalog:
                raise UsageError(f"partition {partition}: {name} is not a catalog node")


def edit_slurm(tree: Tree, wanted: Wanted, include: str) -> dict[Path, str]:
    """slurm.conf and its included files as wanted. Raises ConfigError.

    Our Include comes before the first NodeName line of any kind, where no DEFAULT is in force.
    """
    if wanted.nothing:
        return _rendered(tree, {}, None, None)
    instead: dict[tuple[Path, int], str] = {}
    default_nodes: str | None = None
    for line in tree.lines:
        if line.kind == "nodename" and not is_default(line):
            _put(instead, line, _without_nodes(line, wanted.enrolled))
        elif line.kind == "partitionname":
            if is_default(line):
                default_nodes = line.value("Nodes") or default_nodes
                continue
            names = wanted.catalog_partitions.get(line.pairs[0].value, ())
            _put(instead, line, _with_catalog(line, names, default_nodes))
    anchor = _first_node_line(tree) or _first_directive(tree)
    return _rendered(tree, instead, anchor, include)


def edit_gres(tree: Tree, wanted: Wanted, include: str) -> dict[Path, str]:
    """gres.conf and its included files as wanted. Raises ConfigError.

    Our Include comes first: a line without Flags inherits those of the gpu line before it.
    """
    if wanted.nothing:
        return _rendered(tree, {}, None, None)
    instead: dict[tuple[Path, int], str] = {}
    for line in tree.lines:
        if line.kind == "name" and wanted.one_host and line.pairs[0].value.lower() == "gpu":
            _put(instead, line, "")
        elif line.kind == "name":
            _refuse_for_all(line, wanted)
        elif line.kind == "nodename":
            _put(instead, line, _without_gpus(line, wanted.enrolled))
    return _rendered(tree, instead, _first_directive(tree), include)


def _without_nodes(line: Line, enrolled: Collection[str]) -> str | None:
    """The NodeName line for the other nodes: None if it has them all, '' if none is left."""
    names = expand(line.pairs[0].value, line.where)
    stay = [i for i, name in enumerate(names) if name not in enrolled]
    if len(stay) == len(names):
        return None
    if not stay:
        return ""
    values: dict[Pair, str] = {line.pairs[0]: fold([names[i] for i in stay])}
    for pair in line.pairs[1:]:
        key = pair.key.lower()
        # A key given twice counts once, the last: the others keep their text.
        if key not in BY_POSITION or pair is not line.pair(key):
            continue
        every = value_list(key, pair.value, line.where)
        if len(every) == len(names):
            values[pair] = _fold_values(key, [every[i] for i in stay])
        elif len(every) != 1:
            raise ConfigError(
                f"{line.where}: {pair.key} has {len(every)} values for {len(names)} nodes; "
                "nothing was changed",
                hint="Give one value, or one for each node.",
            )
    return line.replaced(values)


def _fold_values(key: str, values: Sequence[str]) -> str:
    if key == "port":
        return f"[{','.join(values)}]" if len(values) > 1 else values[0]
    return fold(values)


def _without_gpus(line: Line, enrolled: Collection[str]) -> str | None:
    """The gres.conf line for the other nodes: None if it stays, '' if none is left."""
    plain(line, line.pairs[0])
    names = expand(line.pairs[0].value, line.where)
    name = (line.value("Name") or "").lower()
    detects = line.pair("AutoDetect") is not None
    if not set(names) & set(enrolled) or not (name == "gpu" or detects):
        return None
    if name not in ("", "gpu"):
        raise ConfigError(
            f"{line.where}: AutoDetect on a Name={name} line of a node in slurm-mig's care; "
            "nothing was changed",
            hint=f"Give AutoDetect a line of its own: NodeName={line.pairs[0].value} "
            f"AutoDetect={line.value('AutoDetect')}",
        )
    rest = [node for node in names if node not in enrolled]
    return line.replaced({line.pairs[0]: fold(rest)}) if rest else ""


def _refuse_for_all(line: Line, wanted: Wanted) -> None:
    if line.pairs[0].value.lower() == "gpu" and wanted.enrolled:
        nodes = fold_set(wanted.enrolled)
        raise ConfigError(
            f"{line.where}: a Name=gpu line without NodeName applies to every node, also to "
            f"{nodes} in slurm-mig's care; nothing was changed",
            hint="Begin the line with NodeName= and the nodes that it is meant for.",
        )


def _with_catalog(line: Line, names: Collection[str], default_nodes: str | None) -> str | None:
    """The PartitionName line with the catalog's nodes, or None where it stays as it is."""
    if not names:
        return None
    pair = line.pair("Nodes")
    in_force = pair.value if pair else default_nodes or ""
    if in_force.upper() == "ALL":
        return None
    if pair is None:
        raise ConfigError(
            f"{line.where}: partition {line.pairs[0].value} has no Nodes= of its own to which "
            "the catalog node could be added; nothing was changed",
            hint="Write Nodes= on this line, or leave the partition out of the catalog.",
        )
    plain(line, pair)
    added = fold_set(names)
    now = line.raw[pair.start : pair.end]
    return line.replaced({pair: f"{now},{added}" if now else added})


def _first_node_line(tree: Tree) -> Line | None:
    """The root's line through which the first NodeName line of any kind is read."""
    return next((top for line, top in tree.order if line.kind == "nodename"), None)


def _first_directive(tree: Tree) -> Line | None:
    return next((top for _, top in tree.order if top.pairs or top.include), None)


def _put(instead: dict[tuple[Path, int], str], line: Line, text: str | None) -> None:
    if text is not None:
        instead[line.path, line.number] = text


def _rendered(
    tree: Tree, instead: Mapping[tuple[Path, int], str], anchor: Line | None, include: str | None
) -> dict[Path, str]:
    texts = {}
    for path, lines in tree.files.items():
        parts = [_one(line, instead.get((line.path, line.number))) for line in lines]
        if path == tree.root and include is not None:
            at = lines.index(anchor) if anchor else 0
            raw = anchor.raw if anchor else "".join(line.raw for line in lines)
            eol = "\r\n" if "\r\n" in raw else "\n"
            parts.insert(at, blocks.add(f"Include {include}", eol))
        texts[path] = "".join(parts)
    return texts


def _one(line: Line, instead: str | None) -> str:
    return line.raw if instead is None else blocks.keep(line.raw, instead)
