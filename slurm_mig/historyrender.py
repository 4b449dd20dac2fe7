"""The history as people read it, and as plain values for JSON. Pure functions."""

from __future__ import annotations

from typing import Any

from slurm_mig.core.layouts import steps
from slurm_mig.core.purpose import purpose
from slurm_mig.core.records import Event, Phase, Transaction
from slurm_mig.render import local_time, part_json


def history_text(entry: Transaction | Event) -> str:
    """One entry of the history: what was done, when, why, for how long, by which plan."""
    if isinstance(entry, Event):
        why = f": {entry.why}" if entry.why else ""
        return f"{local_time(entry.time)}  {entry.what} {entry.did} by {entry.by}{why}\n"
    plan = f", plan {entry.change.plan}" if entry.change.plan else ""
    lines = [
        f"{local_time(entry.finished)}  {entry.node} {_ended(entry)}: {purpose(entry.change)} "
        f"({entry.id}{plan})"
    ]
    for part in entry.change.gpus:
        signs = [f"{sign}{what}" for sign, what in steps(part)]
        lines.append(f"    gpu{part.gpu} {' '.join(signs) or f'MIG {_on(part.mig)}'}")
    if entry.seconds:
        lines.append("    " + ", ".join(f"{step} {s:.2f} s" for step, s in entry.seconds.items()))
    return "\n".join(lines) + "\n"


def _on(mig: bool) -> str:  # noqa: FBT001
    return "on" if mig else "off"


def _ended(entry: Transaction) -> str:
    took = f"{entry.finished - entry.started:.2f} s"
    if entry.phase is Phase.RELEASED:
        left = f" ({entry.note})" if entry.note else ""
        return f"{'reshaped' if entry.change.gpus else 'published'} in {took}{left}"
    return f"{entry.phase.value} after {took} ({entry.note})"


def history_json(entry: Transaction | Event) -> dict[str, Any]:
    """What `history_text` says, as plain values; times in seconds since the epoch."""
    if isinstance(entry, Event):
        return {
            "kind": "event",
            "time": entry.time,
            "did": entry.did,
            "what": entry.what,
            "nodes": list(entry.nodes),
            "by": entry.by,
            "why": entry.why,
        }
    return {
        "kind": "transaction",
        "time": entry.finished,
        "id": entry.id,
        "node": entry.node,
        "phase": entry.phase.value,
        "why": purpose(entry.change),
        "plan": entry.change.plan,
        "serves": list(entry.change.serves),
        "note": entry.note,
        "started": entry.started,
        "took_s": round(entry.finished - entry.started, 6),
        "seconds": dict(entry.seconds),
        "gpus": [part_json(part) for part in entry.change.gpus],
    }
