"""A remote command that goes wrong when told to; it stands before the testbed's own.

    remote: {command: [python, -m, tests.testbed.faulty_remote, "%h"]}

What goes wrong is in /run/faults/remote, as `KIND VERB [TIMES]`; requests with another verb pass.

    fail      ends before the request reaches the node
    hang      the request does not reach the node, and there is never an answer
    rubbish   the request is served, the answer is something else
    lost      the request is served, the connection ends before the answer
    late      the connection ends; the request reaches the node two seconds later
    killed    the node command is killed with -9 while it serves the request
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

FAULT = Path("/run/faults/remote")
LATE_S = 2.0
LOST = 255
"""What ssh exits with when a connection is lost."""


def fault_of(verb: str) -> str:
    """The kind of fault that this request meets, if any; it is used up then."""
    try:
        kind, struck, *rest = FAULT.read_text().split()
    except (OSError, ValueError):
        return ""
    if struck not in (verb, "*"):
        return ""
    left = int(rest[0]) - 1 if rest else 0
    if left:
        FAULT.write_text(f"{kind} {struck} {left}\n")
    else:
        FAULT.unlink(missing_ok=True)
    return kind


class Node:
    """The real remote command."""

    def __init__(self, host: str) -> None:
        self.command = ["on-node", host, "slurm-mig", "node", "serve"]
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )

    def send(self, line: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line)
        self.process.stdin.flush()

    def answer(self) -> bytes:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def ask(self, line: bytes) -> bytes:
        self.send(line)
        return self.answer()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def later(host: str, line: bytes) -> None:
    """The request reaches the node when nobody waits for its answer any more."""
    if os.fork():
        return
    os.setsid()
    for descriptor in (0, 1, 2):
        os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
    time.sleep(LATE_S)
    node = Node(host)
    Path("/run/faults/late").write_bytes(node.ask(line))
    node.close()
    os._exit(0)


def killed(node: Node, line: bytes) -> None:
    """Killed as soon as it has begun: it has a process group of its own."""
    node.send(line)
    time.sleep(float(os.environ.get("FAULT_DELAY_S", "0.02")))
    os.killpg(node.process.pid, 9)


def main(host: str) -> int:
    node = Node(host)
    for line in sys.stdin.buffer:
        kind = fault_of(json.loads(line)["verb"])
        if kind == "hang":
            time.sleep(3600)
        if kind == "late":
            later(host, line)
        if kind == "killed":
            killed(node, line)
        if kind in ("fail", "late", "killed"):
            return LOST
        answer = node.ask(line)
        if kind == "lost" or not answer:
            return LOST
        sys.stdout.buffer.write(b"Welcome to this node!\n" if kind == "rubbish" else answer)
        sys.stdout.buffer.flush()
    node.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
