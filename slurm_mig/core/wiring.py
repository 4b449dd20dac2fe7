"""Is slurm-mig called from where Slurm's configuration says? From `scontrol show config`, pure.

A site's own prologs stay: a line of ours is added to them, a directory of theirs gets a link.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

NEEDED: Sequence[tuple[str, str, str]] = (
    ("TaskProlog", "task_prolog", "jobs get the UUIDs of their MIG instances"),
    ("Prolog", "prolog", "a job's instances are looked at before it starts"),
    ("Epilog", "epilog", "a job's instances are looked at after it ended"),
    ("PrologSlurmctld", "slurmctld_prolog", "no job starts on a node whose views differ"),
    ("EpilogSlurmctld", "slurmctld_epilog", "a job's end wakes a cycle"),
)
"""Key of slurm.conf, our program, what it is for."""

WORDS: Sequence[tuple[str, str, str]] = (
    ("JobSubmitPlugins", "lua", "requests are checked and given types"),
    ("SchedulerParameters", "nohold_on_prolog_fail", "a job that the prolog refuses is not held"),
    ("DebugFlags", "NO_CONF_HASH", "registrations do not complain of a changed slurm.conf"),
)
"""Key of slurm.conf, a word that its list must have, what it is for."""


@dataclass(frozen=True)
class Finding:
    """One line that slurm.conf should have."""

    line: str
    why: str
    there: bool


def parse(text: str) -> dict[str, list[str]]:
    """`scontrol show config` to values by key; `Prolog[1]` joins `Prolog`."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        match = re.match(r"([A-Za-z]+)(?:\[\d+\])?\s+= (.*)$", line)
        if match and match[2].strip() not in ("", "(null)"):
            found.setdefault(match[1], []).append(match[2].strip())
    return found


def joined_directories(config: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Keys whose value is a pattern such as `/etc/slurm/prolog.d/*`: a link in there joins it."""
    return {
        key: value.removesuffix("/*")
        for key, _, _ in NEEDED
        for value in config.get(key, ())
        if value.endswith("/*") and not re.search(r"[*?\[]", value.removesuffix("/*"))
    }


def callers(
    config: Mapping[str, Sequence[str]],
    programs: Collection[str],
    calls: Callable[[str, str], bool],
) -> list[str]:
    """Lines in force that come to one of our programs, which must not go before them. A directory
    of the site's is none: only our link in there goes."""
    return [
        f"{key}={value}"
        for key, _, _ in NEEDED
        for value in config.get(key, ())
        if any(value == ours or (not value.endswith("/*") and calls(value, ours))
               for ours in programs)
    ]  # fmt: skip


def findings(
    config: Mapping[str, Sequence[str]], hook_dir: str, calls: Callable[[str, str], bool]
) -> list[Finding]:
    """Every line that should be there. `calls(program, ours)`: does a program or directory of the
    site's come to ours?"""
    found = []
    for key, name, why in NEEDED:
        ours = f"{hook_dir}/{name}"
        values = config.get(key, ())
        there = any(value == ours or calls(value, ours) for value in values)
        found.append(Finding(f"{key}={ours}", why, there))
    for key, word, why in WORDS:
        words = {w.strip().lower() for value in config.get(key, ()) for w in value.split(",")}
        there = word.lower() in words
        line = ",".join([*config.get(key, ()), *([] if there else [word])])
        found.append(Finding(f"{key}={line}", why, there))
    return found
