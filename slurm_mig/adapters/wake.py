"""The wake file: how the submit plugin and slurmctld's epilog ask for a cycle.

They make it (as SlurmUser, in a directory of theirs); a systemd path unit starts a cycle while it
exists; the cycle takes it away before it looks at anything, so no wish is lost. Cycles that were
asked for keep a minimum interval, however often the file is made.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

STEP_S = 0.02
SETTLE_S = 0.02
"""The submit plugin asks before slurmctld has put the job into its queue. Where slurmctld takes
longer, the next cycle sees the job: a loop looks once more a second after it was woken."""


@dataclass(frozen=True)
class Wake:
    """The wake file, and the least time in seconds from one cycle's end to the next one's start."""

    file: Path
    min_interval_s: float

    def take(self) -> None:
        """The wish is about to be fulfilled. Call under the lock, before looking."""
        self.file.unlink(missing_ok=True)

    def rest(self, last_end: float) -> None:
        """Wait until the minimum interval since the last cycle's end, by the clock, is over."""
        left = last_end + self.min_interval_s - time.time()
        # A clock that was set back must not keep anybody waiting.
        time.sleep(min(max(left, SETTLE_S), max(self.min_interval_s, SETTLE_S)))

    def wait(self, seconds: float, ending: Callable[[], bool]) -> bool:
        """Until the time is over, somebody asks for a cycle (not before the minimum interval), or
        it is to end. True when somebody asked."""
        start = time.monotonic()
        while not ending() and (passed := time.monotonic() - start) < seconds:
            if passed >= self.min_interval_s and self.file.exists():
                time.sleep(SETTLE_S)
                return True
            time.sleep(min(STEP_S, seconds))
        return False
