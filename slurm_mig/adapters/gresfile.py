"""gres.conf as this node's slurmd reads it: the gpu lines for one node. For looking only.

Standard library only, as GPU nodes have no ClusterShell; adapters/slurmfiles is what edits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from slurm_mig.errors import ConfigError

MOST_INCLUDES = 16


@dataclass(frozen=True)
class GresDevice:
    """One device that gres.conf names."""

    type: str
    files: tuple[str, ...]
    where: str
    """`/etc/slurm/gres.conf:12`."""


@dataclass(frozen=True)
class GresFile:
    """What gres.conf says of one node."""

    devices: tuple[GresDevice, ...]
    autodetect: str = ""
    """As the last line that counts says, lower case."""


def read(path: Path, node: str) -> GresFile:
    """Raises ConfigError for a file that cannot be read or a line that is not understood."""
    devices: list[GresDevice] = []
    autodetect = {"": "", node: ""}
    for where, line in _lines(path, MOST_INCLUDES):
        values = {key.lower(): _unquoted(value) for key, value in _pairs(line)}
        nodes = values.get("nodename")
        if nodes is not None and not names(nodes, node):
            continue
        if "autodetect" in values:
            autodetect[node if nodes is not None else ""] = values["autodetect"].lower()
        if values.get("name", "").lower() == "gpu":
            devices += _devices(values, where)
    return GresFile(tuple(devices), autodetect[node] or autodetect[""])


def _lines(path: Path, depth: int) -> Iterator[tuple[str, str]]:
    if depth == 0:
        raise ConfigError(f"{path}: too many includes in one another")
    try:
        text = path.read_text(errors="replace")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    held, begun = "", 0
    for number, raw in enumerate(text.splitlines(), 1):
        begun = begun or number
        line = held + re.sub(r"(?<!\\)#.*", "", raw)
        if line.endswith("\\"):
            held = line[:-1]
            continue
        if found := re.match(r"(?i)\s*include\s+(\S+)", line):
            yield from _lines(path.parent / found[1], depth - 1)
        elif line.strip():
            yield f"{path}:{begun}", line
        held, begun = "", 0


def _pairs(line: str) -> list[tuple[str, str]]:
    return re.findall(r'([A-Za-z]+)\s*=\s*("[^"]*"|\S+)', line)


def _unquoted(value: str) -> str:
    return value.strip('"')


def _devices(values: dict[str, str], where: str) -> Iterator[GresDevice]:
    gres_type = values.get("type", "")
    if "multiplefiles" in values:
        yield GresDevice(gres_type, tuple(_files(values["multiplefiles"], where)), where)
    elif "file" in values:
        for file in _files(values["file"], where):
            yield GresDevice(gres_type, (file,), where)


def _files(text: str, where: str) -> Iterator[str]:
    """`/dev/nvidia0,/dev/nvidia-caps/nvidia-cap[3-4]`: every file, in order."""
    for element in re.split(r",(?![^\[\]]*\])", text):
        found = re.fullmatch(r"([^\[\]]*)(?:\[([\d,-]+)\]([^\[\]]*))?", element)
        if not found:
            raise ConfigError(f"{where}: {element!r} is not understood as device files")
        if found[2] is None:
            yield element
            continue
        for number in _numbers(found[2]):
            yield f"{found[1]}{number}{found[3]}"


def _numbers(text: str) -> Iterator[str]:
    for part in text.split(","):
        low, _, high = part.partition("-")
        for number in range(int(low), int(high or low) + 1):
            yield str(number).zfill(len(low))


def names(nodes: str, node: str) -> bool:
    """True if a host list such as `gpu[01-16],head` has this node."""
    return any(_element_names(e, node) for e in re.split(r",(?![^\[\]]*\])", nodes))


def _element_names(element: str, node: str) -> bool:
    pieces = re.split(r"(\[[\d,-]+\])", element)
    pattern = "".join(r"(\d+)" if p.startswith("[") else re.escape(p) for p in pieces)
    found = re.fullmatch(pattern, node)
    if not found:
        return False
    ranges = [p[1:-1] for p in pieces if p.startswith("[")]
    return all(n in set(_numbers(r)) for r, n in zip(ranges, found.groups(), strict=True))
