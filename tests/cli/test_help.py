"""What somebody sees who types `slurm-mig` for the first time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
from click.testing import CliRunner

from slurm_mig.cli import SECTIONS, main
from slurm_mig.errors import Exit

SOURCE = Path(__file__).parents[2]


def test_help_lists_every_command_once_and_says_it_to_the_end() -> None:
    listed = [name for names in SECTIONS.values() for name in names]
    assert sorted(listed) == sorted(main.commands)
    said = CliRunner().invoke(main, ["--help"], terminal_width=400).output
    assert "..." not in said.partition("Look:")[2]
    lines = " ".join(said.split())
    for name, command in main.commands.items():
        assert f"{name} {command.get_short_help_str(200)}" in lines


def test_it_is_called_slurm_mig_however_it_was_begun() -> None:
    for module in ("slurm_mig", "slurm_mig.cli"):
        done = subprocess.run(
            [sys.executable, "-m", module, "enrol"],
            cwd=SOURCE, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == Exit.USAGE
        assert done.stderr.startswith("Usage: slurm-mig enrol [OPTIONS] NODES...\n")


def test_every_command_and_option_is_explained() -> None:
    for path, command in _all(main, ("slurm-mig",)):
        assert command.help, path
        for option in command.params:
            if isinstance(option, click.Option) and not option.hidden:
                assert option.help, (path, option.name)


def _all(
    command: click.Command, path: tuple[str, ...]
) -> list[tuple[tuple[str, ...], click.Command]]:
    inner = command.commands if isinstance(command, click.Group) else {}
    return [(path, command)] + [
        found for name, sub in inner.items() for found in _all(sub, (*path, name))
    ]


def test_the_report_is_not_poured_into_a_terminal() -> None:
    master, terminal = os.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "slurm_mig", "report"],
            cwd=SOURCE, stdout=terminal, stderr=subprocess.PIPE, text=True, check=False, timeout=60,
        )  # fmt: skip
    finally:
        os.close(terminal)
        os.close(master)
    assert done.returncode == Exit.USAGE
    assert "--output report.html" in done.stderr
