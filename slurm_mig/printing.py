"""What goes to a terminal or a log: without what could steer either.

Node reasons, users, features and whatever a node or Slurm says of itself were written by others: an
escape sequence in them must not clear a screen, nor a line break forge a line of the log.
"""

from __future__ import annotations

import logging
import unicodedata

import click

_KEPT = "\n\t"


def plain(text: str) -> str:
    """The text with every control and direction-changing character shown as `\\x1b`."""
    if text.isprintable():
        return text
    return "".join(c if c in _KEPT or not _steers(c) else ascii(c)[1:-1] for c in text)


def say(text: str, *, nl: bool = True, err: bool = False) -> None:
    """Print for people."""
    click.echo(plain(text), nl=nl, err=err)


class PlainFormatter(logging.Formatter):
    """One record, one line that begins with a level: further lines are indented."""

    def format(self, record: logging.LogRecord) -> str:
        return plain(super().format(record)).replace("\n", "\n  ")


def _steers(char: str) -> bool:
    return unicodedata.category(char) in ("Cc", "Cf", "Zl", "Zp", "Cs")
