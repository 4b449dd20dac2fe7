"""The text of our own published files: one NodeName line and the gres.conf lines of each node."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from slurm_mig.core import slots
from slurm_mig.core.model import Device
from slurm_mig.core.records import ManagedNode

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
    return slots.gres_line(node.slots, all_types(node))


def all_types(node: ManagedNode) -> tuple[str, ...]:
    """Every type the node can ever have: real ones, and the fillers it has had."""
    return tuple(sorted({*node.possible, *node.fillers, "off"}))


def gres_conf(nodes: Sequence[ManagedNode]) -> str:
    """Our part of gres.conf: one line per slot, in slot order."""
    lines = []
    for node in sorted(nodes, key=lambda n: n.name):
        lines.append(f"NodeName={node.name} AutoDetect=off")
        lines.extend(_gres_line(node, device) for device in node.slots)
    return sealed("".join(f"{line}\n" for line in lines))


def _gres_line(node: ManagedNode, device: Device) -> str:
    key = "File" if len(device.files) == 1 else "MultipleFiles"
    cores = node.cores.get(device.gpu)
    extra = f" Cores={cores}" if cores else ""
    return f"NodeName={node.name} Name=gpu Type={device.type} {key}={shorten(device.files)}{extra}"


def shorten(files: Sequence[str]) -> str:
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


def catalog_lines(names: Sequence[str], nodes: Iterable[ManagedNode]) -> list[str]:
    """Records of nodes that never exist, so that any possible request queues.

    Slurm refuses at submit what no node record could take. A record in state FUTURE counts there,
    is hidden and never starts anything. Its address is one that never exists (RFC 5737): a name
    that does not resolve costs slurmctld 10 s at each start and reconfigure. It has what the
    largest managed node has, and of each type the most that one node could have.
    """
    managed = list(nodes)
    if not managed or not names:
        return []
    gres: dict[str, int] = {}
    for node in managed:
        for gres_type, most in node.most.items():
            gres[gres_type] = max(gres.get(gres_type, 0), most)
    listed = ",".join(f"gpu:{t}:{n}" for t, n in sorted(gres.items()))
    shape = {key: _largest(managed, key) for key in ("CPUs", "RealMemory")}
    words = " ".join(f"{k}={v}" for k, v in shape.items() if v)
    features = sorted({f for n in managed for f in _value(n, "Features").split(",") if f})
    if features:
        words += f" Features={','.join(features)}"
    return [
        f"NodeName={name} NodeAddr=192.0.2.1 NodeHostname={name} {words} Gres={listed} State=FUTURE"
        for name in names
    ]


def _value(node: ManagedNode, key: str) -> str:
    found: Mapping[str, str] = {k.lower(): v for k, v in node.attributes.items()}
    return found.get(key.lower(), "")


def _largest(nodes: Sequence[ManagedNode], key: str) -> int:
    values = [_value(node, key) for node in nodes]
    if key == "CPUs":
        values += [str(_cpus(node)) for node in nodes]
    return max((int(v) for v in values if v.isdigit()), default=0)


def _cpus(node: ManagedNode) -> int:
    """CPUs of a node that gives sockets, cores and threads instead."""
    total = 1
    for key in ("Boards", "Sockets", "CoresPerSocket", "ThreadsPerCore"):
        value = _value(node, key)
        total *= int(value) if value.isdigit() else 1
    return total
