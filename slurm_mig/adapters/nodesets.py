"""Node sets as people write them, `a100-[1-2,7]`, by ClusterShell."""

from __future__ import annotations

from ClusterShell.NodeSet import RESOLVER_NOGROUP, NodeSet, NodeSetException

from slurm_mig.errors import UsageError


def expand(nodes: str | None) -> frozenset[str]:
    """`a100-[1-2]` to its names. Raises UsageError for what is no node set."""
    if not nodes:
        return frozenset()
    try:
        return frozenset(NodeSet(nodes, resolver=RESOLVER_NOGROUP))
    except NodeSetException as error:
        raise UsageError(f"{nodes!r} is no node set: {error}; nothing was changed") from error
