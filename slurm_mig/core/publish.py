"""The text of our own published files: one NodeName line and the gres.conf lines of each node.

Nodes with the same gres.conf lines share them: every slurmd reads the file at each reload, and with
a line per slot and node that takes longer than all else (docs/many-nodes.md). NodeName lines are
one a node, as sites give each its own address.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from slurm_mig.core import slots
from slurm_mig.core.hostlists import fold_set
from slurm_mig.core.model import Device
from slurm_mig.core.records import ManagedNode
from slurm_mig.errors import DriftError

HEADER = """\
# Written by slurm-mig: do not edit.
# `slurm-mig leave NODE` gives a node back to your own files.
"""
SEAL = "# Contents: "


def sealed(body: str) -> str:
    """A published file: header, a digest of what follows, and that."""
    return f"{HEADER}{SEAL}{_digest(body)}\n{body}"


def is_sealed(text: str) -> bool:
    """True for a file that we wrote at some time and nobody edited since."""
    _, _, body = text.removeprefix(f"{HEADER}{SEAL}").partition("\n")
    return text.startswith(f"{HEADER}{SEAL}") and digest(text) == _digest(body)


def digest(text: str) -> str:
    """What a file of ours says that its contents are."""
    return text.removeprefix(f"{HEADER}{SEAL}").partition("\n")[0]


def own_copies(node: ManagedNode) -> dict[str, str]:
    """The digest of each of our files on a node that has files of its own, as its facts give them
    (`NodeFacts.copies`)."""
    return {"nodes.conf": digest(nodes_conf([node])), "gres.conf": digest(gres_conf([node]))}


def nodes_in(text: str) -> set[str]:
    """The nodes of a nodes.conf of ours, without the catalog's records."""
    lines = re.findall(r"(?m)^NodeName=(\S+) (.*)$", text)
    return {name for name, rest in lines if "State=FUTURE" not in rest.split()}


def lost_records(names: Sequence[str]) -> DriftError:
    """The error for nodes that our files have, and the state directory has not."""
    listed = " ".join(names)
    return DriftError(
        f"there is no record of {listed}, which slurm-mig manages: the state directory, or a part "
        "of it, was lost; nothing was changed",
        hint="Bring it back from a backup, or, once no gpu job runs there, "
        f"`slurm-mig enrol {listed}`.",
    )


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()[:16]


def nodes_conf(nodes: Sequence[ManagedNode], catalog: Sequence[str] = ()) -> str:
    """Our part of slurm.conf: every managed node, then the catalog's lines."""
    lines = [_node_line(node) for node in sorted(nodes, key=lambda n: n.name)]
    return sealed("".join(f"{line}\n" for line in (*lines, *catalog)))


def _node_line(node: ManagedNode) -> str:
    words = [f"NodeName={node.name}", *(f"{k}={v}" for k, v in node.attributes.items())]
    return " ".join([*words, f"Gres={node_gres(node)}"])


def node_gres(node: ManagedNode) -> str:
    """The node's Gres value: see `slots.gres_line`."""
    return with_others(node, slots.gres_line(node.slots, all_types(node)))


def with_others(node: ManagedNode, gpus: str) -> str:
    """The whole Gres value around what it says of gpus."""
    return f"{gpus},{node.other_gres}" if node.other_gres else gpus


def all_types(node: ManagedNode) -> tuple[str, ...]:
    """Every type the node can ever have: real ones, and the fillers it has had."""
    return tuple(
        sorted({*node.possible, *node.former, *node.part_types, *node.parts, *node.fillers, "off"})
    )


def gres_conf(nodes: Sequence[ManagedNode]) -> str:
    """Our part of gres.conf: one line per slot, in slot order, for all nodes that are alike."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for node in sorted(nodes, key=lambda n: n.name):
        lines = ("AutoDetect=off", *(_gres_words(node, device) for device in node.slots))
        alike.setdefault(lines, []).append(node.name)
    named = ((fold_set(names), lines) for lines, names in alike.items())
    return sealed("".join(f"NodeName={names} {line}\n" for names, lines in named for line in lines))


def _gres_words(node: ManagedNode, device: Device) -> str:
    key = "File" if len(device.files) == 1 else "MultipleFiles"
    cores = node.cores.get(device.gpu)
    extra = f" Cores={cores}" if cores else ""
    extra += " Flags=explicit" if node.explicit else ""
    return f"Name=gpu Type={device.type} {key}={shorten(device.files)}{extra}"


@lru_cache(maxsize=4096)
def shorten(files: tuple[str, ...]) -> str:
    """`/dev/nvidia-caps/nvidia-cap[3,12]`: files that differ in a last number, as Slurm reads it.

    Slurm's configuration reader has a limit on the length of a line.
    """
    groups: dict[str, list[int]] = {}
    plain: list[str] = []
    for file in files:
        stem = file.rstrip("0123456789")
        if stem.endswith("nvidia-cap"):
            groups.setdefault(stem, []).append(int(file[len(stem) :]))
        else:
            plain.append(file)
    for stem, numbers in groups.items():
        inside = ",".join(map(str, numbers))
        plain.append(f"{stem}[{inside}]" if len(numbers) > 1 else f"{stem}{inside}")
    return ",".join(plain)


SHAPE = (
    "CPUs", "Boards", "SocketsPerBoard", "Sockets", "CoresPerSocket", "ThreadsPerCore",
    "RealMemory", "TmpDisk", "CoreSpecCount", "MemSpecLimit", "Features", "Feature",
    "Topology",
)  # fmt: skip
"""What of a NodeName line decides whether a job fits, beside its gpus. With a topology plugin a
node that is nowhere in the topology takes no job."""


@dataclass(frozen=True)
class Record:
    """A node that never exists, like the real ones of one shape."""

    name: str
    line: str
    partitions: tuple[str, ...]
    like: tuple[str, ...]
    """The real nodes that it stands for."""


@dataclass(frozen=True)
class Catalog:
    """Records of nodes that never exist, so that any request that could run after reshapes queues.

    Slurm refuses at submit what no node record could take. A record in state FUTURE counts there,
    is hidden and never starts anything. Its address is one that never exists (RFC 5737): a name
    that does not resolve costs slurmctld 10 s at each start and reconfigure. There are `each` for
    every shape of managed nodes (no more than such nodes), in the partitions of those nodes, with
    of each type the most that such a node could have: so nothing queues that could never run.
    """

    prefix: str = "mig-catalog"
    each: int = 0

    def records(self, nodes: Iterable[ManagedNode]) -> list[Record]:
        shapes: dict[tuple[str, str], list[ManagedNode]] = {}
        for node in sorted(nodes, key=lambda n: n.name):
            shapes.setdefault(_shape(node), []).append(node)
        found: list[Record] = []
        for (words, gres), alike in shapes.items():
            partitions = sorted({p for node in alike for p in node.partitions})
            like = tuple(node.name for node in alike)
            for _ in range(min(self.each, len(alike))):
                name = f"{self.prefix}-{len(found) + 1}"
                line = (
                    f"NodeName={name} NodeAddr=192.0.2.1 NodeHostname={name} {words}"
                    f"Gres={gres} State=FUTURE"
                )
                found.append(Record(name, line, tuple(partitions), like))
        return found


def _shape(node: ManagedNode) -> tuple[str, str]:
    """Attributes and Gres of a record like this node."""
    words = "".join(f"{key}={value} " for key in SHAPE if (value := _value(node, key)))
    gpus = ",".join(f"gpu:{t}:{n}" for t, n in sorted(node.most.items()))
    return words, with_others(node, gpus)


def _value(node: ManagedNode, key: str) -> str:
    found: Mapping[str, str] = {k.lower(): v for k, v in node.attributes.items()}
    return found.get(key.lower(), "")
