"""Whose is a drain? Ours, an administrator's, or slurmctld's own.

A fence of ours is a DRAIN with our reason; while it is lifted it is FAIL for a moment, which the
adapter shows as the DRAIN that it was. Read by whoever may drain, resume or leave a node alone.
"""

from __future__ import annotations

import re

from slurm_mig.core.model import SlurmNode
from slurm_mig.core.records import REASON, Transaction

_REFUSED = re.compile(r"gres/gpu\S* (count|type) (too low|changed|reported lower)")
"""slurmctld's own reasons for INVALID_REG (source: interfaces/gres.c)."""

KEPT_AWAY = frozenset({"DRAIN", "FAIL", "DOWN"})
"""States in which a node gets no jobs by somebody's will."""


def refused(node: SlurmNode) -> bool:
    """True if slurmctld has put its own words for a refused registration in the reason's place."""
    return _REFUSED.search(node.reason) is not None


def orphaned(node: SlurmNode) -> bool:
    """True for a drain that is ours or slurmctld's own for a refused registration, when no
    transaction is open: the record of a release was lost, or an old file came back."""
    if "DRAIN" not in node.states:
        return False
    return node.reason.startswith(f"{REASON}:") or (refused(node) and "INVALID_REG" in node.states)


def ours(node: SlurmNode, transaction: Transaction) -> bool:
    """True if the node's drain is the one of this transaction.

    slurmctld itself overwrites the reason when a registration is refused between our two
    registrations: on a node whose transaction has touched it, its words are part of ours. (Not only
    while it publishes: one that is recovered begins again with the reshape.)
    """
    if "DRAIN" not in node.states:
        return False
    if node.reason.startswith(transaction.reason):
        return True
    return transaction.touched and _REFUSED.match(node.reason) is not None


def lost(node: SlurmNode) -> str:
    """What became of a fence of ours that is not there any more."""
    return f"drained: {node.reason}" if node.states & KEPT_AWAY else "its drain was lifted"
