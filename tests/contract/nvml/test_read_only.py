"""Nothing that only looks changes anything: proven with a library that writes down every call.

The simulated library stands in for a real machine's, without the tests knowing: with
NVML_SIM_READ_ONLY a call that does more than ask ends the process that made it.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from slurm_mig.adapters.gpus import NvmlGpus
from slurm_mig.core.codec import decode
from slurm_mig.core.layouts import parse_inline
from slurm_mig.core.observed import Record
from slurm_mig.relayout import Relayout
from tests.contract.nvml.machine import Machine
from tests.testbed.nvml_sim import GpuSpec, Simulator

pytestmark = pytest.mark.changes_gpus

A100 = "NVIDIA A100-SXM4-40GB"
H200 = "NVIDIA H200"
L40S = "NVIDIA L40S"
SOURCE = Path(__file__).parents[3]

MACHINES = {
    "an H200, MIG off": ([GpuSpec(H200)], []),
    "two A100, MIG on, empty, beside an L40S": (
        [GpuSpec(L40S), *[GpuSpec(A100, mig=True)] * 2],
        [],
    ),
    "an A100 with instances": ([GpuSpec(A100, mig=True)], ["gpu0=1c.3g.20gb@4*2,2g.10gb@0"]),
}


class ReadOnly:
    """A machine whose library lets nothing through but questions."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.log = machine.root / "calls"

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        watch = {"NVML_SIM_READ_ONLY": "1", "NVML_SIM_LOG": str(self.log)}
        return self.machine.run(*words, environment=watch)

    def calls(self) -> list[str]:
        return self.log.read_text().split()


@pytest.fixture(params=list(MACHINES))
def machine(sim: Simulator, tmp_path: Path, request: pytest.FixtureRequest) -> ReadOnly:
    specs, words = MACHINES[request.param]
    sim.create(specs, root=tmp_path)
    gpus = NvmlGpus(str(tmp_path / "dev" / "nvidia-caps"), str(tmp_path / "proc"))
    Relayout(gpus).apply(parse_inline(words, gpus.inventory()))
    gpus.close()
    return ReadOnly(Machine(sim, tmp_path))


def is_question(call: str) -> bool:
    return "Get" in call or call in ("nvmlDeviceIsMigDeviceHandle", "nvmlInit_v2")


def test_what_is_run_on_a_real_machine(machine: ReadOnly) -> None:
    """scripts/real-gpu passes here, asks for hundreds of things and does nothing else."""
    before = machine.machine.sim.dump()["gpus"]
    folder = machine.machine.root / "seen"
    done = machine.run("env", "PYTHON=python", "scripts/real-gpu", str(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "record: exit 0\nnothing is otherwise than in the tables\n" in done.stdout
    seen = decode(Record, json.loads((folder / "record.json").read_text()), "record")
    assert seen.driver == "580.95.05"
    assert sum(gpu.count for gpu in seen.gpus) == len(before)
    assert " passed" in (folder / "contract.txt").read_text()
    assert len(machine.calls()) > 200
    assert all(map(is_question, machine.calls()))
    assert machine.machine.sim.dump()["gpus"] == before


def test_a_record_tells_nothing_of_whose_machine_it_is(machine: ReadOnly) -> None:
    machine.run("slurm-mig", "inventory", "--record", "/tmp/record.json")
    text = Path("/tmp/record.json").read_text()
    for gpu in machine.machine.sim.dump()["gpus"]:
        assert gpu["uuid"] not in text
    assert "MIG-" not in text
    assert socket.gethostname() not in text


LOOKS = (
    ["inventory", "--json"], ["profiles", "--json"], ["check", "--json"], ["gres", "--json"],
    ["export", "--json"], ["export", "--inline", "--json"], ["assert", "all=off", "--json"],
    ["apply", "--dry-run", "all=off", "--json"], ["export", "cdi", "--check", "--json"],
)  # fmt: skip


@pytest.mark.parametrize("machine", ["an A100 with instances"], indirect=True)
def test_every_verb_that_looks(machine: ReadOnly) -> None:
    for words in LOOKS:
        done = machine.run("slurm-mig", *words)
        assert done.returncode in (0, 1, 6), (words, done.stderr)
        assert "Traceback" not in done.stderr
        if "--json" in words:
            json.loads(done.stdout)
    assert len(machine.calls()) > 200
    assert machine.calls().count("nvmlInit_v2") == len(LOOKS), "once per command"
    assert all(map(is_question, machine.calls()))


@pytest.mark.parametrize("machine", ["an A100 with instances"], indirect=True)
@pytest.mark.parametrize(
    ("words", "call"),
    [
        (["apply", "all=1g.5gb"], "nvmlComputeInstanceDestroy"),
        (["apply", "gpu0=2g.10gb@0,1c.3g.20gb@4*2,1g.5gb@2"],
         "nvmlDeviceCreateGpuInstanceWithPlacement"),
    ],
)  # fmt: skip
def test_the_library_would_have_noticed(machine: ReadOnly, words: list[str], call: str) -> None:
    """A change ends the process that makes it, and is written down."""
    done = machine.run("slurm-mig", *words)
    assert done.returncode == -signal.SIGABRT
    assert f"{call} in a read-only run" in done.stderr
    assert [c for c in machine.calls() if not is_question(c)] == [call]
