"""The planner's rules at one moment, as they are kept in a snapshot. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from slurm_mig.core.planning.limits import Limits
from slurm_mig.core.planning.rules import Caps, Rules, SiteRules

T = TypeVar("T")

Rename = Callable[[str, str], str]
"""From a kind of name (`node`, `user`, `account`, `partition`, `group`) and a name to another."""


@dataclass(frozen=True)
class NodeRules:
    """What holds for one node."""

    frozen: str = ""
    """Why nothing may change there; empty: something may."""
    frozen_gpus: Mapping[int, str] = field(default_factory=dict)
    limits: str = ""
    """The group whose limits count; empty: none."""
    only_baseline: bool = False
    patience: tuple[float, ...] = ()
    """Seconds of withholding, and of a fence; empty: as the jobs have it."""
    exclude_users: frozenset[str] = frozenset()
    exclude_partitions: frozenset[str] = frozenset()
    to_baseline: tuple[int, ...] = ()
    """GPUs that get their baseline back if nobody uses them."""
    soon_s: float | None = None
    """None: as everywhere."""
    caps: str = ""
    """The group whose caps count; empty: none."""


@dataclass(frozen=True)
class RecordedRules(SiteRules):
    """What holds everywhere, and by node."""

    limits: Mapping[str, Limits] = field(default_factory=dict)
    """By group."""
    caps: Mapping[str, Caps] = field(default_factory=dict)
    """By group."""
    nodes: Mapping[str, NodeRules] = field(default_factory=dict)


def recorded(rules: Rules) -> RecordedRules:
    """The rules for a file."""
    gpus = {*rules.frozen_gpus, *rules.to_baseline}
    names = {*rules.frozen, *rules.limits, *rules.only_baseline, *rules.patience, *rules.barred}
    names |= {*rules.soon, *rules.caps}
    limits, caps = _numbered(rules.limits.values()), _numbered(rules.caps.values())
    groups = {id(mine): n for known in (limits, caps) for n, mine in known.items()}
    return RecordedRules(
        **rules.site,
        limits=limits,
        caps=caps,
        nodes={
            name: _of_node(rules, name, groups) for name in sorted(names | {n for n, _ in gpus})
        },
    )


def _numbered(rules: Iterable[T]) -> dict[str, T]:
    """One object for each group, by a number."""
    distinct = {id(mine): mine for mine in rules}.values()
    return {f"{n}": mine for n, mine in enumerate(distinct, 1)}


def _of_node(rules: Rules, name: str, groups: Mapping[int, str]) -> NodeRules:
    users, partitions = rules.barred.get(name, (frozenset[str](), frozenset[str]()))
    return NodeRules(
        rules.frozen.get(name, ""),
        {gpu: why for (node, gpu), why in rules.frozen_gpus.items() if node == name},
        groups[id(rules.limits[name])] if name in rules.limits else "",
        name in rules.only_baseline,
        rules.patience.get(name, ()),
        users,
        partitions,
        tuple(sorted(gpu for node, gpu in rules.to_baseline if node == name)),
        rules.soon.get(name),
        groups[id(rules.caps[name])] if name in rules.caps else "",
    )


def rules_of(kept: RecordedRules) -> Rules:
    """The rules as the planner has them. A group that is not there has no limits."""
    nodes = kept.nodes
    return Rules(
        **kept.site,
        frozen={name: mine.frozen for name, mine in nodes.items() if mine.frozen},
        frozen_gpus={
            (name, gpu): why
            for name, mine in nodes.items()
            for gpu, why in mine.frozen_gpus.items()
        },
        limits={
            n: kept.limits[mine.limits] for n, mine in nodes.items() if mine.limits in kept.limits
        },
        only_baseline=frozenset(name for name, mine in nodes.items() if mine.only_baseline),
        patience={n: (m.patience[0], m.patience[-1]) for n, m in nodes.items() if m.patience},
        soon={name: mine.soon_s for name, mine in nodes.items() if mine.soon_s is not None},
        caps={n: kept.caps[mine.caps] for n, mine in nodes.items() if mine.caps in kept.caps},
        barred={
            name: (mine.exclude_users, mine.exclude_partitions)
            for name, mine in nodes.items()
            if mine.exclude_users or mine.exclude_partitions
        },
        to_baseline=frozenset(
            (name, gpu) for name, mine in nodes.items() for gpu in mine.to_baseline
        ),
    )


def renamed(kept: RecordedRules, rename: Rename) -> RecordedRules:
    """The same without the site's names and words."""

    def all_of(kind: str, names: Iterable[str]) -> frozenset[str]:
        return frozenset(rename(kind, name) for name in sorted(names))

    return replace(
        kept,
        exclude_users=all_of("user", kept.exclude_users),
        exclude_partitions=all_of("partition", kept.exclude_partitions),
        limits={
            n: Limits(rename("group", mine.group), mine.least, mine.most)
            for n, mine in kept.limits.items()
        },
        caps={n: replace(mine, group=rename("group", mine.group)) for n, mine in kept.caps.items()},
        nodes={
            rename("node", name): NodeRules(
                "stays as it is" if mine.frozen else "",
                dict.fromkeys(mine.frozen_gpus, "stays as it is"),
                mine.limits,
                mine.only_baseline,
                mine.patience,
                all_of("user", mine.exclude_users),
                all_of("partition", mine.exclude_partitions),
                mine.to_baseline,
                mine.soon_s,
                mine.caps,
            )
            for name, mine in kept.nodes.items()
        },
    )
