"""Replays plans on the simulated NVML: its rules say whether each change is possible."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from slurm_mig.adapters.gpus import NvmlGpus
from slurm_mig.core.changes import GpuChange, NodeChange
from slurm_mig.core.model import Gpu, NodeView
from slurm_mig.errors import GpuError


def impossible(views: Sequence[NodeView], changes: Sequence[NodeChange]) -> list[str]:
    """Changes that NVML refuses, or that touch what a job has."""
    by_name = {view.name: view for view in views}
    refused: list[str] = []
    todo: dict[str, list[tuple[str, Gpu, GpuChange]]] = defaultdict(list)
    for change in changes:
        view = by_name[change.node]
        busy = {view.slots[i].key for i in view.busy}
        refused += [
            f"{change.node}: {gpu} {placement} is in use"
            for gpu, placement in change.blocking
            if (gpu, placement) in busy
        ]
        gpus = {gpu.index: gpu for gpu in view.gpus}
        for part in change.gpus:
            todo[gpus[part.gpu].model].append((change.node, gpus[part.gpu], part))
    with tempfile.TemporaryDirectory() as scratch, _simulated(sorted(todo), Path(scratch)) as nvml:
        for number, model in enumerate(sorted(todo)):
            for node, gpu, part in todo[model]:
                if fault := _fault(nvml, number, gpu, part):
                    refused.append(f"{node} GPU {gpu.index}: {fault}")
    return refused


@contextmanager
def _simulated(models: Sequence[str], scratch: Path) -> Iterator[NvmlGpus]:
    state = str(scratch / "state")
    words = [f"{model}:mig=on" for model in models] or ["NVIDIA A30:mig=on"]
    subprocess.run(
        ["nvml-sim", "create", "--state", state, "--dev-root", str(scratch / "dev"),
         "--proc-root", str(scratch / "proc"), *words],
        check=True,
    )  # fmt: skip
    os.environ["NVML_SIM_STATE"] = state
    nvml = NvmlGpus(str(scratch / "dev/nvidia-caps"), str(scratch / "proc"))
    try:
        yield nvml
    finally:
        nvml.close()
        del os.environ["NVML_SIM_STATE"]


def _fault(nvml: NvmlGpus, number: int, gpu: Gpu, part: GpuChange) -> str:
    """Make the GPU as it is, change it as planned; what NVML has against it, or nothing."""
    here = nvml.inventory()[number]
    for instance in here.instances:
        nvml.destroy(number, instance.gi)
    for placement in sorted(gpu.layout):
        nvml.create(number, placement)
    gi = {i.placement: i.gi for i in nvml.inventory()[number].instances}
    try:
        for placement in part.destroyed:
            nvml.destroy(number, gi[placement])
        for placement in part.created:
            nvml.create(number, placement)
    except (GpuError, KeyError) as error:
        return str(error)
    made = nvml.inventory()[number].layout
    return "" if made == part.target else f"became {sorted(map(str, made))}"
