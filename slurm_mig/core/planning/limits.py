"""How many instances of a profile a group of nodes keeps at least, and has at most.

What a plan takes away and adds is counted change by change, and no change leans on another: a
minimum is not made good by what another GPU gains, a maximum not by what another one gives up. So
any of the plan's changes may be left out or come later, and the limits hold all the while.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

LEAST, MOST = -1, 1

Key = tuple[str, int]
"""A type, and LEAST or MOST."""


@dataclass(frozen=True)
class Limits:
    """What one node group states."""

    group: str
    """As people know it."""
    least: Mapping[str, int] = field(default_factory=dict)
    most: Mapping[str, int] = field(default_factory=dict)

    @property
    def keys(self) -> tuple[Key, ...]:
        return (*((t, LEAST) for t in sorted(self.least)), *((t, MOST) for t in sorted(self.most)))


@dataclass
class Budget:
    """What the nodes of a group may still lose or gain, by the limits' keys."""

    limits: Limits
    keys: tuple[Key, ...]
    left: list[int]
    there: Mapping[str, int]
    """Instances by type that the group has now."""
    number: int = 0
    """Which of the fleet's budgets it is."""

    @classmethod
    def of(cls, limits: Limits, there: Mapping[str, int], number: int = 0) -> Budget:
        left = [
            there.get(t, 0) - limits.least[t] if sign == LEAST else limits.most[t] - there.get(t, 0)
            for t, sign in limits.keys
        ]
        return cls(limits, limits.keys, [max(0, n) for n in left], there, number)

    def copy(self) -> Budget:
        """The same, to try something on."""
        return Budget(self.limits, self.keys, list(self.left), self.there, self.number)

    def allows(self, use: Iterable[int]) -> bool:
        return all(n <= left for n, left in zip(use, self.left, strict=True))

    def spend(self, use: Iterable[int], sign: int = 1) -> None:
        self.left = [left - sign * n for n, left in zip(use, self.left, strict=True)]

    def use_of(self, created: Mapping[str, int], destroyed: Mapping[str, int]) -> list[int]:
        """What one GPU's change takes, from its instances by type."""
        return [max(0, sign * (created.get(t, 0) - destroyed.get(t, 0))) for t, sign in self.keys]

    def reason(self, use: Iterable[int]) -> str:
        """Why a change that takes so much is not made."""
        return "; ".join(
            f"group {self.limits.group} {_stated(self.limits, key)}, and has "
            f"{self.there.get(key[0], 0)}"
            for n, left, key in zip(use, self.left, self.keys, strict=True)
            if n > left
        )


def _stated(limits: Limits, key: Key) -> str:
    gres_type, sign = key
    if sign == LEAST:
        return f"keeps at least {limits.least[gres_type]} {gres_type}"
    return f"has at most {limits.most[gres_type]} {gres_type}"
