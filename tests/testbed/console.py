"""The manual's console blocks, run as they stand: who types what where, and what comes of it.

    [alice@head]$ sbatch job.sh          a user, on a host of the testbed
    Submitted batch job ...              what it prints; `...` is anything within a line, and by
                                         itself any number of lines
    (exit 1)                             how it ends, where that is not 0

A line that begins with `> ` goes on with the command before. A comment `<!-- testbed: COMMAND -->`
is for the testbed alone: what stands around it does not apply there, or has to be waited for.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess

from slurm_mig.errors import Exit
from tests.testbed.cluster import Cluster

PROMPT = re.compile(r"\[(\w+)@([\w-]+)\][#$] (.*)")
EXIT = re.compile(r"\(exit (\d+)\)")
HIDDEN = re.compile(r"<!-- testbed: (.*) -->")
SOURCE = Path(__file__).parents[2]


@dataclass
class Step:
    """One command of a page."""

    line: int
    user: str
    host: str
    command: str
    expected: list[str]
    hidden: bool = False

    @property
    def exit(self) -> int:
        found = EXIT.fullmatch(self.expected[-1].strip()) if self.expected else None
        return int(found[1]) if found else 0

    @property
    def output(self) -> str:
        """What it should print; nothing where the page does not say."""
        stated = self.expected[:-1] if self.exit else self.expected
        return "\n".join(stated).strip("\n")


def steps(text: str) -> Iterator[Step]:
    """The commands of a page, in order. Raises ValueError for a block that is not understood."""
    inside = False
    step: Step | None = None
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("```"):
            if step:
                yield step
            inside, step = line == "```console", None
        elif found := HIDDEN.fullmatch(line):
            yield Step(number, "root", "head", found[1], [], hidden=True)
        elif inside and (prompt := PROMPT.fullmatch(line)):
            if step:
                yield step
            step = Step(number, prompt[1], prompt[2], prompt[3], [])
        elif inside and step is None:
            raise ValueError(f"line {number}: a console block begins with a prompt: {line!r}")
        elif step is not None and line.startswith("> ") and not step.expected:
            step.command += "\n" + line[2:]
        elif step is not None:
            step.expected.append(line)


def matches(stated: str, printed: str) -> bool:
    """Is it what the page says? How many spaces there are does not count."""
    pattern = "".join(
        r"(?:[^\n]*\n)*"
        if line == "..."
        else "[^\n]*".join(map(re.escape, line.split("..."))) + "\n"
        for line in _lines(stated)
    )
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in _lines(printed))) is not None


def _lines(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.strip("\n").splitlines()]


def run(cluster: Cluster, page: Path, profile: str = "") -> list[Step]:
    """Run a page on a cluster; each shell begins with `profile`. Raises AssertionError with place
    and output where it differs."""
    found = list(steps(page.read_text(encoding="utf-8")))
    for step in found:
        if step.hidden and step.command.startswith("restart "):
            cluster.restart_daemon(*step.command.split()[1:])
            continue
        node = None if step.host == "head" else step.host
        done = _typed(cluster, step, node, profile)
        place = f"{page.name}:{step.line}: {step.command}\n"
        assert done.returncode == step.exit, f"{place}exit {done.returncode}\n{done.stdout}"
        if step.output:
            assert matches(step.output, done.stdout), (
                f"{place}--- stated\n{step.output}\n--- printed\n{done.stdout}"
            )
    return found


def _typed(cluster: Cluster, step: Step, node: str | None, profile: str) -> CompletedProcess[str]:
    """What a person does who reads "another slurm-mig is at work": wait, and type it again."""
    shell = (
        f"{profile}exec 2>&1\ncd {SOURCE if step.user == 'root' else '/tmp/jobs'}\n{step.command}"
    )
    user = None if step.user == "root" else step.user
    deadline = time.monotonic() + 30
    while True:
        done = cluster.run("bash", "-c", shell, node=node, check=False, timeout=120, user=user,
                           env={"COLUMNS": "92"})  # fmt: skip
        busy = done.returncode == Exit.BUSY and "is at work" in done.stdout
        if not busy or time.monotonic() > deadline:
            return done
        time.sleep(0.3)
