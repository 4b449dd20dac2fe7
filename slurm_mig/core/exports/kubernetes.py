"""Kubernetes: what NVIDIA's device plugin, mig-manager and GPU Feature Discovery want. Pure.

The device plugin advertises devices by one of two strategies. `single`: every GPU that it sees has
MIG on and all instances are alike; they are called nvidia.com/gpu. `mixed`: anything else; an
instance is nvidia.com/mig-3g.20gb, a GPU with MIG off nvidia.com/gpu.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slurm_mig.core.exports.chosen import Device
from slurm_mig.core.layoutfile import export as layout_file
from slurm_mig.errors import UsageError

PARTS = ("values", "mig-manager", "labels", "discovery", "pod")

Labels = dict[str, str]


@dataclass(frozen=True)
class Attributes:
    """What NVML says of a MIG device's resources."""

    memory_mib: int
    multiprocessors: int
    gi_slices: int
    ci_slices: int
    engines: Mapping[str, int]
    """Shared engines: copy, decoder, encoder, jpeg, ofa."""


def strategy(devices: Sequence[Device], wanted: str = "") -> tuple[str, str]:
    """The MIG strategy and why. Raises UsageError when the wanted one cannot be."""
    whole = [d for d in devices if not d.mig]
    kinds = sorted({d.name for d in devices if d.mig})
    if whole and kinds:
        why = f"GPU {whole[0].gpu.index} has MIG off beside MIG instances"
    elif len(kinds) > 1:
        why = f"there are instances of several kinds: {', '.join(kinds)}"
    elif whole:
        why = "no GPU has MIG on"
    else:
        why = f"every device is a {kinds[0]}"
    best = "none" if whole and not kinds else "single" if len(kinds) == 1 and not whole else "mixed"
    if wanted == "single" and best != "single":
        raise UsageError(f"the strategy cannot be single: {why}", hint="It would be mixed.")
    if wanted == "none" and kinds:
        raise UsageError("the strategy cannot be none: the plugin would offer GPUs with MIG on")
    return (wanted or best), why


def resource(device: Device, chosen: str) -> str:
    """The name that a pod asks for the device by."""
    if not device.mig or chosen == "single":
        return "nvidia.com/gpu"
    return f"nvidia.com/mig-{label_word(device.name)}"


def label_word(name: str) -> str:
    """`1g.5gb+me` as a resource name has it: `1g.5gb.me`."""
    return name.replace("+", ".")


def values(devices: Sequence[Device], chosen: str) -> dict[str, Any]:
    """Helm values of nvidia-device-plugin: the strategy, and nothing but these devices.

    The plugin's container sees what NVIDIA_VISIBLE_DEVICES says; without it, it would advertise
    Slurm's too.
    """
    config = {"version": "v1", "flags": {"migStrategy": chosen, "deviceIDStrategy": "uuid"}}
    return {
        "migStrategy": chosen,
        "config": {"map": {"default": _yaml_of(config)}},
        "env": [{"name": "NVIDIA_VISIBLE_DEVICES", "value": ",".join(d.uuid for d in devices)}],
    }


def _yaml_of(config: Mapping[str, Any]) -> str:
    """The one small document that the chart wants as a text."""
    lines = [f"version: {config['version']}", "flags:"]
    return "\n".join([*lines, *(f"  {k}: {v}" for k, v in config["flags"].items())]) + "\n"


def mig_manager(devices: Sequence[Device], name: str) -> dict[str, Any]:
    """A ConfigMap for mig-manager with the present layout of these GPUs in mig-parted's format."""
    gpus = list({d.gpu.index: d.gpu for d in devices if d.gpu.mig_capable}.values())
    layout = layout_file(gpus, name)
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "slurm-mig-parted-config"},
        "data": {"config.yaml": _layout_yaml(layout, [g.index for g in gpus])},
    }


def _layout_yaml(layout: Mapping[str, Any], indexes: Sequence[int]) -> str:
    ((name, entries),) = layout["mig-configs"].items()
    lines = ["version: v1", "mig-configs:", f"  {name}:"]
    for entry in entries:
        chosen = indexes if entry["devices"] == "all" else entry["devices"]
        lines += [
            f"  - devices: {list(chosen)}",
            f"    mig-enabled: {str(entry['mig-enabled']).lower()}",
        ]
        lines += ["    mig-devices:" if entry["mig-devices"] else "    mig-devices: {}"]
        lines += [f'      "{key}": {count}' for key, count in entry["mig-devices"].items()]
    return "\n".join(lines) + "\n"


def node_labels(name: str, node: str, chosen: str) -> dict[str, Any]:
    """The node with the labels that its administrator sets: for `kubectl apply --server-side`."""
    labels = {"nvidia.com/mig.config": name, "nvidia.com/mig.strategy": chosen}
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": node, "labels": labels}}


def pod(device: Device, chosen: str, image: str) -> dict[str, Any]:
    """A pod that asks for one such device."""
    container = {
        "name": "cuda",
        "image": image,
        "command": ["nvidia-smi", "-L"],
        "resources": {"limits": {resource(device, chosen): 1}},
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"mig-{re.sub(r'[^a-z0-9]+', '-', device.name.lower()).strip('-')}"},
        "spec": {"restartPolicy": "Never", "containers": [container]},
    }


def discovery(devices: Sequence[Device], chosen: str, told: Mapping[str, Attributes]) -> Labels:
    """GPU Feature Discovery's labels of devices as they will be; `told` by UUID."""
    first = devices[0]
    product = _product(first.gpu.model)
    whole = [d for d in devices if not d.mig]
    gpus = {d.gpu.index for d in devices}
    labels = {
        "nvidia.com/mig.capable": str(first.gpu.mig_capable).lower(),
        "nvidia.com/mig.strategy": chosen,
        "nvidia.com/gpu.product": product,
        "nvidia.com/gpu.memory": str(first.gpu.memory_mib),
        "nvidia.com/gpu.count": str(len(whole) if chosen == "mixed" else len(gpus)),
    }
    kinds = Counter(d.name for d in devices if d.mig)
    if chosen == "single":
        labels["nvidia.com/gpu.product"] = f"{product}-MIG-{label_word(first.name)}"
        return labels | _resources("gpu", len(devices), told.get(first.uuid))
    for name, count in sorted(kinds.items()):
        example = next(d for d in devices if d.name == name)
        kind = f"mig-{label_word(name)}"
        labels |= _resources(kind, count, told.get(example.uuid))
        labels[f"nvidia.com/{kind}.product"] = (
            f"{_product(example.gpu.model)}-MIG-{label_word(name)}"
        )
    return labels


def _resources(kind: str, count: int, told: Attributes | None) -> Labels:
    labels = {f"nvidia.com/{kind}.count": str(count)}
    if told is None:
        return labels
    numbers = {
        "memory": told.memory_mib,
        "multiprocessors": told.multiprocessors,
        "slices.gi": told.gi_slices,
        "slices.ci": told.ci_slices,
        **{f"engines.{name}": number for name, number in told.engines.items()},
    }
    return labels | {f"nvidia.com/{kind}.{key}": str(value) for key, value in numbers.items()}


def _product(model: str) -> str:
    return model.removeprefix("NVIDIA ").replace(" ", "-")
