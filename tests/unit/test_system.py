"""The node's device files and slurmd."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slurm_mig.adapters import system
from slurm_mig.adapters.findslurmd import SlurmdFinder
from slurm_mig.errors import ConfigError, UnreachableError


@pytest.mark.parametrize("minor", [1, 2])
def test_the_right_to_change_mig_is_never_handed_out(minor: int) -> None:
    with pytest.raises(ConfigError, match="no slot may have it"):
        system.ensure_device_files([f"/dev/nvidia-caps/nvidia-cap{minor}"])


def test_a_missing_file_that_is_no_capability_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        system.ensure_device_files([str(tmp_path / "nvidia0")])


def test_constrained_devices_are_read_from_cgroup_conf(tmp_path: Path) -> None:
    conf = tmp_path / "slurm.conf"
    assert not system.devices_constrained(conf)
    (tmp_path / "cgroup.conf").write_text("# ConstrainDevices=yes\n")
    assert not system.devices_constrained(conf)
    (tmp_path / "cgroup.conf").write_text("constraindevices = YES\n")
    assert system.devices_constrained(conf)


def of(folder: Path, restart: str, deadline_s: float) -> system.Slurmd:
    """The slurmd of the pid file in a folder, and no other."""
    finder = SlurmdFinder(str(folder / "slurmd.pid"), folder.name)
    return system.Slurmd(finder, [restart], deadline_s)


def test_a_slurmd_that_does_not_come_up_is_reported(tmp_path: Path) -> None:
    slurmd = of(tmp_path, "/bin/true", 0.05)
    assert slurmd.pid() == 0
    with pytest.raises(UnreachableError, match="not up"):
        slurmd.restart()
    with pytest.raises(UnreachableError, match="restarting slurmd failed"):
        of(tmp_path, "/bin/false", 1).restart()


SLURMD = """
import os, signal, subprocess, sys
signal.signal(signal.SIGHUP, signal.SIG_IGN)
open(sys.argv[3], "w").write(str(os.getpid()))
child = subprocess.Popen(sys.argv[4:]) if sys.argv[4:] else None
print("up", flush=True)
signal.pause()
"""


@pytest.fixture
def hanging(tmp_path: Path, program: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts what looks like a slurmd that does not follow SIGHUP, with a child if one is named."""
    started = []

    def start(*child: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [program, "-c", SLURMD, "-N", tmp_path.name, str(tmp_path / "slurmd.pid"), *child],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        return process

    yield start
    for process in started:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_a_slurmd_that_runs_a_hook_is_not_killed(
    tmp_path: Path, hanging: Callable[..., subprocess.Popen[str]]
) -> None:
    process = hanging("sleep", "60")
    slurmd = of(tmp_path, "/bin/true", 0.2)
    assert [hook.split()[1] for hook in slurmd.hooks()] == [file_of("sleep")]
    with pytest.raises(UnreachableError, match="it was not killed"):
        slurmd.reload()
    assert process.poll() is None


def test_a_slurmd_that_hangs_is_killed(
    tmp_path: Path, program: Path, hanging: Callable[..., subprocess.Popen[str]]
) -> None:
    """A child that runs slurmd's own program is a step about to start, not a hook."""
    process = hanging(str(program), "-c", "import time; time.sleep(60)", "-N", tmp_path.name)
    slurmd = of(tmp_path, "/bin/true", 0.2)
    assert slurmd.hooks() == ()
    with pytest.raises(UnreachableError, match="not up"):
        slurmd.reload()
    assert process.wait() == -signal.SIGKILL


RELOADING = """
import os, signal, subprocess, sys, time
from pathlib import Path
here, takes_over_after = Path(sys.argv[3]), float(sys.argv[4])
time.sleep(takes_over_after)
old = here / "slurmd.pid"
before = int(old.read_text()) if old.exists() else 0
asked = []
signal.signal(signal.SIGHUP, lambda *_: asked.append(1))
old.write_text(str(os.getpid()))
if before:
    os.kill(before, signal.SIGKILL)
while not asked:
    time.sleep(0.01)
child = subprocess.Popen(
    [sys.executable, *sys.orig_argv[1:6], "0.5"], start_new_session=True
)
(here / "child").write_text(str(child.pid))
child.wait()
"""


def test_a_slurmd_that_was_told_to_reload_before_is_told_again(
    tmp_path: Path, program: Path
) -> None:
    """A reload of somebody else's, under way: its slurmd may have read the files as they were."""
    pid_file, child = tmp_path / "slurmd.pid", tmp_path / "child"
    words: list[str | Path] = [program, "-c", RELOADING, "-N", tmp_path.name, tmp_path, "0"]
    first = subprocess.Popen(words, start_new_session=True)
    slurmd = of(tmp_path, "/bin/false", 10)
    try:
        until(lambda: pid_file.exists() and pid_file.read_text() != "")
        assert slurmd.pid() == first.pid
        os.kill(first.pid, signal.SIGHUP)
        until(lambda: child.exists() and child.read_text() != "")
        on_its_way = int(child.read_text())
        time.sleep(0.05)  # the kernel counts starts in hundredths of a second
        assert slurmd.reload() not in (first.pid, on_its_way)
    finally:
        os.kill(slurmd.pid(), signal.SIGKILL)
        first.wait()


MISSING_ONE = """
import os, signal, subprocess, sys, time
asked = []
signal.signal(signal.SIGHUP, lambda *_: asked.append(1))
name, folder = sys.argv[2:]
open(folder + "/slurmd.pid", "w").write(str(os.getpid()))
while len(asked) < 2:
    time.sleep(0.01)
NEXT = "import signal, time; signal.signal(signal.SIGHUP, lambda *_: None); time.sleep(60)"
new = subprocess.Popen([sys.executable, "-c", NEXT, "-N", name])
open(folder + "/slurmd.pid", "w").write(str(new.pid))
"""


def test_a_slurmd_that_misses_the_signal_is_told_again(tmp_path: Path, program: Path) -> None:
    words: list[str | Path] = [program, "-c", MISSING_ONE, "-N", tmp_path.name, tmp_path]
    first = subprocess.Popen(words, start_new_session=True)
    slurmd = of(tmp_path, "/bin/false", 10)
    try:
        until(lambda: slurmd.pid() == first.pid)
        new = slurmd.announce()
        assert new not in (0, first.pid)
    finally:
        first.wait()
        os.kill(slurmd.pid(), signal.SIGKILL)


def until(ready: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.01)


def file_of(command: str) -> str:
    """The name of a command's program file, as /proc shows it."""
    found = shutil.which(command)
    assert found is not None
    return os.path.basename(os.path.realpath(found))
