"""Nodes that took long to fail, and for how long they are left alone.

A node that hangs costs each cycle a time limit. So it is asked again only after a while, twice as
long after each further time. A node that fails at once costs nothing, and is asked in each cycle.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from slurm_mig.errors import LeftAloneError, UnreachableError

MOST = 16
"""How many times as long as the first time a node is left alone at most."""


@dataclass(frozen=True)
class Silence:
    """Times are in seconds since the epoch."""

    since: float
    times: int
    last: float
    until: float
    why: str


class Silences:
    """Who is left alone. `known` is kept between cycles (`CycleReport.silent`)."""

    def __init__(
        self, rest_s: float = 0.0, known: Mapping[str, Silence] | None = None,
        now: Callable[[], float] = lambda: 0.0,
    ) -> None:  # fmt: skip
        """`rest_s`: how long after the first time; 0: nobody is left alone."""
        self.known = dict(known or {})
        self._rest_s = rest_s
        self._now = now

    def left_alone(self, name: str) -> LeftAloneError | None:
        """Why the node is not asked now, if it is not."""
        found, now = self.known.get(name), self._now()
        # Before its last failure: the clock was set back, and nobody knows how long ago that was.
        if found is None or not found.last <= now < found.until:
            return None
        times = "once" if found.times == 1 else f"{found.times} times"
        return LeftAloneError(
            f"{found.why}; it has kept a cycle waiting {times} and is asked again in "
            f"{found.until - now:.0f} s"
        )

    def noted(self, name: str, error: UnreachableError) -> None:
        """The node took long to fail."""
        before, now = self.known.get(name), self._now()
        times = before.times + 1 if before else 1
        rest_s = self._rest_s * min(2 ** (times - 1), MOST)
        since = before.since if before else now
        if rest_s:
            self.known[name] = Silence(since, times, now, now + rest_s, str(error.args[0]))

    def heard(self, name: str) -> None:
        """The node has answered, or is to be asked whatever was."""
        self.known.pop(name, None)
