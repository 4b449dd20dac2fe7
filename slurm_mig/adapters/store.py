"""The state directory: plain JSON files, replaced atomically and fsynced, under one lock.

nodes/NODE.json          the node as enrolled and last published
transactions/NODE.json   the node's last transaction: the journal
history.jsonl            every finished transaction, one a line
cycle.json               what the last cycle saw and did
differing/NODE           the node's instances and Slurm's view of them differ: the slurmctld prolog
                         (scripts/slurmctld_prolog) starts no job on it
lock                     held by the one command that may change anything, on whatever host
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from slurm_mig.adapters.atomic import write_atomic
from slurm_mig.core.codec import decode, encode
from slurm_mig.core.records import CycleReport, ManagedNode, Phase, Transaction
from slurm_mig.errors import BusyError, ConfigError

T = TypeVar("T")


class FileStore:
    """The state directory at `root`; made on first use, readable by root and SlurmUser's group."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the one lock. Raises BusyError at once if another process has it."""
        self.root.mkdir(mode=0o755, parents=True, exist_ok=True)
        with open(self.root / "lock", "a+", encoding="utf-8") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                handle.seek(0)
                holder = handle.read().strip() or "unknown"
                raise BusyError(
                    f"another slurm-mig ({holder}) is at work",
                    hint="Wait for it, or see `slurm-mig status`.",
                ) from error
            handle.seek(0)
            handle.truncate()
            handle.write(f"pid {os.getpid()} on {socket.gethostname()}\n")
            handle.flush()
            yield

    def managed(self) -> dict[str, ManagedNode]:
        """Every node in our care, by name. Raises ConfigError for a damaged record."""
        found = {}
        for path in sorted((self.root / "nodes").glob("*.json")):
            node = self._load(path, ManagedNode)
            if node is not None:
                found[node.name] = node
        return found

    def save_managed(self, node: ManagedNode) -> None:
        """What is published of the node now: from here on all views of it agree."""
        self._save(self.root / "nodes" / f"{node.name}.json", node)
        self._agrees(node.name)

    def forget(self, name: str) -> None:
        """The node left our care."""
        for folder in ("nodes", "transactions"):
            (self.root / folder / f"{name}.json").unlink(missing_ok=True)
        self._agrees(name)

    def _agrees(self, node: str) -> None:
        (self.root / "differing" / node).unlink(missing_ok=True)

    def transaction(self, node: str) -> Transaction | None:
        return self._load(self.root / "transactions" / f"{node}.json", Transaction)

    def save_transaction(self, transaction: Transaction) -> None:
        if transaction.phase in (Phase.RESHAPED, Phase.PUBLISHED):
            mark = self.root / "differing" / transaction.node
            mark.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            mark.touch(mode=0o644)
        else:
            self._agrees(transaction.node)
        self._save(self.root / "transactions" / f"{transaction.node}.json", transaction)
        if not transaction.is_open:
            with open(self.root / "history.jsonl", "a", encoding="utf-8") as history:
                history.write(json.dumps(encode(transaction)) + "\n")

    def report(self) -> CycleReport | None:
        return self._load(self.root / "cycle.json", CycleReport)

    def save_report(self, report: CycleReport) -> None:
        self._save(self.root / "cycle.json", report)

    def _save(self, path: Path, value: Any) -> None:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        write_atomic(path, json.dumps(encode(value), indent=1) + "\n")

    def _load(self, path: Path, kind: type[T]) -> T | None:
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from error
        try:
            return decode(kind, json.loads(text), str(path))
        except ValueError as error:
            raise ConfigError(
                f"{path} is damaged: {error}",
                hint="Restore it from a backup; nothing was changed.",
            ) from error
