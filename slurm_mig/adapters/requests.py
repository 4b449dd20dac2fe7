"""The requests of a session that may be kept for hours: one a line, with rests in between.

`slurm-mig node serve` reads its standard input through this. A controller that runs in a loop keeps
the session between cycles, so what a cycle pays is an answer and no interpreter's start. A session
that rests lets go of the driver (a GPU reset or a new driver is not kept waiting), and ends when
the program or its configuration has changed, or when nothing has come for long: the controller
begins another one.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

REST_S = 1.0
"""After so long without a request the driver is let go."""

IDLE_S = 600.0
"""After so long without a request the session ends."""

CHUNK = 1 << 16


class Code:
    """The program's own files and others that it has read: have they changed since?"""

    def __init__(self, others: Iterable[Path], package: Path = Path(__file__).parents[1]) -> None:
        self._others = tuple(others)
        self._package = package
        self._before = self._look()

    def changed(self) -> bool:
        return self._look() != self._before

    def _look(self) -> frozenset[tuple[str, int, int]]:
        files = (*self._package.rglob("*.py"), *self._others)
        return frozenset(seen for file in files if (seen := _seen(file)))


def _seen(file: Path) -> tuple[str, int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return str(file), found.st_mtime_ns, found.st_size


class Requests:
    """The lines of a descriptor, until it ends or the session does.

    `rest` is called once nothing has come for a second, `wake` before the next line is given;
    `outdated` says that this program should not answer it. The line is then left unanswered, which
    the controller takes for a session that broke: it asks a new one.
    """

    def __init__(
        self,
        descriptor: int,
        rest: Callable[[], None],
        wake: Callable[[], None],
        outdated: Callable[[], bool],
        idle_s: float = IDLE_S,
    ) -> None:
        self._descriptor = descriptor
        self._rest = rest
        self._wake = wake
        self._outdated = outdated
        self._idle_s = idle_s
        self._buffer = b""

    def __iter__(self) -> Iterator[str]:
        while (line := self._next()) is not None:
            yield line

    def _next(self) -> str | None:
        rested = False
        while b"\n" not in self._buffer:
            if not self._comes(self._idle_s if rested else min(REST_S, self._idle_s)):
                if rested or self._idle_s <= REST_S:
                    return None
                self._rest()
                rested = True
                continue
            chunk = os.read(self._descriptor, CHUNK)
            if not chunk:
                return None
            self._buffer += chunk
        if rested:
            if self._outdated():
                return None
            self._wake()
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode(errors="replace")

    def _comes(self, seconds: float) -> bool:
        return bool(select.select([self._descriptor], [], [], seconds)[0])
