"""The NVML that the contract is asked of: the simulated one, or with `--nvml real` the driver's."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pynvml
import pytest

MODELS = {
    "a100": "NVIDIA A100-SXM4-40GB:mig=on",
    "a100-flipped": "NVIDIA A100-SXM4-40GB:mig=on:layout=F",
    "a30": "NVIDIA A30:mig=on",
    "h100": "NVIDIA H100 80GB HBM3:mig=on",
    "rtx": "NVIDIA RTX PRO 6000 Blackwell Server Edition:mig=on",
    "l40s": "NVIDIA L40S",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--nvml", choices=("simulated", "real"), default="simulated")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """On real hardware nothing that changes it is even collected, nor what makes GPUs of its own
    (nvml/test_read_only.py proves that nothing else does)."""
    if config.getoption("--nvml") == "real":
        items[:] = [
            item
            for item in items
            if not item.get_closest_marker("changes_gpus")
            and "sim" not in getattr(item, "fixturenames", ())
        ]


@pytest.fixture
def nvml(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[list[str]]:
    """An initialised NVML; the models of its GPUs."""
    if request.config.getoption("--nvml") == "real":
        pynvml.nvmlInit()
        yield []
        pynvml.nvmlShutdown()
        return
    state = str(tmp_path / "state")
    os.environ["NVML_SIM_STATE"] = state
    subprocess.run(
        ["nvml-sim", "create", "--state", state, "--dev-root", str(tmp_path / "dev"),
         "--proc-root", str(tmp_path / "proc"), *MODELS.values()],
        check=True,
    )  # fmt: skip
    pynvml.nvmlInit()
    yield list(MODELS)
    pynvml.nvmlShutdown()
    del os.environ["NVML_SIM_STATE"]
