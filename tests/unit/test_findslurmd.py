"""Which process is the node's slurmd: real processes of a program of that name."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from slurm_mig.adapters.findslurmd import REGISTRAR, SlurmdFinder, expanded

Start = Callable[..., int]


@pytest.fixture
def start(tmp_path: Path, program: Path) -> Iterator[Start]:
    """Starts a process, up when this returns its pid: `before` the program, with these options."""
    started: list[subprocess.Popen[str]] = []

    def one(
        *options: str,
        before: tuple[str, ...] = (),
        path: Path = program,
        environment: Mapping[str, str] | None = None,
    ) -> int:
        code = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
        process = subprocess.Popen(
            [*before, path, "-c", code, *options], stdout=subprocess.PIPE, text=True,
            env={**os.environ, **(environment or {})}, start_new_session=True,
        )  # fmt: skip
        started.append(process)
        assert process.stdout is not None
        return int(process.stdout.readline())

    yield one
    for process in started:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture
def finder(tmp_path: Path) -> SlurmdFinder:
    return SlurmdFinder(str(tmp_path / "%n.pid"), tmp_path.name)


def test_the_oldest_of_this_node_without_a_pid_file(
    tmp_path: Path, start: Start, finder: SlurmdFinder
) -> None:
    """In a reload the old one serves until it ends; then the new one is found."""
    assert finder.pid() == 0
    start("-N", "another")
    first = start("--systemd", "-N", tmp_path.name)
    second = start(f"-DN{tmp_path.name}")
    assert finder.pid() == first
    os.kill(first, signal.SIGKILL)
    os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)
    assert finder.pid() == second


def test_debians_name_counts_and_others_do_not(
    tmp_path: Path, program: Path, start: Start, finder: SlurmdFinder
) -> None:
    for name in ("slurmdbd", "slurmstepd", "myslurmd"):
        start("-N", tmp_path.name, path=program.rename(tmp_path / name))
        program = tmp_path / name
    assert finder.pid() == 0
    debians = start("-N", tmp_path.name, path=program.rename(tmp_path / "slurmd-wlm"))
    assert finder.pid() == debians


@pytest.mark.parametrize(
    ("before", "environment"),
    [
        (("setpriv", "--reuid=nobody", "--clear-groups"), {}),
        (("unshare", "--net"), {}),
        ((), {REGISTRAR: "1"}),
    ],
    ids=["a user's", "in another network", "one that only passes"],
)
def test_one_that_is_not_this_nodes(
    tmp_path: Path,
    start: Start,
    finder: SlurmdFinder,
    before: tuple[str, ...],
    environment: Mapping[str, str],
) -> None:
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    start("-N", tmp_path.name, before=before, environment=environment)
    assert finder.pid() == 0


def test_another_program_by_the_name_of_slurmd(
    tmp_path: Path, start: Start, finder: SlurmdFinder
) -> None:
    """A link gives a process its name, which a user may choose, and not its program."""
    sleep = shutil.which("sleep")
    assert sleep is not None
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "slurmd").symlink_to(sleep)
    process = subprocess.Popen([tmp_path / "bin" / "slurmd", "60"])
    try:
        assert finder.pid() == 0
    finally:
        process.kill()
        process.wait()


def test_a_pid_file_tells_unless_its_slurmd_is_gone(
    tmp_path: Path, start: Start, finder: SlurmdFinder
) -> None:
    """Left by one that was killed it may name any process, which nobody may end then."""
    _, second = (start("-N", tmp_path.name) for _ in range(2))
    file = tmp_path / f"{tmp_path.name}.pid"
    file.write_text(f"{second}\n")
    assert finder.pid() == second
    for stale in (f"{os.getpid()}\n", "", "none\n"):
        file.write_text(stale)
        assert finder.pid() == second


def test_the_names_in_a_pid_files_path() -> None:
    host = socket.gethostname().partition(".")[0]
    assert expanded("/run/%h/slurmd-%n.pid", "n1") == Path(f"/run/{host}/slurmd-n1.pid")
