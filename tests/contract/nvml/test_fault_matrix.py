"""Every fault at every changing call, once and for good: where each one ends.

There are three good ends, and no fourth: as wished; as it was, said with the driver's word; or
what is left, said truthfully, with exit code 6.
"""

from __future__ import annotations

from itertools import product

import pynvml
import pytest

from slurm_mig.adapters.gpus import NvmlGpus
from slurm_mig.core.layouts import cuts_of, parse_inline
from slurm_mig.errors import Exit, GpuError, LeftOverError
from slurm_mig.relayout import Relayout
from tests.contract.nvml.conftest import Opened
from tests.testbed.nvml_sim import GpuSpec, Simulator

pytestmark = pytest.mark.changes_gpus

DESTROY = ("nvmlComputeInstanceDestroy", "nvmlGpuInstanceDestroy")
CREATE = ("nvmlDeviceCreateGpuInstanceWithPlacement", "nvmlGpuInstanceCreateComputeInstance")
CODES = (
    "IN_USE", "INSUFFICIENT_RESOURCES", "GPU_IS_LOST", "DRIVER_NOT_LOADED", "NO_PERMISSION",
    "RESET_REQUIRED", "UNKNOWN",
)  # fmt: skip
FAULTS = [*product((*DESTROY, *CREATE), CODES), *((call, "LIE") for call in DESTROY)]

BEFORE = "gpu0=3g.20gb@4,1c.2g.10gb@0*2,1g.5gb@2"
WISH = "gpu0=2g.10gb@4,1g.5gb@6,2g.10gb@0"
REACHED = ["1g.5gb@6", "2g.10gb@0", "2g.10gb@4"]
"""Destroys two instances, splits one anew and creates two: every call is used twice at least."""


def cuts(gpus: NvmlGpus) -> list[str]:
    return sorted(map(str, cuts_of(gpus.gpu(0))))


def apply(gpus: NvmlGpus, words: str) -> None:
    Relayout(gpus).apply(parse_inline([words], gpus.inventory()))


@pytest.fixture
def gpus(opened: Opened) -> NvmlGpus:
    found: NvmlGpus = opened(GpuSpec("NVIDIA A100-SXM4-40GB", mig=True))
    return found


@pytest.mark.parametrize("times", [1, -1], ids=["once", "for good"])
@pytest.mark.parametrize(("call", "code"), FAULTS)
def test_where_it_ends(sim: Simulator, gpus: NvmlGpus, call: str, code: str, times: int) -> None:
    """At the call's first and at its second use in the change."""
    for after in (0, 1):
        apply(gpus, BEFORE)
        was = cuts(gpus)
        sim.fault(call, code, times=times, after=after)
        if times == 1 and code in ("IN_USE", "LIE"):
            apply(gpus, WISH)
            assert cuts(gpus) == REACHED
            continue
        with pytest.raises((GpuError, LeftOverError)) as ended:
            apply(gpus, WISH)
        sim.clear_faults()
        said = str(ended.value)
        assert code_text(code) in said
        if isinstance(ended.value, LeftOverError):
            assert ended.value.exit_code == Exit.ATTENTION
            assert f"it had {', '.join(was)}" in said
            assert f"it has {', '.join(cuts(gpus))} now" in said
            assert times == -1
        else:
            assert "every GPU is again as it was" in said
            assert cuts(gpus) == was
            assert all(i.uuid for i in gpus.gpu(0).instances)


def code_text(code: str) -> str:
    if code == "LIE":
        return "still there"
    return str(pynvml.nvmlErrorString(getattr(pynvml, f"NVML_ERROR_{code}")))
