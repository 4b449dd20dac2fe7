"""The history: every finished transaction and every deed of an administrator's, one JSON line each.

Bounded: a file that is full becomes history.jsonl.1 and takes the older one's place, so that there
is always one file's worth to look back on. A line that was cut off by a crash or a full disk is
passed over, and never takes the next one with it. A transaction whose end was journalled only after
a crash has a line of each time that it ended: the last one counts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from slurm_mig.core.codec import decode, encode
from slurm_mig.core.records import Event, Transaction
from slurm_mig.errors import ConfigError

FULL_BYTES = 8 << 20
"""Of one file: some 3,000 reshapes of nodes with eight GPUs."""


class History:
    """The lines in `root`/history.jsonl and what came before them."""

    def __init__(self, root: Path, full_bytes: int = FULL_BYTES) -> None:
        self._now = root / "history.jsonl"
        self._before = root / "history.jsonl.1"
        self._full_bytes = full_bytes

    def append(self, entry: Transaction | Event) -> None:
        """Add one line. Raises OSError. Not synced: the journal is what recovery goes by."""
        self._now.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        line = json.dumps(encode(entry)).encode() + b"\n"
        if self._now.exists() and self._now.stat().st_size + len(line) > self._full_bytes:
            os.replace(self._now, self._before)
        with open(self._now, "a+b") as file:
            file.seek(0, os.SEEK_END)
            if file.tell():
                file.seek(-1, os.SEEK_END)
                line = line if file.read(1) == b"\n" else b"\n" + line
            file.write(line)

    def entries(self) -> Iterator[Transaction | Event]:
        """Everything that is kept, oldest first."""
        paths = (self._before, self._now)
        yield from _once(entry for path in paths for entry in _entries(_read(path), path))

    def since(self, at: int) -> tuple[list[Transaction | Event], int]:
        """What was added since byte `at` of the present file, and its end now.

        A file that is shorter than that is a new one: the rest of the one before comes first. A
        line that is not whole yet is left for the next time.
        """
        found: list[Transaction | Event] = []
        if self._now.exists() and self._now.stat().st_size < at:
            found += _entries(_read(self._before, at), self._before)
            at = 0
        added = _read(self._now, at)
        whole = added[: added.rfind(b"\n") + 1]
        found += _entries(whole, self._now)
        return list(_once(found)), at + len(whole)


def _once(entries: Iterable[Transaction | Event]) -> Iterable[Transaction | Event]:
    """Each transaction as it ended at last, where it did then."""
    last: dict[object, Transaction | Event] = {}
    for number, entry in enumerate(entries):
        key = (entry.node, entry.id) if isinstance(entry, Transaction) else number
        last.pop(key, None)
        last[key] = entry
    return last.values()


def _read(path: Path, at: int = 0) -> bytes:
    try:
        with open(path, "rb") as file:
            file.seek(at)
            return file.read()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error


def _entries(text: bytes, path: Path) -> Iterator[Transaction | Event]:
    for line in text.decode("utf-8", errors="replace").splitlines():
        try:
            data: Any = json.loads(line)
            if isinstance(data, dict) and "did" in data:
                yield decode(Event, data, str(path))
            else:
                yield decode(Transaction, data, str(path))
        except (ValueError, ConfigError):
            # Cut off in the middle, or written by another version: the rest is worth having.
            continue
