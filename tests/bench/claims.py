"""What a benchmark claims, and how it prints it.

A claim that falls short is printed as such; the exit code says so too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Claim:
    """One measured value; `bound` is "<= 2.5" or ">= 3", or empty for what is only shown."""

    name: str
    value: float
    unit: str
    bound: str = ""

    @property
    def ok(self) -> bool:
        if not self.bound:
            return True
        sign, limit = self.bound.split()
        return self.value <= float(limit) if sign == "<=" else self.value >= float(limit)


def show(claims: Sequence[Claim], *, as_json: bool) -> int:
    """Print the claims as one JSON object or as a table; 1 if one falls short."""
    if as_json:
        rows = [{**asdict(c), "value": round(c.value, 6), "ok": c.ok} for c in claims]
        print(json.dumps({"claims": rows}))
    else:
        width = max(len(c.name) for c in claims)
        for c in claims:
            verdict = "" if not c.bound else "ok" if c.ok else "FALLS SHORT"
            print(
                f"{c.name:<{width}}  {c.value:>12.4g} {c.unit:<6} {c.bound:<8} {verdict}".rstrip()
            )
    return 0 if all(c.ok for c in claims) else 1
