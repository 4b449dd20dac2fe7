"""After each cycle: the counters grow, and the files that monitoring reads are written again.

Called by the reconciler's commands, under the lock. A file that cannot be written is a warning:
no cycle fails for it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from slurm_mig.adapters.atomic import write_atomic
from slurm_mig.adapters.store import FileStore
from slurm_mig.config import MonitoringSettings
from slurm_mig.core import monitoring
from slurm_mig.core.monitoring import Counters, Ended
from slurm_mig.core.records import Transaction
from slurm_mig.errors import ConfigError, SlurmMigError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Monitor:
    """What is told outside of what the cycles do."""

    store: FileStore
    settings: MonitoringSettings

    def ended(self, cycle: Ended) -> None:
        """A cycle has come to its end."""
        known = self.counters
        history, at = self.store.history.since(known.history)
        done = [entry for entry in history if isinstance(entry, Transaction)]
        counters = monitoring.counted(known, cycle, done, at)
        self.store.save_counters(counters)
        self._write(self.settings.metrics_file, lambda: metrics(cycle, counters))
        if self._is_due(self.settings.report_file, cycle.report.time):
            self._write(self.settings.report_file, lambda: self._report(cycle))

    def failed(self, error: SlurmMigError) -> None:
        """A cycle was stopped by an error."""
        result = error.exit_code.name.lower()
        self.store.save_counters(monitoring.failed(self.counters, result))

    @property
    def counters(self) -> Counters:
        return self.store.counters() or Counters()

    def _is_due(self, path: str, now: float) -> bool:
        """Is the report older than its interval?"""
        try:
            return bool(path) and now - os.stat(path).st_mtime >= self.settings.report_interval_s
        except OSError:
            return True

    def _report(self, cycle: Ended) -> str:
        from slurm_mig.report.page import Picture, html

        history, settings = list(self.store.history.entries()), self.settings
        return html(
            Picture(
                cycle,
                history,
                cycle.report.time,
                settings.report_hours,
                settings.report_interval_s,
                self.store.pauses(),
            )
        )

    def _write(self, path: str, text: Callable[[], str]) -> None:
        if not path:
            return
        try:
            write_atomic(Path(path), text())
        except ConfigError as error:
            log.warning("%s", error)


def metrics(cycle: Ended, counters: Counters) -> str:
    """The metrics' text."""
    from slurm_mig.adapters.prometheus import exposition

    return exposition(cycle, counters)
