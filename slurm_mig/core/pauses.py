"""Which nodes an administrator wants left alone, and what the cycle says of it.

A pause keeps anything new from being begun. What was begun is finished or undone: a node between
two states is no state to leave it in.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from slurm_mig.core.records import Pause


def paused(
    pauses: Iterable[Pause], nodes: Iterable[str], groups: Mapping[str, str]
) -> dict[str, str]:
    """By node, why it is paused; `groups` gives each node's group by name.

    The widest pause counts: lifting it is what would help first.
    """
    by_scope = {pause.scope: pause for pause in pauses}
    found = {}
    for node in nodes:
        group = groups.get(node)
        for scope in ("", f"@{group}" if group else "", node):
            if scope in by_scope:
                found[node] = said(by_scope[scope])
                break
    return found


def said(pause: Pause) -> str:
    """`paused: the cluster, by root: new driver`."""
    return f"paused: {pause.what}, by {pause.by}{': ' if pause.reason else ''}{pause.reason}"


def scope_of(word: str, nodes: Collection[str], groups: Collection[str]) -> str:
    """The scope that a word on the command line means; empty where there is no such thing."""
    if word.startswith("@"):
        return word if word[1:] in groups else ""
    return word if word in nodes else ""
