"""Nodes that no slurmd has: their names, and the site's line of them (see fleet_cycle.py)."""

from __future__ import annotations

LIKE = "real-02"
"""The real node that they are like; never the one that is changed."""

ADDRESS = "192.0.2.1"
"""Nobody's (RFC 5737)."""


def site_line(count: int) -> str:
    """The site's own line of the nodes that are replayed: slurmctld reads it and hides them."""
    return (
        f"NodeName=replayed-[001-{count:03}] NodeAddr={ADDRESS} CPUs=8 RealMemory=4000 "
        "Gres=gpu:1g.5gb:7 State=FUTURE\n"
    )


def replayed(count: int) -> list[str]:
    return [f"replayed-{n:03}" for n in range(1, count + 1)]
