"""The node's operating system: capability device nodes, slurmd, its hooks, the slot map.

Runs on the GPU node as root; needs the standard library only.
"""

from __future__ import annotations

import os
import pwd
import re
import select
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from slurm_mig.adapters.findslurmd import SlurmdFinder
from slurm_mig.errors import ConfigError, SlurmMigError, UnreachableError

CAP_MODE = 0o444
"""Mode of a capability node (driver default; only mig/config is 0400)."""

FOLLOW_S = 10.0
"""How long slurmctld may take to pass a reconfigure on to a slurmd."""

SIGHUP_AGAIN_S = 1.0
"""How long a slurmd may take to follow a SIGHUP before it is told again."""

FORBIDDEN_MINORS = frozenset({1, 2})
"""mig/config and mig/monitor: never handed to a job."""


def caps_major() -> int:
    """Major number of `nvidia-caps` from /proc/devices. Raises UnreachableError."""
    for line in Path("/proc/devices").read_text().splitlines():
        match = re.fullmatch(r"\s*(\d+) nvidia-caps", line)
        if match:
            return int(match[1])
    raise UnreachableError(
        "/proc/devices has no nvidia-caps line", hint="Is the NVIDIA driver loaded, with MIG?"
    )


def ensure_device_files(files: Iterable[str], major: Callable[[], int] = caps_major) -> list[str]:
    """Make the capability nodes that are missing; returns the paths made.

    slurmd dies when a File of gres.conf does not exist, so this comes before its restart. The
    driver makes such nodes on demand; one made here is the same node. A node of another device is
    one of an earlier driver, whose major number was another: Slurm would deny that, and not the
    instance. Raises ConfigError for a missing file that is not a capability node, and for
    capabilities no job may have, before anything is made.
    """
    wanted = list(dict.fromkeys(files))
    for file in wanted:
        if capability_of(file) in FORBIDDEN_MINORS:
            raise ConfigError(f"{file} gives the right to change MIG: no slot may have it")
        if capability_of(file) is None and not os.path.exists(file):
            raise ConfigError(f"device file {file} does not exist", hint="slurmd would not start.")
    minors = {file: minor for file in wanted if (minor := capability_of(file)) is not None}
    driver = major() if minors else 0
    numbers = {file: os.makedev(driver, minor) for file, minor in minors.items()}
    made = [file for file, number in numbers.items() if _device_number(file) != number]
    for file in made:
        _make_node(file, numbers[file])
    return made


def capability_of(file: str) -> int | None:
    """The minor of a capability node, None for another file."""
    match = re.fullmatch(r".*/nvidia-cap(\d+)", file)
    return int(match[1]) if match else None


def _device_number(file: str) -> int | None:
    """Number of a device file, 0 for another kind of file, None for none."""
    try:
        return os.stat(file).st_rdev
    except OSError:
        return None


def _make_node(file: str, number: int) -> None:
    """In place of what is there, without a moment in which there is nothing."""
    os.makedirs(os.path.dirname(file), exist_ok=True)
    new = f"{file}.new"
    with suppress(FileNotFoundError):
        os.unlink(new)
    os.mknod(new, stat.S_IFCHR | CAP_MODE, number)
    os.chmod(new, CAP_MODE)
    os.rename(new, file)


class Slurmd:
    """This node's slurmd, as `finder` finds it, and the site's restart command."""

    def __init__(
        self,
        finder: SlurmdFinder,
        restart_command: Sequence[str],
        deadline_s: float,
        slurm_conf: str = "/etc/slurm/slurm.conf",
    ) -> None:
        self._finder = finder
        self._slurm_conf = Path(slurm_conf)
        self._restart_command = list(restart_command)
        self._deadline_s = deadline_s

    def pid(self) -> int:
        """Pid of the running slurmd, 0 if there is none."""
        return self._finder.pid()

    def reload(self) -> int:
        """Have slurmd take up its new configuration and register; returns the new pid.

        On SIGHUP slurmd finishes the requests under way, starts itself anew with the same listening
        socket, and ends only when the new one is up (source: slurmd.c `_try_to_reconfig`, 23.11 and
        later). No step launch is refused meanwhile, as between a stop and a start, and with files
        that it cannot use it stays as it was. A slurmd that is not there is started by the site's
        command; one that does not follow by the deadline is killed first (steps live on in
        slurmstepd), unless that would lose something: UnreachableError.
        """
        asked = _now_ticks()
        old = self.pid()
        while new := self._follows_sighup(old):
            if _started_ticks(new) >= asked:
                return new
            # Somebody had told the old one before us, and it took its time: this one was already on
            # its way and may have read the files as they were then; our signal went unheard.
            old = new
        if _alive(old):
            if loss := self._lost_if_killed():
                raise UnreachableError(
                    f"slurmd {old} did not reload within {self._deadline_s:g} s; "
                    f"it was not killed: {loss}",
                    hint="Restart slurmd on the node; the next cycle goes on from there.",
                )
            os.kill(old, signal.SIGKILL)
            _wait(lambda: int(not _alive(old)), self._deadline_s)
        return self.restart()

    def _follows_sighup(self, old: int) -> int:
        """The pid of the slurmd that takes the place of `old` when told to; 0 for none in time.

        Told again every second: one that has just started can miss the signal (seen once), and a
        second one to a slurmd that is going already does nothing.
        """
        if not old or not _wait(lambda: int(_minds_sighup(old)), self._deadline_s):
            return 0
        deadline = time.monotonic() + self._deadline_s
        while _alive(old) and time.monotonic() < deadline:
            with suppress(ProcessLookupError):
                os.kill(old, signal.SIGHUP)
            if new := _wait(lambda: self._changed(old), SIGHUP_AGAIN_S):
                return new
        return self._changed(old)

    def follow(self, old: int) -> int:
        """Wait until slurmctld has had slurmd start anew (a reconfigure); returns the new pid.

        A slurmd that the reconfigure has not reached in time is reloaded: without files of its own
        it asks slurmctld for them then.
        """
        return _wait(lambda: self._changed(old), FOLLOW_S) or self.reload()

    def _lost_if_killed(self) -> str:
        """Why a kill would cost a job: a hook that runs, or the memory of prologs that have run.

        With PrologFlags=Alloc (which Contain and X11 imply) slurmd remembers for which jobs the
        prolog is done; killed, it forgets, and the job's next step fails after 20 s (measured).
        """
        if running := self.hooks():
            return f"it runs {', '.join(running)}"
        flags = conf_value(self._slurm_conf, "PrologFlags")
        return f"PrologFlags={flags}: jobs would lose their next step" if flags else ""

    def restart(self) -> int:
        """Restart slurmd (its steps live on in slurmstepd) and return the new pid.

        Raises UnreachableError when the command fails or no new slurmd is up by the deadline.
        """
        old = self.pid()
        try:
            subprocess.run(
                self._restart_command,
                check=True,
                capture_output=True,
                text=True,
                stdin=subprocess.DEVNULL,
                timeout=self._deadline_s,
            )
        except (OSError, subprocess.SubprocessError) as error:
            detail = getattr(error, "stderr", "") or error
            raise UnreachableError(
                f"restarting slurmd failed ({' '.join(self._restart_command)}): {detail}",
                hint="See slurmd's log on the node.",
            ) from error
        new = _wait(lambda: self._changed(old), self._deadline_s)
        if not new:
            raise UnreachableError(
                f"slurmd is not up {self._deadline_s:g} s after its restart",
                hint="See slurmd's log on the node; `slurm-mig check` there says if it is found.",
            )
        return new

    def _changed(self, old: int) -> int:
        """The pid of another slurmd than the old one, once the old one is gone and it is up."""
        if _alive(old):
            return 0
        pid = self.pid()
        return pid if pid != old and _minds_sighup(pid) else 0

    def announce(self) -> int:
        """Have slurmd register at once: it does when it takes up its configuration anew. Returns
        the new pid; see `reload`. Raises UnreachableError when none runs."""
        if not _wait(self.pid, self._deadline_s):
            raise UnreachableError(
                "no slurmd runs here",
                hint="Start it; `slurm-mig check` on the node says if it is found.",
            )
        return self.reload()

    def hooks(self) -> tuple[str, ...]:
        """Prologs and epilogs that slurmd runs now: its children that are other programs."""
        pid = self.pid()
        return tuple(_other_programs(pid)) if pid else ()


def _minds_sighup(pid: int) -> bool:
    """True once the process handles SIGHUP: before, it would die of it.

    That its first thread blocks it says nothing: the C library blocks every signal for the moment
    in which a thread is made, and slurmd makes some before it handles any (measured: a SIGHUP then
    ended slurmd, and a minute later its jobs).
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    caught = re.search(r"(?m)^SigCgt:\t([0-9a-f]+)", status)
    return caught is not None and bool(int(caught[1], 16) & 1 << (signal.SIGHUP - 1))


def _alive(pid: int) -> bool:
    """False for no process and for one that has ended and waits for its parent."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return pid > 0 and state != "Z"


def _now_ticks() -> int:
    """Now, as /proc counts the start of processes."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))


def _started_ticks(pid: int) -> int:
    """When the process started, in clock ticks since the boot; 0 for one that is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, IndexError):
        return 0


def _other_programs(parent: int) -> Iterator[str]:
    """Children as `pid name`, without slurmd's own: a forked one that is about to become a
    slurmstepd bears the name of one of slurmd's threads, so the program file tells."""
    own = _exe(parent)
    for task in Path(f"/proc/{parent}/task").glob("*/children"):
        with suppress(OSError):
            for pid in map(int, task.read_text().split()):
                program = _exe(pid)
                if program and program != own and not program.endswith("/slurmstepd"):
                    yield f"{pid} {program.rpartition('/')[2]}"


def _exe(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return ""


def stepd_jobs() -> frozenset[int]:
    """Jobs that have a slurmstepd on this host, by the title that it gives itself."""
    found = set()
    for comm in Path("/proc").glob("[0-9]*/comm"):
        with suppress(OSError):
            if comm.read_text().startswith("slurmstepd"):
                title = comm.with_name("cmdline").read_bytes()
                if match := re.match(rb"slurmstepd: \[(\d+)", title):
                    found.add(int(match[1]))
    return frozenset(found)


def describe_process(pid: int) -> str:
    """`process 123 (python, uid 1001)`."""
    try:
        name = Path(f"/proc/{pid}/comm").read_text().strip()
        uid = Path(f"/proc/{pid}").stat().st_uid
    except OSError:
        return f"process {pid}"
    return f"process {pid} ({name}, uid {uid})"


def is_of_job(pid: int, job: int, uid: int) -> bool:
    """True for a process that a job started: its environment says so, or it is its user's."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        owner = Path(f"/proc/{pid}").stat().st_uid
    except OSError:
        return False
    return owner != 0 and (f"SLURM_JOB_ID={job}".encode() in environment or owner == uid)


def end_process(pid: int, patience_s: float, meant: Callable[[int], bool]) -> None:
    """SIGTERM, and SIGKILL to what does not end by then. `meant` is asked once the process is held
    by a descriptor, so that no other process that gets the number meanwhile is touched."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if not meant(pid):
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, number)
            if select.select([descriptor], [], [], patience_s)[0]:
                return
    finally:
        os.close(descriptor)


def _wait(ready: Callable[[], int], deadline_s: float) -> int:
    end = time.monotonic() + deadline_s
    while True:
        value = ready()
        if value or time.monotonic() > end:
            return value
        time.sleep(0.002)


def devices_constrained(slurm_conf: Path) -> bool:
    """True if cgroup.conf beside slurm.conf says ConstrainDevices=yes."""
    try:
        text = (slurm_conf.parent / "cgroup.conf").read_text()
    except OSError:
        return False
    return re.search(r"(?im)^\s*ConstrainDevices\s*=\s*yes\b", text) is not None


def conf_value(file: Path, key: str) -> str:
    """The value of a key in slurm.conf or a file that it includes, the last one given; empty
    when there is none. For single values only: adapters/slurmfiles reads the files for real."""
    found = ""
    try:
        lines = file.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    for line in lines:
        if match := re.match(r"(?i)\s*include\s+([^\s#]+)", line):
            found = conf_value(file.parent / match[1], key) or found
        elif match := re.match(rf"(?i)\s*{key}\s*=\s*([^\s#]+)", line):
            found = match[1]
    return found


class RealClock:
    """The machine's clock."""

    def now(self) -> float:
        return time.time()

    def elapsed(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


def who_asks() -> str:
    """The user behind this command, for the record only: root's own word where sudo was used."""
    name = os.environ.get("SUDO_USER", "")
    if re.fullmatch(r"[A-Za-z0-9_][\w.-]*", name, re.ASCII):
        return name
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid {os.getuid()}"


def require_root(doing: str) -> None:
    """Raises SlurmMigError when not root."""
    if os.geteuid() != 0:
        raise SlurmMigError(f"{doing} needs root; nothing was changed")
