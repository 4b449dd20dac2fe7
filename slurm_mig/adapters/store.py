"""The state directory: plain JSON files, replaced atomically and fsynced, under one lock.

nodes/NODE.json          the node as enrolled and last published
transactions/NODE.json   the node's last transaction: the journal
history.jsonl            every finished transaction, one a line (adapters/history.py)
pauses/SCOPE.json        an administrator wants no change; written without the lock, so that a pause
                         can be given while a cycle is at work
cycle.json               what the last cycle saw and did
counters.json            what only grows, for the metrics; how far history.jsonl is counted
differing/NODE           the node's instances and Slurm's view of them differ: the slurmctld prolog
                         (scripts/slurmctld_prolog) starts no job on it
lock                     held by the one command that may change anything, on whatever host
turn                     greater at each taking: nodes refuse what comes late from an earlier one
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import tempfile
import time
import typing
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TextIO, TypeVar

from slurm_mig.adapters.atomic import make_directory, write_atomic
from slurm_mig.adapters.history import History
from slurm_mig.core.codec import decode, encode
from slurm_mig.core.monitoring import Counters
from slurm_mig.core.records import CycleReport, ManagedNode, Pause, Phase, Transaction
from slurm_mig.errors import BusyError, ConfigError, UnwritableError

T = TypeVar("T")

AHEAD_NS = 100 * 365 * 86400 * 10**9
"""No clock was more than a century ahead, whatever a node says."""

LOCK_POLL_S = 0.1

PROBE = 16384
"""Bytes: what the longest record of a node needs, and more."""


class FileStore:
    """The state directory at `root`; made on first use, readable by root and SlurmUser's group."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.history = History(root)
        self._read: dict[str, tuple[tuple[int, int, int], Any]] = {}
        """Records as last read: a cycle asks for those of every node many times."""
        self.turn = 0
        """While the lock is held: greater than every holder's before (adapters/turns.py)."""

    @contextmanager
    def lock(self, wait_s: float = 0.0) -> Iterator[None]:
        """Hold the one lock. Raises BusyError if another process still has it after `wait_s`."""
        deadline = time.monotonic() + wait_s
        with self._lock_file() as handle:
            while not _locked(handle):
                if time.monotonic() >= deadline:
                    handle.seek(0)
                    holder = handle.read().strip() or "unknown"
                    raise BusyError(
                        f"another slurm-mig ({holder}) is at work",
                        hint="Wait for it, or see `slurm-mig status`.",
                    )
                time.sleep(LOCK_POLL_S)
            handle.seek(0)
            handle.truncate()
            # Who holds it is for people: on a full disk it is held all the same.
            with suppress(OSError):
                os.write(handle.fileno(), f"pid {os.getpid()} on {socket.gethostname()}\n".encode())
            self.turn = self._next_turn()
            try:
                yield
            finally:
                self.turn = 0

    def _next_turn(self) -> int:
        """By the clock, as a state directory that was lost must not begin again at 1; by the last
        one, as the clock may be set back. In nanoseconds: commands that follow each other must not
        count faster than the clock, which would be ahead of them after such a loss."""
        turn = max(self._last_turn() + 1, time.time_ns())
        write_atomic(self.root / "turn", f"{turn}\n")
        return turn

    def _last_turn(self) -> int:
        try:
            text = (self.root / "turn").read_text().strip()
        except OSError:
            text = ""
        return int(text) if text.isdigit() else 0

    def overtaken(self, turn: int) -> None:
        """A node has heard of this turn: the next one is later, in reason. (The clock was ahead,
        and this directory has been lost since.)"""
        if not self._last_turn() < turn < time.time_ns() + AHEAD_NS:
            return
        with suppress(OSError, UnwritableError):
            write_atomic(self.root / "turn", f"{turn}\n")

    def _lock_file(self) -> TextIO:
        make_directory(self.root)
        path = self.root / "lock"
        try:
            return open(path, "a+", encoding="utf-8")
        except OSError as error:
            raise UnwritableError(
                f"{path} cannot be written: {error.strerror}; nothing was changed",
                hint="Nothing can be journalled while the state directory is not writable.",
            ) from error

    def trouble(self) -> str:
        """Why nothing could be journalled now; empty when it could."""
        try:
            with tempfile.TemporaryFile(dir=self.root) as probe:
                probe.write(b"x" * PROBE)
                probe.flush()
        except PermissionError:
            return ""  # A user who only looks.
        except OSError as error:
            return f"{self.root} cannot be written: {error.strerror}; no node is changed meanwhile"
        return ""

    def managed(self) -> dict[str, ManagedNode]:
        """Every node in our care, by name. Raises ConfigError for a damaged record."""
        folder = f"{self.root}/nodes"
        try:
            names = sorted(os.listdir(folder))
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise ConfigError(f"cannot read {folder}: {error.strerror}") from error
        records = (self._load(f"{folder}/{n}", ManagedNode) for n in names if n.endswith(".json"))
        return {node.name: node for node in records if node is not None}

    def save_managed(self, node: ManagedNode) -> None:
        """What is published of the node now: from here on all views of it agree."""
        self._save(self.root / "nodes" / f"{node.name}.json", node)
        self._agrees(node.name)

    def take_up(self, node: ManagedNode) -> None:
        """The node comes into our care: what was open when an earlier record was lost is void."""
        (self.root / "transactions" / f"{node.name}.json").unlink(missing_ok=True)
        (self.root / "left" / node.name).unlink(missing_ok=True)
        self.save_managed(node)

    def left(self) -> list[str]:
        """The nodes that left our care and have not come back."""
        try:
            return sorted(os.listdir(self.root / "left"))
        except FileNotFoundError:
            return []

    def forget(self, name: str) -> None:
        """The node left our care."""
        for folder in ("nodes", "transactions"):
            (self.root / folder / f"{name}.json").unlink(missing_ok=True)
        self.lift(name)
        with _written(self.root / "left" / name) as mark:
            make_directory(mark.parent)
            mark.touch(mode=0o644)
        self._agrees(name)

    def _agrees(self, node: str) -> None:
        with _written(self.root / "differing" / node) as mark:
            mark.unlink(missing_ok=True)

    def transaction(self, node: str) -> Transaction | None:
        return self._load(f"{self.root}/transactions/{node}.json", Transaction)

    def save_transaction(self, transaction: Transaction) -> None:
        if transaction.phase in (Phase.RESHAPED, Phase.PUBLISHED):
            with _written(self.root / "differing" / transaction.node) as mark:
                make_directory(mark.parent)
                mark.touch(mode=0o644)
        else:
            self._agrees(transaction.node)
        try:
            if not transaction.is_open:
                # Before the journal's end: killed in between, the next cycle finishes it once more,
                # and the history has it twice (and reads it once), not never.
                with _written(self.root / "history.jsonl"):
                    self.history.append(transaction)
        finally:
            # A history that alone cannot be written keeps no transaction open.
            self._save(self.root / "transactions" / f"{transaction.node}.json", transaction)

    def pauses(self) -> list[Pause]:
        """Every pause in force, the cluster's first."""
        paths = sorted((self.root / "pauses").glob("*.json"))
        found = (self._load(str(path), Pause) for path in paths)
        return sorted((p for p in found if p is not None), key=lambda p: p.scope)

    def pause(self, pause: Pause) -> None:
        self._save(self._pause_file(pause.scope), pause)

    def lift(self, scope: str) -> None:
        """The pause of this scope is over, if there was one."""
        self._pause_file(scope).unlink(missing_ok=True)

    def _pause_file(self, scope: str) -> Path:
        # No node's name has an @ in it, and no group's is empty.
        return self.root / "pauses" / f"{scope or '@'}.json"

    def report(self) -> CycleReport | None:
        return self._load(f"{self.root}/cycle.json", CycleReport)

    def save_report(self, report: CycleReport) -> None:
        self._save(self.root / "cycle.json", report)

    def counters(self) -> Counters | None:
        return self._load(f"{self.root}/counters.json", Counters)

    def save_counters(self, counters: Counters) -> None:
        self._save(self.root / "counters.json", counters)

    def _save(self, path: Path, value: Any) -> None:
        make_directory(path.parent)
        write_atomic(path, json.dumps(encode(value), indent=1) + "\n")

    def _load(self, path: str, kind: type[T]) -> T | None:
        # A name, no Path: a cycle asks some thousand times where there are some hundred nodes.
        try:
            if (known := self._read.get(path)) and known[0] == _version(os.stat(path)):
                return typing.cast("T", known[1])
            with open(path, encoding="utf-8") as file:
                now = _version(os.fstat(file.fileno()))
                text = file.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from error
        try:
            found = decode(kind, json.loads(text), path)
            self._read[path] = (now, found)
            return found
        except ValueError as error:
            raise ConfigError(
                f"{path} is damaged: {error}",
                hint="Restore it from a backup; nothing was changed.",
            ) from error


def _version(info: os.stat_result) -> tuple[int, int, int]:
    return (info.st_ino, info.st_mtime_ns, info.st_size)


def _locked(handle: IO[str]) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _written(path: Path) -> Iterator[Path]:
    """Translates what the system says when this cannot be written."""
    try:
        yield path
    except OSError as error:
        raise UnwritableError(f"{path} cannot be written: {error.strerror}") from error
