"""Whom Slurm may preempt for whom, as far as gpus are concerned.

A job that will start because Slurm takes the gpus of another is no reason to reshape a node. Only
REQUEUE and CANCEL free gpus: a suspended job keeps its devices, so the job that waits for them goes
on waiting (measured), and is demand.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

FREES_GPUS = frozenset({"REQUEUE", "CANCEL"})


@dataclass(frozen=True)
class Candidate:
    """A job, as preemption looks at it."""

    job_id: int
    partition: str
    qos: str = ""


@dataclass(frozen=True)
class Rules:
    """Slurm's configuration: `kind` is `partition_prio`, `qos` or empty; `modes` are by partition
    or QOS, `mode` is the cluster's."""

    kind: str = ""
    tiers: Mapping[str, int] = field(default_factory=dict)
    """PriorityTier by partition."""
    lists: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """What each QOS may preempt."""
    modes: Mapping[str, str] = field(default_factory=dict)
    mode: str = ""


def victims(job: Candidate, running: Collection[Candidate], rules: Rules) -> frozenset[int]:
    """Running jobs that Slurm may stop so that this one gets their gpus."""
    return frozenset(other.job_id for other in running if _may_stop(job, other, rules))


def _may_stop(job: Candidate, other: Candidate, rules: Rules) -> bool:
    if rules.kind == "partition_prio":
        lower = rules.tiers.get(other.partition, 0) < rules.tiers.get(job.partition, 0)
        return lower and _frees(rules.modes.get(other.partition, ""), rules)
    if rules.kind == "qos":
        listed = other.qos in rules.lists.get(job.qos, frozenset())
        return listed and _frees(rules.modes.get(other.qos, ""), rules)
    return False


def _frees(mode: str, rules: Rules) -> bool:
    """A QOS without a mode of its own shows `cluster`: the cluster's counts."""
    if rules.kind == "qos" and mode in ("", "CLUSTER"):
        mode = rules.mode
    return bool(set(re.split(r"[,+ ]", (mode or rules.mode).upper())) & FREES_GPUS)


def parse_qos(text: str) -> tuple[dict[str, frozenset[str]], dict[str, str]]:
    """Preempt lists and modes by QOS, from `sacctmgr -nP show qos format=name,preempt,preemptmode`
    (slurmctld itself shows the modes only)."""
    lists: dict[str, frozenset[str]] = {}
    modes: dict[str, str] = {}
    for line in text.splitlines():
        name, preempts, mode = (*line.split("|"), "", "", "")[:3]
        lists[name] = frozenset(filter(None, preempts.split(",")))
        modes[name] = mode.upper()
    return lists, modes
