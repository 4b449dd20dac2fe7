"""What the site wants of a plan, as values: made by `policy.Policy.rules`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from slurm_mig.core.planning.limits import Limits
from slurm_mig.core.planning.weights import Weights


@dataclass(frozen=True)
class SiteRules:
    """What holds everywhere."""

    weights: Weights = field(default_factory=Weights)
    time_limit_s: float = 10.0
    """For the programme; what is found by then is taken, with its gap."""
    soon_s: float = 0.0
    """A job that running jobs make room for within so long, by their time limits, is no demand."""
    per_user: int = 0
    """How many jobs of one user may cause changes at a time; 0: any number."""
    per_account: int = 0
    withhold_jobs: int = 4
    """For how many waiting jobs instances may be withheld, or a node fenced, at a time."""
    withhold_s: float = 3600.0
    """For how long they may be withheld."""
    exclude_users: frozenset[str] = frozenset()
    """Whose jobs cause no change."""
    exclude_partitions: frozenset[str] = frozenset()

    @property
    def site(self) -> dict[str, Any]:
        """These fields alone, for rules that have more."""
        return {f.name: getattr(self, f.name) for f in fields(SiteRules)}


@dataclass(frozen=True)
class Caps:
    """How many jobs may cause changes on the nodes of a group at a time; 0: any number."""

    group: str
    """As people know it."""
    per_user: int = 0
    per_account: int = 0


@dataclass(frozen=True)
class Rules(SiteRules):
    """What the site wants of a plan, and what holds for single nodes at that moment."""

    frozen: Mapping[str, str] = field(default_factory=dict)
    """Nodes on which nothing may change now, and why. What is free there still counts."""
    frozen_gpus: Mapping[tuple[str, int], str] = field(default_factory=dict)
    """The same for single GPUs, by node and index."""
    limits: Mapping[str, Limits] = field(default_factory=dict)
    """By node, its group's least and most of profiles; the same object for all of a group."""
    only_baseline: frozenset[str] = frozenset()
    """Nodes on which room that is left is the baseline's, whatever waits."""
    patience: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """By node, where its group has its own: for how long instances may be withheld there, and how
    long a fence may then wait, in seconds."""
    soon: Mapping[str, float] = field(default_factory=dict)
    """By node, where its group has its own: `soon_s` there."""
    caps: Mapping[str, Caps] = field(default_factory=dict)
    """By node, its group's caps, besides those for everywhere; the same object for all of a group.
    """
    barred: Mapping[str, tuple[frozenset[str], frozenset[str]]] = field(default_factory=dict)
    """By node: users and partitions whose jobs cause no change there."""
    to_baseline: frozenset[tuple[str, int]] = frozenset()
    """GPUs that get their baseline back if nobody uses them or waits for what they are."""

    @property
    def apart(self) -> bool:
        """Some jobs may cause changes on some of their nodes only."""
        return bool(self.barred or self.caps or self.exclude_partitions)
