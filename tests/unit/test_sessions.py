"""Sessions with the nodes that are kept between cycles: both ends, over pipes and processes."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm_mig.adapters import sessions
from slurm_mig.adapters.remote import RemoteNodes
from slurm_mig.adapters.requests import Code, Requests
from slurm_mig.core.records import NodeFacts
from slurm_mig.errors import SlurmMigError, UnreachableError

NODE = """\
import json, os, sys, time
log = open(sys.argv[1], "a", buffering=1)
log.write(f"{os.getpid()}\\n")
for line in sys.stdin:
    verb = json.loads(line)["verb"]
    if os.path.exists(sys.argv[1] + ".noise"):
        sys.stderr.write("x" * 200_000 + "the end\\n")
    if os.path.exists(sys.argv[1] + ".broken"):
        sys.exit("gone wrong")
    facts = {"gpus": [], "driver": verb, "slurmd_pid": os.getpid(), "hooks": []}
    print(json.dumps({"result": facts}), flush=True)
"""


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[RemoteNodes]:
    """A node whose command notes its pid in the file `log`."""
    script = tmp_path / "node.py"
    script.write_text(NODE)
    with RemoteNodes([sys.executable, str(script), str(tmp_path / "log")], 10) as found:
        yield found


def pid(nodes: RemoteNodes) -> int:
    facts = nodes.observe(["n1"])["n1"]
    assert isinstance(facts, NodeFacts), facts
    return facts.slurmd_pid


def gone(process: int) -> bool:
    try:
        os.waitpid(process, os.WNOHANG)
    except ChildProcessError:
        return True
    return False


def test_one_process_serves_cycle_after_cycle(nodes: RemoteNodes) -> None:
    first = pid(nodes)
    for _ in range(3):
        nodes.rest()
        assert pid(nodes) == pid(nodes) == first
    nodes.close()
    assert gone(first)
    assert pid(nodes) != first


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_session_that_did_not_survive_the_pause_is_begun_anew(
    nodes: RemoteNodes,
    number: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ended, or cut off without anybody knowing."""
    monkeypatch.setattr(sessions, "RESTED_ANSWER_S", 0.3)
    first = pid(nodes)
    nodes.rest()
    os.kill(first, number)
    assert pid(nodes) != first
    assert gone(first)


def test_a_session_that_ended_in_the_pause_is_replaced_for_any_request(nodes: RemoteNodes) -> None:
    first = pid(nodes)
    nodes.rest()
    os.kill(first, signal.SIGKILL)
    time.sleep(0.1)
    nodes.announce("n1")


def test_one_that_breaks_within_a_cycle_is_a_fault_of_the_node(
    nodes: RemoteNodes, tmp_path: Path
) -> None:
    first = pid(nodes)
    (tmp_path / "log.broken").touch()
    found = nodes.observe(["n1"])["n1"]
    assert isinstance(found, UnreachableError)
    assert "gone wrong" in str(found)
    # After a pause it is tried once more, and only once.
    (tmp_path / "log.broken").unlink()
    second = pid(nodes)
    nodes.rest()
    (tmp_path / "log.broken").touch()
    assert isinstance(nodes.observe(["n1"])["n1"], SlurmMigError)
    assert len((tmp_path / "log").read_text().split()) == 3
    assert first != second


def test_what_a_node_writes_to_stderr_never_stops_it(nodes: RemoteNodes, tmp_path: Path) -> None:
    """More than a pipe holds, in several cycles; the end of it is told when it breaks."""
    first = pid(nodes)
    (tmp_path / "log.noise").touch()
    for _ in range(3):
        assert pid(nodes) == first
        nodes.rest()
        assert pid(nodes) == first
    (tmp_path / "log.broken").touch()
    found = nodes.observe(["n1"])["n1"]
    assert "the end\ngone wrong" in str(found)


class Session:
    """The node's end: a pipe, and what was called."""

    def __init__(self, idle_s: float = 600.0, *, outdated: bool = False) -> None:
        self.called: list[str] = []
        self.outdated = outdated
        self._reader, self._writer = os.pipe()
        requests = Requests(
            self._reader,
            lambda: self.called.append("rest"),
            lambda: self.called.append("wake"),
            lambda: self.outdated,
            idle_s,
        )
        self.lines = iter(requests)

    def send(self, data: bytes) -> None:
        os.write(self._writer, data)

    def end(self) -> None:
        os.close(self._writer)


def test_lines_as_they_come() -> None:
    session = Session()
    session.send(b"one\ntwo\nth")
    assert [next(session.lines), next(session.lines)] == ["one", "two"]
    session.send(b"ree\n")
    session.end()
    assert list(session.lines) == ["three"]
    assert session.called == []


def test_a_pause_lets_go_of_the_driver_until_the_next_line() -> None:
    session = Session()
    session.outdated = False
    later = threading.Timer(1.3, lambda: session.send(b"one\ntwo\n"))
    later.start()
    assert next(session.lines) == "one"
    assert next(session.lines) == "two"
    assert session.called == ["rest", "wake"]


def test_an_outdated_program_answers_nothing_after_a_pause() -> None:
    session = Session(outdated=True)
    session.send(b"one\n")
    assert next(session.lines) == "one"
    threading.Timer(1.3, lambda: session.send(b"two\n")).start()
    assert list(session.lines) == []
    assert session.called == ["rest"]


def test_a_session_that_nobody_asks_ends() -> None:
    start = time.monotonic()
    assert list(Session(idle_s=0.2).lines) == []
    assert time.monotonic() - start < 5


def test_a_program_that_was_changed_is_noticed(tmp_path: Path) -> None:
    package, other = tmp_path / "package", tmp_path / "conf.yaml"
    (package / "sub").mkdir(parents=True)
    (package / "sub" / "a.py").write_text("1\n")
    code = Code([other], package)
    assert not code.changed()
    other.write_text("x: 1\n")
    assert code.changed()
    code = Code([other], package)
    (package / "sub" / "a.py").write_text("12\n")
    assert code.changed()
    code = Code([other], package)
    (package / "sub" / "a.py").unlink()
    assert code.changed()
    assert not Code([other], package).changed()


MANY = """\
import json, os, sys, time
name, folder = sys.argv[1:]
open(f"{folder}/{name}.{os.getpid()}", "w").close()
for line in sys.stdin:
    if name.startswith("hangs"):
        time.sleep(60)
    if name.startswith("dies"):
        sys.exit("no such driver")
    if name.startswith("babbles"):
        print("?")
    print(json.dumps({"result": {"gpus": [], "driver": name}}), flush=True)
os.unlink(f"{folder}/{name}.{os.getpid()}")
"""


def test_many_are_asked_through_a_window_and_bad_ones_keep_nobody_waiting(tmp_path: Path) -> None:
    script = tmp_path / "many.py"
    script.write_text(MANY)
    alive = tmp_path / "alive"
    alive.mkdir()
    command = [sys.executable, str(script), "%h", str(alive)]
    names = [f"n{n}" for n in range(12)]
    names[2:2], names[7:7] = ["hangs1", "dies1", "babbles1"], ["hangs2"]
    with RemoteNodes(command, 30, fanout=4, asking_s=2) as nodes:
        start = time.monotonic()
        found = nodes.observe(names)
        took = time.monotonic() - start
        assert sorted(found) == sorted(names)
        for name, facts in found.items():
            if name.startswith("n"):
                assert isinstance(facts, NodeFacts), facts
                assert facts.driver == name
            else:
                assert isinstance(facts, UnreachableError)
        assert "no answer in time" in str(found["hangs1"])
        assert "no such driver" in str(found["dies1"])
        assert "rubbish" in str(found["babbles1"])
        assert took < 10, "two that hang take their own time, side by side with the others"
        nodes.rest()
        kept = [path.name.split(".")[0] for path in alive.iterdir() if path.name.startswith("n")]
        assert len(kept) <= 4, "about as many sessions as are asked at a time"
        again = nodes.observe(["n11", *names[:2]])
        assert all(isinstance(facts, NodeFacts) for facts in again.values())
    assert not [path for path in alive.iterdir() if path.name.startswith("n")], "all have ended"


def runs(process: int) -> bool:
    state = Path(f"/proc/{process}/stat")
    return state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_process_that_the_command_leaves_behind_goes_with_it(tmp_path: Path) -> None:
    """ssh with ControlPersist keeps a process that holds the pipes."""
    mark = tmp_path / "pid"
    script = (
        "import os, sys, time\n"
        "child = os.fork()\n"
        "if child == 0: time.sleep(60)\n"
        f"open({str(mark)!r}, 'w').write(str(child))\n"
        "print('{\"result\": {\"gpus\": []}}' if sys.stdin.readline() else '', flush=True)\n"
        "sys.stdin.read()\n"
    )
    start = time.monotonic()
    with RemoteNodes([sys.executable, "-c", script], 30) as nodes:
        assert isinstance(nodes.observe(["n1"])["n1"], NodeFacts)
    assert time.monotonic() - start < 10
    child = int(mark.read_text())
    deadline = time.monotonic() + 5
    while runs(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not runs(child)
