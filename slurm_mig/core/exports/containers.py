"""Containers: run lines, a compose file, a CDI specification, an environment. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from slurm_mig.core.exports.chosen import Device

KIND = "nvidia.com/mig"
"""Not the container toolkit's own `nvidia.com/gpu`: a device that two files name cannot be used."""

CDI_VERSION = "0.5.0"


@dataclass(frozen=True)
class Driver:
    """What of the driver a container needs besides its device, as it is on the node."""

    control: tuple[str, ...] = ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools")
    files: tuple[str, ...] = ()
    """Libraries and programs of the driver."""
    hook: str = ""
    """nvidia-cdi-hook, where the container toolkit is installed."""


def docker(devices: Sequence[Device], image: str) -> str:
    """The line that runs nvidia-smi on the devices; the NVIDIA runtime finds them by UUID."""
    wanted = ",".join(d.uuid for d in devices)
    quoted = shlex.quote(f'"device={wanted}"')
    return f"docker run --rm --gpus {quoted} {shlex.quote(image)} nvidia-smi -L\n"


def podman(devices: Sequence[Device], image: str) -> str:
    """The same for podman, which takes devices from the CDI specification."""
    options = " ".join(f"--device {KIND}={d.uuid}" for d in devices)
    return f"podman run --rm {options} {shlex.quote(image)} nvidia-smi -L\n"


def compose(devices: Sequence[Device], image: str) -> dict[str, Any]:
    """A compose file with one service that has the devices."""
    reserved = {
        "driver": "nvidia",
        "device_ids": [d.uuid for d in devices],
        "capabilities": ["gpu"],
    }
    service = {
        "image": image,
        "command": ["nvidia-smi", "-L"],
        "deploy": {"resources": {"reservations": {"devices": [reserved]}}},
    }
    return {"services": {"mig": service}}


def environment(devices: Sequence[Device]) -> str:
    """What enroot, pyxis, apptainer and singularity read, as lines for a shell."""
    uuids = ",".join(d.uuid for d in devices)
    lines = [
        "# enroot and pyxis (libnvidia-container), and `apptainer --nvccli`:",
        f"export NVIDIA_VISIBLE_DEVICES={uuids}",
        "export NVIDIA_DRIVER_CAPABILITIES=compute,utility",
        "# CUDA itself; one process computes on the first of them:",
        f"export CUDA_VISIBLE_DEVICES={uuids}",
        "# `apptainer --nv` and `singularity --nv` pass these on with --cleanenv too:",
        f"export APPTAINERENV_CUDA_VISIBLE_DEVICES={uuids}",
        f"export SINGULARITYENV_CUDA_VISIBLE_DEVICES={uuids}",
    ]
    return "\n".join(lines) + "\n"


def cdi(devices: Sequence[Device], driver: Driver) -> dict[str, Any]:
    """A CDI specification: each device by UUID with its files, the driver's once for all."""
    edits: dict[str, Any] = {
        "deviceNodes": [{"path": path} for path in driver.control],
        "env": ["NVIDIA_VISIBLE_DEVICES=void"],
    }
    if driver.files:
        edits["mounts"] = [
            {
                "hostPath": file,
                "containerPath": file,
                "options": ["ro", "nosuid", "nodev", "bind"],
            }
            for file in driver.files
        ]
    if driver.hook:
        edits["hooks"] = [_linker_hook(driver)]
    return {
        "cdiVersion": CDI_VERSION,
        "kind": KIND,
        "devices": [_cdi_device(device) for device in devices],
        "containerEdits": edits,
    }


def _cdi_device(device: Device) -> dict[str, Any]:
    return {
        "name": device.uuid,
        "containerEdits": {
            "deviceNodes": [{"path": path} for path in device.files],
            "env": [f"CUDA_VISIBLE_DEVICES={device.uuid}"],
        },
    }


def _linker_hook(driver: Driver) -> dict[str, Any]:
    """The container's own linker cache learns where the driver's libraries are."""
    folders = sorted({file.rpartition("/")[0] for file in driver.files if ".so" in file})
    words = [word for folder in folders for word in ("--folder", folder)]
    name = driver.hook.rpartition("/")[2]
    return {
        "hookName": "createContainer",
        "path": driver.hook,
        "args": [name, "update-ldcache", *words],
    }


# -- what the CDI specification 0.5 demands --------------------------------------------------------

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.:-]*[A-Za-z0-9])?")
_KIND = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?/[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?")
_FIELDS = {"cdiVersion", "kind", "annotations", "devices", "containerEdits"}
_EDITS = {"env", "deviceNodes", "hooks", "mounts"}
_HOOKS = {"prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"}


def cdi_faults(spec: Any) -> list[str]:
    """What is wrong with a CDI specification, by the published text; empty when it is right."""
    if not isinstance(spec, dict):
        return ["it is no object"]
    return list(_spec_faults(spec))


def _spec_faults(spec: dict[str, Any]) -> Iterator[str]:
    yield from (f"unknown field {key}" for key in sorted(set(spec) - _FIELDS))
    if not re.fullmatch(r"\d+\.\d+\.\d+", str(spec.get("cdiVersion", ""))):
        yield "cdiVersion is no version"
    if not _KIND.fullmatch(str(spec.get("kind", ""))):
        yield "kind is not vendor/class"
    devices = spec.get("devices")
    if not isinstance(devices, list) or not devices:
        yield "there is no device"
        return
    names = [device.get("name") for device in devices]
    yield from (
        f"device {n!r} is there twice" for n in sorted({n for n in names if names.count(n) > 1})
    )
    for device in devices:
        name = device.get("name")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            yield f"{device.get('name')!r} is no device name"
        yield from _edit_faults(device.get("containerEdits"), f"device {device.get('name')}")
    if "containerEdits" in spec:
        yield from _edit_faults(spec["containerEdits"], "containerEdits")


def _edit_faults(edits: Any, where: str) -> Iterator[str]:
    if not isinstance(edits, dict) or not edits:
        yield f"{where} has no edits"
        return
    yield from (f"{where}: unknown field {key}" for key in sorted(set(edits) - _EDITS))
    for node in edits.get("deviceNodes", ()):
        if not str(node.get("path", "")).startswith("/"):
            yield f"{where}: a device node without absolute path"
    for mount in edits.get("mounts", ()):
        if not (mount.get("hostPath") and mount.get("containerPath")):
            yield f"{where}: a mount without both paths"
    for hook in edits.get("hooks", ()):
        if hook.get("hookName") not in _HOOKS or not str(hook.get("path", "")).startswith("/"):
            yield f"{where}: {hook.get('hookName')!r} is no hook with an absolute path"
    for word in edits.get("env", ()):
        if "=" not in word:
            yield f"{where}: {word!r} is no variable"
