"""A managed node's reshape with compute-instance splits, through NVML: done, or as it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from slurm_mig.adapters.gpus import NvmlGpus
from slurm_mig.config import NodeSettings
from slurm_mig.core.changes import GpuChange, NodeChange
from slurm_mig.core.layouts import cuts_of, parse_inline
from slurm_mig.core.model import Placement
from slurm_mig.errors import BusyError, GpuError
from slurm_mig.node import NodeAgent
from slurm_mig.relayout import Relayout
from tests.contract.nvml.conftest import Opened
from tests.testbed.nvml_sim import GpuSpec, Simulator

pytestmark = pytest.mark.changes_gpus

HIGH, LOW, TWO = Placement(4, 4, "3g.20gb"), Placement(0, 4, "3g.20gb"), Placement(0, 2, "2g.10gb")


class Agent(NodeAgent):
    """The node's side, on a simulated node's files."""

    def __init__(self, settings: NodeSettings, gpus: NvmlGpus) -> None:
        super().__init__(settings, "n1")
        self.gpus.close()
        self._gpus = gpus


@pytest.fixture
def gpus(opened: Opened) -> NvmlGpus:
    made: NvmlGpus = opened(GpuSpec("NVIDIA A100-SXM4-40GB", mig=True))
    Relayout(made).apply(parse_inline(["gpu0=1c.3g.20gb@4*3,3g.20gb@0"], made.inventory()))
    return made


@pytest.fixture
def agent(gpus: NvmlGpus, tmp_path: Path) -> Agent:
    return Agent(NodeSettings(run_dir=str(tmp_path / "run")), gpus)


def cuts(gpus: NvmlGpus) -> list[str]:
    return sorted(map(str, cuts_of(gpus.gpu(0))))


CHANGE = NodeChange(
    "n1",
    (GpuChange(0, (HIGH,), (LOW,), (TWO,), splits=((HIGH, (2, 1)), (TWO, (1, 1)))),),
    (),
    (),
)
BEFORE = ["1c+1c+1c.3g.20gb@4", "3g.20gb@0"]


def test_one_stays_and_is_split_anew_one_comes_split(agent: Agent, gpus: NvmlGpus) -> None:
    before = gpus.gpu(0).instances[1].gi
    facts = agent.reshape(CHANGE)
    assert cuts(gpus) == ["1c+1c.2g.10gb@0", "2c+1c.3g.20gb@4"]
    assert facts.gpus[0].instances[1].gi == before
    made = gpus.gpu(0)
    agent.reshape(CHANGE)
    assert gpus.gpu(0) == made, "done again, nothing is touched"


def test_a_part_in_use_is_not_touched(sim: Simulator, agent: Agent, gpus: NvmlGpus) -> None:
    sim.add_process(1, 0, gpus.gpu(0).instances[1].gi)
    with pytest.raises(BusyError, match=r"3g.20gb@4 is held by process 1; nothing was touched"):
        agent.reshape(CHANGE)
    assert cuts(gpus) == BEFORE


@pytest.mark.parametrize("after", range(4))
def test_a_failure_ends_where_it_began(
    sim: Simulator, agent: Agent, gpus: NvmlGpus, after: int
) -> None:
    """Each of the four compute instances to be made fails once."""
    sim.fault("nvmlGpuInstanceCreateComputeInstance", "UNKNOWN", after=after)
    with pytest.raises(GpuError, match="Unknown Error"):
        agent.reshape(CHANGE)
    assert cuts(gpus) == BEFORE
