"""What Slurm's cgroup/v2 plugin makes of a step's devices, where Slurm itself runs under v1.

Under cgroup v2 the kernel has no list of devices: it asks a BPF program that is attached to the
step's group. Slurm (plugins/cgroup/v2, 24.11 to 26.05) writes that program when the step starts and
never again. It compares every device file that gres.conf names, each once, by type, major and
minor, in order; the first that matches says yes (the step's own) or no, whatever kind of access is
wanted; a device that nothing matches is allowed. `rules` and `program` make one of that shape.

    python -m tests.testbed.device_program GRES_CONF OWN PREFIX [--without-guard]

runs `opens.py --wait PREFIX` as alice, in a fresh group with the program of a step that has the
OWN-th slot of GRES_CONF (a published one, of a single node), and says `begun` when it waits.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import re
import struct
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

OPENS = Path(__file__).with_name("opens.py")

SYS_BPF = {"x86_64": 321, "aarch64": 280}
PROG_LOAD, PROG_ATTACH = 5, 8
CGROUP_DEVICE_PROGRAM, CGROUP_DEVICE_ATTACH = 15, 6
ALLOW_OVERRIDE = 1
CHAR_DEVICE = 2

# Instructions of BPF (linux/bpf.h, linux/bpf_common.h): code, registers, offset, immediate.
LOAD_WORD = 0x61
AND_WORD = 0x54
JUMP_UNLESS = 0x55
SET = 0xB7
EXIT = 0x95
RESULT, CONTEXT, TYPE, MAJOR, MINOR = 0, 1, 2, 4, 5


@dataclass(frozen=True)
class Rule:
    """One device and whether the step may have it."""

    major: int
    minor: int
    allowed: bool


@dataclass(frozen=True)
class Slot:
    """One gpu line of gres.conf."""

    type: str
    files: tuple[str, ...]


def slots(gres_conf: str) -> list[Slot]:
    """The gpu lines, in order; `cap[3,12]` expanded as Slurm's reader does."""
    found = []
    for line in gres_conf.splitlines():
        words = dict(re.findall(r"(\w+)=(\S+)", line))
        if words.get("Name") == "gpu":
            listed = words.get("File") or words["MultipleFiles"]
            found.append(Slot(words["Type"], tuple(_expanded(listed))))
    return found


def _expanded(listed: str) -> Iterator[str]:
    for stem, numbers, plain in re.findall(r"([^,\[]+)\[([\d,]+)\]|([^,\[]+)", listed):
        yield from [f"{stem}{n}" for n in numbers.split(",")] if stem else [plain]


def rules(slots: Sequence[Slot], own: Collection[int]) -> list[Rule]:
    """Every file of the slots once, allowed when a slot of `own` has it."""
    mine = {file for index in own for file in slots[index].files}
    found = []
    for file in dict.fromkeys(file for slot in slots for file in slot.files):
        number = os.stat(file).st_rdev
        found.append(Rule(os.major(number), os.minor(number), file in mine))
    return found


def program(devices: Sequence[Rule]) -> bytes:
    """The instructions. Allows what no rule names."""
    code = [
        _word(LOAD_WORD, TYPE, CONTEXT, 0),
        _word(AND_WORD, TYPE, immediate=0xFFFF),
        _word(LOAD_WORD, MAJOR, CONTEXT, 4),
        _word(LOAD_WORD, MINOR, CONTEXT, 8),
    ]
    for device in devices:
        code += [
            _word(JUMP_UNLESS, TYPE, offset=4, immediate=CHAR_DEVICE),
            _word(JUMP_UNLESS, MAJOR, offset=3, immediate=device.major),
            _word(JUMP_UNLESS, MINOR, offset=2, immediate=device.minor),
            _word(SET, RESULT, immediate=int(device.allowed)),
            _word(EXIT),
        ]
    code += [_word(SET, RESULT, immediate=1), _word(EXIT)]
    return b"".join(code)


def _word(code: int, to: int = 0, source: int = 0, offset: int = 0, immediate: int = 0) -> bytes:
    return struct.pack("=BBhi", code, source << 4 | to, offset, immediate)


def attach(group: Path, code: bytes) -> None:
    """Load a program and attach it to a group, for the groups below it too. Raises OSError."""
    instructions = ctypes.create_string_buffer(code, len(code))
    licence = ctypes.create_string_buffer(b"GPL")
    request = struct.pack(
        "=IIQQ", CGROUP_DEVICE_PROGRAM, len(code) // 8,
        ctypes.addressof(instructions), ctypes.addressof(licence),
    )  # fmt: skip
    loaded = _bpf(PROG_LOAD, request)
    folder = os.open(group, os.O_RDONLY | os.O_DIRECTORY)
    try:
        request = struct.pack("=IIII", folder, loaded, CGROUP_DEVICE_ATTACH, ALLOW_OVERRIDE)
        _bpf(PROG_ATTACH, request)
    finally:
        os.close(folder)
        os.close(loaded)


def _bpf(command: int, request: bytes) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    padded = ctypes.create_string_buffer(request, 128)
    done = int(libc.syscall(SYS_BPF[platform.machine()], command, padded, len(padded)))
    if done < 0:
        raise OSError(ctypes.get_errno(), f"bpf command {command} failed")
    return done


@contextlib.contextmanager
def device_group() -> Iterator[Path]:
    """A fresh cgroup v2 group with one below it, gone at the end. Needs root."""
    # scripts/lib/enter.sh removes what bears its own pid when we could not.
    name = f"slurm-mig-{os.environ.get('SLURM_MIG_RUN', '0')}-{uuid.uuid4().hex[:8]}"
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["mount", "-t", "cgroup2", "none", folder], check=True)
        group = Path(folder) / name
        try:
            (group / "task").mkdir(parents=True)
            yield group
        finally:
            (group / "task").rmdir()
            group.rmdir()
            subprocess.run(["umount", folder], check=True)


def run_in(group: Path, argv: Sequence[str], user: str) -> None:
    """A user's command, in the group below this one, as a job's tasks are below the job."""
    enter = 'echo $$ >"$0"; exec setpriv --reuid "$1" --regid "$1" --init-groups "${@:2}"'
    subprocess.run(
        ["bash", "-euc", enter, str(group / "task" / "cgroup.procs"), user, *argv], check=True
    )


def main(gres_conf: str, own: str, prefix: str, *options: str) -> None:
    listed = slots(Path(gres_conf).read_text())
    if "--without-guard" in options:
        listed = [slot for slot in listed if slot.type != "guard"]
    with device_group() as group:
        attach(group, program(rules(listed, {int(own)})))
        print("begun", flush=True)
        run_in(group, [sys.executable, str(OPENS), "--wait", prefix], "alice")


if __name__ == "__main__":
    main(*sys.argv[1:])
