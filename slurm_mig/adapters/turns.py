"""Whose turn it is on a node: requests that come too late do nothing.

A request can outlive its connection: the controller gives up after `remote.timeout_s`, or dies,
while the node is still at it or has not begun. The cycle that follows decides from what it sees,
and that must not change behind its back. So every command that may change anything has a turn, a
number greater than all before (adapters/store.py), and says it with each request. The node serves
one such request at a time, and none of an earlier turn once it has heard of a later one; a look
(`observe`) of a later turn is enough. The refusal says which turn that was, and the controller's
next one is later still (`FileStore.overtaken`): who holds the lock has the right to go on. Runs on
the GPU node; needs the standard library only.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from slurm_mig.adapters.atomic import make_directory
from slurm_mig.errors import BusyError, TurnError

PATIENCE_S = 5.0
"""How long a request waits for an earlier one to end."""

POLL_S = 0.02


@dataclass(frozen=True)
class Turns:
    """The latest turn, in `run_dir`/turn; the file's lock is the node's."""

    run_dir: Path
    patience_s: float = PATIENCE_S

    @contextmanager
    def taken(self, turn: int) -> Iterator[None]:
        """Serve a request of this turn meanwhile; 0: of one that only looks, at any time.

        Raises BusyError, before anything is touched, when a later turn was heard of, or an earlier
        request is still being served.
        """
        if not turn:
            yield
            return
        make_directory(self.run_dir)
        descriptor = os.open(self.run_dir / "turn", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            self._lock(descriptor)
            _note(descriptor, turn)
            yield
        finally:
            os.close(descriptor)

    def _lock(self, descriptor: int) -> None:
        deadline = time.monotonic() + self.patience_s
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise BusyError(
                        "an earlier request is still being served; nothing was touched",
                        hint="The next cycle tries again; `slurm-mig check` on the node says more.",
                    ) from None
                time.sleep(POLL_S)
            else:
                return


def _note(descriptor: int, turn: int) -> None:
    text = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
    latest = int(text) if text.isdigit() else 0
    if turn < latest:
        raise TurnError(
            "another command has taken over since; nothing was touched",
            code=latest,
            hint="If there is none, the controller's clock was ahead and its state directory has "
            "been lost since: the next command is later than that, and goes on.",
        )
    if turn > latest:
        # Never shorter than the one before: one write replaces it whole.
        os.pwrite(descriptor, f"{turn}\n".encode(), 0)
