"""The remote commands, JSON lines in and out: `slurm-mig node serve` on each GPU node, `slurm-mig
files serve` on the other controllers' hosts.

One process per node, started at the first request and kept until `close`, so that a reshape pays
for one connection. Who runs cycle after cycle calls `rest` between them: the sessions stay, and one
that did not survive the pause is begun anew. The command is an argument vector from the
configuration (ssh by default); nothing ever goes through a shell here. Answers of a node are
decoded strictly: a node that has been taken over can only make its own reshape fail.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, TypeVar

from slurm_mig import errors
from slurm_mig.core.codec import decode, encode
from slurm_mig.core.model import NodeChange, Slots
from slurm_mig.core.ownership import Outside
from slurm_mig.core.records import ManagedNode, NodeFacts
from slurm_mig.errors import ConfigError, GpuError, SlurmMigError, UnreachableError

T = TypeVar("T")
S = TypeVar("S", bound="Remote")

ANSWER_LIMIT = 16 << 20
"""Bytes of one answer; 8 GPUs with 7 instances each need some 20 KiB."""

RESTED_ANSWER_S = 10.0
"""How long a session from an earlier cycle may take to answer: its connection may be dead without
either end knowing."""

SAID = 500
"""Bytes kept of what a command wrote to stderr."""


@dataclass
class _Session:
    process: subprocess.Popen[bytes]
    buffer: bytearray = field(default_factory=bytearray)
    said: bytes = b""
    rested: bool = False
    """From an earlier cycle, and not heard of in this one."""

    def listen(self) -> bool:
        """Take what was written to stderr: a full pipe would stop the command. False at its end."""
        assert self.process.stderr is not None
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self.process.stderr.fileno(), 1 << 16):
                self.said = (self.said + chunk)[-SAID:]
            return False
        return True


class Remote:
    """Hosts through a command of JSON lines. `%h` in the command is the host's name."""

    def __init__(self, command: Sequence[str], timeout_s: float) -> None:
        self._command = list(command)
        self._timeout_s = timeout_s
        self._sessions: dict[str, _Session] = {}

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
        """End every session; a node command ends when its stdin does."""
        for name in list(self._sessions):
            self._drop(name, grace_s=2.0)

    def rest(self) -> None:
        """Keep the sessions for the next cycle."""
        for session in self._sessions.values():
            session.listen()
            session.rested = True

    def is_for(self, command: Sequence[str], timeout_s: float) -> bool:
        return (self._command, self._timeout_s) == (list(command), timeout_s)

    def _call(self, name: str, verb: str, data: Any) -> Any:
        self._send(name, verb, data)
        return self._receive(name, time.monotonic() + self._timeout_s)

    def _session(self, name: str) -> _Session:
        session = self._sessions.get(name)
        if session is not None and session.rested and session.process.poll() is not None:
            self._drop(name, grace_s=0.5)
            session = None
        if session is None:
            command = [word.replace("%h", name) for word in self._command]
            try:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    start_new_session=True,
                )
            except OSError as error:
                raise UnreachableError(
                    f"cannot run the remote command {command[0]}: {error.strerror}",
                    hint="See remote.command in the configuration.",
                ) from error
            assert process.stderr is not None
            os.set_blocking(process.stderr.fileno(), False)
            session = self._sessions[name] = _Session(process)
        return session

    def _send(self, name: str, verb: str, data: Any) -> None:
        session = self._session(name)
        assert session.process.stdin is not None
        request = json.dumps({"verb": verb, "data": data}).encode() + b"\n"
        try:
            session.process.stdin.write(request)
            session.process.stdin.flush()
        except OSError as error:
            raise self._lost(name, "the remote command ended") from error

    def _receive(self, name: str, deadline: float) -> Any:
        line = self._read_line(name, deadline)
        try:
            answer = json.loads(line)
        except ValueError as error:
            text = line[:200].decode(errors="replace")
            raise self._lost(name, f"the remote command answered rubbish: {text!r}") from error
        if not isinstance(answer, Mapping):
            raise self._lost(name, "the remote command answered something else than an object")
        if "error" in answer:
            raise _remote_error(name, answer["error"])
        return answer.get("result")

    def _read_line(self, name: str, deadline: float) -> bytes:
        session = self._sessions[name]
        answers, complaints = session.process.stdout, session.process.stderr
        assert answers is not None
        assert complaints is not None
        with selectors.DefaultSelector() as selector:
            selector.register(answers, selectors.EVENT_READ)
            selector.register(complaints, selectors.EVENT_READ)
            while b"\n" not in session.buffer:
                ready = selector.select(max(0.0, deadline - time.monotonic()))
                if not ready:
                    raise self._lost(name, f"no answer within {self._timeout_s:g} s")
                if any(key.fileobj is complaints for key, _ in ready) and not session.listen():
                    selector.unregister(complaints)
                if all(key.fileobj is complaints for key, _ in ready):
                    continue
                chunk = os.read(answers.fileno(), 1 << 16)
                if not chunk:
                    raise self._lost(name, "the remote command ended")
                session.buffer += chunk
                if len(session.buffer) > ANSWER_LIMIT:
                    raise self._lost(name, "the remote command's answer is too long")
        line, _, rest = bytes(session.buffer).partition(b"\n")
        session.buffer = bytearray(rest)
        session.rested = False
        return line

    def _lost(self, name: str, why: str) -> UnreachableError:
        """The session is over: say why, with the last of what the command wrote to stderr."""
        said = self._drop(name, grace_s=0.5)
        return UnreachableError(
            f"{name}: {why}{': ' + said if said else ''}",
            hint=f"Try the remote command by hand: {' '.join(self._command).replace('%h', name)}",
        )

    def _drop(self, name: str, grace_s: float) -> str:
        session = self._sessions.pop(name, None)
        if session is None:
            return ""
        process = session.process
        try:
            _, said = process.communicate(timeout=grace_s)
        except (subprocess.TimeoutExpired, OSError, ValueError):
            process.kill()
            _, said = process.communicate()
        return (session.said + (said or b"")).decode(errors="replace").strip()[-SAID:]


class RemoteNodes(Remote):
    """The GPU nodes: `slurm-mig node serve`."""

    def observe(self, names: Sequence[str]) -> dict[str, NodeFacts | SlurmMigError]:
        """Facts of all nodes, asked at the same time; a node that fails gives its error."""
        rested = {n for n in names if n in self._sessions and self._sessions[n].rested}
        found = self._observe(names, rested)
        # What a pause has ended is no fault of the node.
        return found | self._observe([n for n in names if n in rested - self._sessions.keys()], ())

    def _observe(
        self, names: Sequence[str], rested: Collection[str]
    ) -> dict[str, NodeFacts | SlurmMigError]:
        start = time.monotonic()
        found: dict[str, NodeFacts | SlurmMigError] = {}
        asked = []
        for name in names:
            try:
                self._send(name, "observe", None)
                asked.append(name)
            except SlurmMigError as error:
                found[name] = error
        for name in asked:
            patience_s = (
                min(RESTED_ANSWER_S, self._timeout_s) if name in rested else self._timeout_s
            )
            try:
                found[name] = decode(NodeFacts, self._receive(name, start + patience_s), name)
            except SlurmMigError as error:
                found[name] = error
        return found

    def reshape(self, name: str, change: NodeChange) -> NodeFacts:
        return decode(NodeFacts, self._call(name, "reshape", encode(change)), name)

    def own(self, name: str, outside: Sequence[Outside]) -> None:
        self._call(name, "own", encode(list(outside)))

    def prepare(self, name: str, slots: Slots) -> None:
        self._call(name, "prepare", encode(slots))

    def publish(self, name: str, slots: Slots) -> None:
        self._call(name, "publish", encode(slots))

    def preregister(self, name: str, slots: Slots) -> None:
        self._call(name, "preregister", encode(slots))

    def follow(self, name: str, slurmd_pid: int) -> None:
        self._call(name, "follow", slurmd_pid)

    def announce(self, name: str) -> None:
        self._call(name, "announce", None)

    def gpus(self, name: str, request: Any) -> Any:
        """A verb about the node's GPUs, encoded, and its encoded answer."""
        return self._call(name, "gpus", request)

    def write_files(self, name: str, node: ManagedNode) -> None:
        self._call(name, "write_files", encode(node))

    def leave_files(self, name: str) -> None:
        self._call(name, "leave_files", None)

    def gres_lines(self, name: str) -> list[dict[str, str]]:
        """Attributes of the gpu lines in the node's own gres.conf."""
        return decode(list[dict[str, str]], self._call(name, "gres_lines", None), name)


class RemoteControllers(Remote):
    """The other slurmctlds' hosts: `slurm-mig files serve`."""

    def __init__(self, hosts: Sequence[str], command: Sequence[str], timeout_s: float) -> None:
        super().__init__(command, timeout_s)
        self.hosts = tuple(hosts)

    def check(
        self, host: str, nodes: Sequence[ManagedNode], also: Sequence[ManagedNode]
    ) -> list[str]:
        """Stale files there. Raises DriftError as ManagedFiles.check does."""
        both = [encode(list(nodes)), encode(list(also))]
        return decode(list[str], self._call(host, "check", both), host)

    def commit(self, host: str, nodes: Sequence[ManagedNode]) -> None:
        self._call(host, "commit", encode(list(nodes)))


def _remote_error(name: str, data: Any) -> SlurmMigError:
    """The node's own error as the same kind of error here."""
    if not isinstance(data, Mapping):
        return UnreachableError(f"{name}: unreadable error from the node")
    message, hint = f"{name}: {data.get('message')}", str(data.get("hint") or "")
    if data.get("kind") == "GpuError":
        code = data.get("code")
        return GpuError(message, code=code if isinstance(code, int) else 0, hint=hint)
    kind = getattr(errors, str(data.get("kind")), SlurmMigError)
    if not (isinstance(kind, type) and issubclass(kind, SlurmMigError)):
        raise ConfigError(f"{name}: unknown error kind from the node")
    return kind(message, hint=hint)
