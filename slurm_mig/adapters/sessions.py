"""Sessions with hosts: one process of the remote command for each, JSON lines in and out.

A session begins at the first request and is kept until `close`, so that a reshape pays for one
connection. Who runs cycle after cycle calls `rest` between them: as many as `fanout` sessions stay,
and one that did not survive the pause is begun anew. At most `fanout` hosts are asked at a time;
each has its own time limit, and one that hangs takes one place, not the others' time. The command
is an argument vector from the configuration (ssh by default); nothing ever goes through a shell
here.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, TypeVar

from slurm_mig import errors
from slurm_mig.errors import GpuError, SilentError, SlurmMigError, TurnError, UnreachableError

S = TypeVar("S", bound="Sessions")

ANSWER_LIMIT = 4 << 20
"""Bytes of one answer; 8 GPUs with 7 instances each need some 40 KiB."""

RESTED_ANSWER_S = 10.0
"""How long a session from an earlier cycle may take to answer: its connection may be dead without
either end knowing."""

SLOW_S = 2.0
"""Who fails later than this has kept a cycle waiting."""

SAID = 500
"""Bytes kept of what a command wrote to stderr."""

MESSAGE = 2000
"""Characters kept of an error that a host sends."""

FANOUT = 32

KEPT = 256
"""Sessions kept until `rest` or `close`, so that no host is connected to twice. Each has three
pipes, and a process may have 1024 files open on most systems."""


@dataclass
class _Session:
    process: subprocess.Popen[bytes]
    buffer: bytearray = field(default_factory=bytearray)
    said: bytes = b""
    rested: bool = False
    """From an earlier cycle, and not heard of in this one."""
    asked: float = 0.0
    """When it was asked last."""

    @classmethod
    def begin(cls, command: Sequence[str]) -> _Session:
        """Raises UnreachableError when the command cannot be run."""
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            raise UnreachableError(
                f"cannot run the remote command {command[0]}: {error}",
                hint="See remote.command in the configuration.",
            ) from error
        for pipe in (process.stdout, process.stderr):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)
        return cls(process)

    @property
    def pipes(self) -> Iterator[int]:
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            yield pipe.fileno()

    def hear(self) -> bool:
        """Take what has come. False at the end of the answers."""
        answers, complaints = self.pipes
        with contextlib.suppress(BlockingIOError):
            # A full pipe of complaints would stop the command.
            while chunk := os.read(complaints, 1 << 16):
                self.said = (self.said + chunk)[-SAID:]
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(answers, 1 << 16):
                self.buffer += chunk
                if len(self.buffer) > ANSWER_LIMIT:
                    return True
            return False
        return True

    def line(self) -> bytes | None:
        """The next whole line, if there is one."""
        if b"\n" not in self.buffer:
            return None
        line, _, rest = bytes(self.buffer).partition(b"\n")
        self.buffer = bytearray(rest)
        self.rested = False
        return line

    def hang_up(self) -> None:
        """A command ends when its standard input does."""
        if self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()

    def end(self, grace_s: float) -> str:
        """End it, after `grace_s` at the latest, with all it has started; what it wrote last."""
        self.hang_up()
        deadline = time.monotonic() + grace_s
        while self.process.poll() is None and time.monotonic() < deadline:
            self.hear()
            time.sleep(0.005)
        # ssh may have left a process that holds its pipes.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.hear()
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()
        return self.said.decode(errors="replace").strip()


class Sessions:
    """Hosts through a command of JSON lines. `%h` in the command is the host's name."""

    def __init__(
        self,
        command: Sequence[str],
        timeout_s: float,
        fanout: int = FANOUT,
        asking_s: float | None = None,
    ) -> None:
        """`timeout_s` is how long an answer may take, `asking_s` the same when many are asked."""
        self.turn: Callable[[], int] = lambda: 0
        """Gives the number that this process's requests bear now (adapters/turns.py)."""
        self.overtaken: Callable[[int], None] = lambda _: None
        """Told of a greater one that a host has heard of."""
        self._command = list(command)
        self._timeout_s = timeout_s
        self._asking_s = min(timeout_s, asking_s or timeout_s)
        self._fanout = fanout
        self._sessions: dict[str, _Session] = {}
        self._ending: list[_Session] = []

    def __enter__(self: S) -> S:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every session."""
        for name in list(self._sessions):
            self._let_go(name)
        self._see_end()

    def rest(self) -> None:
        """Keep the sessions for the next cycle."""
        for name in list(self._sessions)[self._fanout :]:
            self._let_go(name)
        for session in self._sessions.values():
            session.hear()
            session.rested = True
        self._see_end()

    def _see_end(self) -> None:
        """See those that were let go end, which they do at once, or end them."""
        ending, self._ending = self._ending, []
        deadline = time.monotonic() + 2.0
        for session in ending:
            session.end(max(0.0, deadline - time.monotonic()))

    def is_like(self, other: Sessions) -> bool:
        """Would the other one's sessions be the same?"""
        mine = (self._command, self._timeout_s, self._asking_s, self._fanout)
        return mine == (other._command, other._timeout_s, other._asking_s, other._fanout)

    def call(self, name: str, verb: str, data: Any) -> Any:
        """One host's answer. Raises the host's own error, or UnreachableError."""
        answers = self._ask([name], verb, data, self._timeout_s)
        if isinstance(answers[name], SlurmMigError):
            raise answers[name]
        return answers[name]

    def ask(self, names: Sequence[str], verb: str) -> dict[str, Any]:
        """Each host's answer, or the SlurmMigError that it or the way to it gave."""
        rested = {n for n in names if n in self._sessions and self._sessions[n].rested}
        first = sorted(names, key=lambda name: name not in self._sessions)
        found = self._ask(first, verb, None, self._asking_s)
        # What a pause has ended is no fault of the host.
        lost = [n for n in names if n in rested - self._sessions.keys() and _failed(found[n])]
        return found | self._ask(lost, verb, None, self._asking_s)

    def _ask(self, names: Sequence[str], verb: str, data: Any, patience_s: float) -> dict[str, Any]:
        wish = {"verb": verb, "data": data, "turn": self.turn()}
        request = json.dumps(wish).encode() + b"\n"
        waiting, asked, found = deque(names), dict[str, float](), dict[str, Any]()
        with selectors.DefaultSelector() as selector:
            while waiting or asked:
                while waiting and len(asked) < self._fanout:
                    name = waiting.popleft()
                    try:
                        asked[name] = self._begin(name, request, patience_s, selector)
                    except SlurmMigError as error:
                        found[name] = error
                for name, answer in self._answers(selector, asked):
                    found[name] = answer
                    if isinstance(answer, TurnError):
                        self.overtaken(answer.code)
                    del asked[name]
                    if name in self._sessions:
                        for pipe in self._sessions[name].pipes:
                            selector.unregister(pipe)
                        if waiting and len(self._sessions) >= max(KEPT, self._fanout):
                            self._make_room(name)
        return found

    def _begin(
        self, name: str, request: bytes, patience_s: float, selector: selectors.BaseSelector
    ) -> float:
        """Ask one host; until when it may take to answer."""
        session = self._session(name)
        limit = min(RESTED_ANSWER_S, patience_s) if session.rested else patience_s
        session.asked = time.monotonic()
        assert session.process.stdin is not None
        try:
            session.process.stdin.write(request)
            session.process.stdin.flush()
        except OSError as error:
            raise self._lost(name, "the remote command ended") from error
        for pipe in session.pipes:
            selector.register(pipe, selectors.EVENT_READ, name)
        return time.monotonic() + limit

    def _session(self, name: str) -> _Session:
        session = self._sessions.get(name)
        if session is not None and session.rested and session.process.poll() is not None:
            self._sessions.pop(name).end(0.0)
            session = None
        if session is None:
            session = _Session.begin([word.replace("%h", name) for word in self._command])
            self._sessions[name] = session
        return session

    def _answers(
        self, selector: selectors.BaseSelector, asked: Mapping[str, float]
    ) -> Iterator[tuple[str, Any]]:
        """What came, or the first time limits that are over."""
        left = max(0.0, min(asked.values(), default=0.0) - time.monotonic())
        heard = dict.fromkeys(key.data for key, _ in selector.select(left) if asked)
        now = time.monotonic()
        for name in heard:
            if (answer := self._heard(name, selector)) is not None:
                yield name, answer.value
        for name in [n for n, until in asked.items() if until <= now and n not in heard]:
            self._forget(name, selector)
            yield name, self._lost(name, "no answer in time", grace_s=0.0)

    def _heard(self, name: str, selector: selectors.BaseSelector) -> _Answer | None:
        """The host's answer, once it is whole."""
        session = self._sessions[name]
        goes_on = session.hear()
        if len(session.buffer) > ANSWER_LIMIT:
            self._forget(name, selector)
            return _Answer(self._lost(name, "the remote command's answer is too long", 0.0))
        line = session.line()
        if line is None:
            if goes_on:
                return None
            self._forget(name, selector)
            return _Answer(self._lost(name, "the remote command ended"))
        try:
            return _Answer(_result(name, json.loads(line)))
        except (ValueError, RecursionError):
            self._forget(name, selector)
            text = line[:200].decode(errors="replace")
            return _Answer(self._lost(name, f"the remote command answered rubbish: {text!r}"))

    def _forget(self, name: str, selector: selectors.BaseSelector) -> None:
        for pipe in self._sessions[name].pipes:
            selector.unregister(pipe)

    def _let_go(self, name: str) -> None:
        """It ends by itself."""
        session = self._sessions.pop(name)
        session.hang_up()
        self._ending.append(session)

    def _make_room(self, name: str) -> None:
        """For others' sessions."""
        self._let_go(name)
        while len(self._ending) > self._fanout:
            self._ending.pop(0).end(2.0)

    def _lost(self, name: str, why: str, grace_s: float = 0.5) -> UnreachableError:
        """The session is over: say why, with the last of what the command wrote to stderr."""
        session = self._sessions.pop(name)
        slow = time.monotonic() - session.asked > SLOW_S
        said = session.end(grace_s)
        kind = SilentError if slow else UnreachableError
        return kind(
            f"{name}: {why}{': ' + said if said else ''}",
            hint=f"Try the remote command by hand: {' '.join(self._command).replace('%h', name)}",
        )


@dataclass(frozen=True)
class _Answer:
    value: Any


def _failed(answer: Any) -> bool:
    return isinstance(answer, UnreachableError)


def _result(name: str, answer: Any) -> Any:
    """The result, or the host's error. Raises ValueError for anything but an answer."""
    if not isinstance(answer, Mapping):
        raise ValueError("not an object")
    return _error(name, answer["error"]) if "error" in answer else answer.get("result")


KINDS: Collection[str] = (
    "BusyError", "ConfigError", "DriftError", "GpuError", "LeftOverError", "SlurmMigError",
    "TurnError", "UnreachableError", "UsageError",
)  # fmt: skip
"""What a host may say has happened. Not, for one, that slurmctld does not know it any more."""


def _error(name: str, data: Any) -> SlurmMigError:
    """The host's own error as the same kind of error here."""
    if not isinstance(data, Mapping):
        return UnreachableError(f"{name}: unreadable error from the node")
    message = f"{name}: {str(data.get('message'))[:MESSAGE]}"
    hint = str(data.get("hint") or "")[:MESSAGE]
    if data.get("kind") in ("GpuError", "TurnError"):
        coded = GpuError if data["kind"] == "GpuError" else TurnError
        code = data.get("code")
        return coded(message, code=code if isinstance(code, int) else 0, hint=hint)
    kinds: Iterable[str] = [k for k in KINDS if k == data.get("kind")] or ["UnreachableError"]
    kind: type[SlurmMigError] = getattr(errors, next(iter(kinds)))
    return kind(message, hint=hint)
