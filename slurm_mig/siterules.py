"""The configuration's policy and weights as the rules of the core."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

from slurm_mig.config import GroupSettings, Settings
from slurm_mig.core import windows
from slurm_mig.core.planning.rules import Rules
from slurm_mig.core.planning.weights import Weights
from slurm_mig.core.policy import GroupRules


def planning_rules(settings: Settings) -> Rules:
    """What the planner goes by, whatever the nodes are."""
    rules, weights = settings.policy, Weights(**dataclasses.asdict(settings.weights))
    if settings.slurm.publish == "reconfigure":
        # One reconfigure does where a node would register twice (docs/facts.md).
        weights = replace(weights, twice=0)
    return Rules(
        weights=weights,
        time_limit_s=settings.planner.time_limit_s,
        soon_s=rules.starts_soon_s,
        per_user=rules.max_jobs_per_user,
        per_account=rules.max_jobs_per_account,
        withhold_jobs=rules.withhold_jobs,
        withhold_s=rules.withhold_s,
        exclude_users=frozenset(rules.exclude_users),
        exclude_partitions=frozenset(rules.exclude_partitions),
    )


def group_rules(group: GroupSettings) -> GroupRules:
    """What a group of nodes has of its own."""
    return GroupRules(
        label=group.name or group.nodes,
        reshape=group.reshape,
        min_wait_s=group.min_wait_s,
        cooldown_s=group.cooldown_s,
        withhold_s=group.withhold_s,
        fence_wait_s=group.fence_wait_s,
        baseline_after_s=group.baseline_after_s,
        windows=None if group.windows is None else tuple(map(windows.parse, group.windows)),
        max_nodes=group.max_nodes_in_transition,
        max_gpus=group.max_gpus_in_transition,
        exclude_users=frozenset(group.exclude_users),
        exclude_partitions=frozenset(group.exclude_partitions),
        least=group.minimum,
        most=group.maximum,
        baseline=group.baseline,
        free_for=group.free_for,
        soon_s=group.starts_soon_s,
        per_user=group.max_jobs_per_user,
        per_account=group.max_jobs_per_account,
    )
