"""One simulated node a test, of the GPUs that the test asks for; with `--nvml real` this host's.

What the tests one folder up say of a fixed set of GPUs is said here model by model.
"""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pynvml
import pytest

from slurm_mig.adapters.gpus import NvmlGpus
from tests.contract.nvml.calls import A100
from tests.contract.nvml.site import Site
from tests.testbed.nvml_sim import GpuSpec, Paths, Simulator, build

MODELS = (
    "NVIDIA A30",
    "NVIDIA A100-SXM4-40GB",
    "NVIDIA H100 80GB HBM3",
    "NVIDIA B200",
    "NVIDIA RTX PRO 6000 Blackwell Server Edition",
)
"""One of each shape: 4, 8 and 12 memory slices; with and without reset."""

REAL = "this host's GPU"


def _on_real(config: pytest.Config) -> bool:
    return bool(config.getoption("--nvml", default="simulated") == "real")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "model" in metafunc.fixturenames:
        metafunc.parametrize("model", (REAL,) if _on_real(metafunc.config) else MODELS)


@pytest.fixture(scope="session")
def paths(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Paths:
    """The simulated library, built, and loaded so that pynvml finds it.

    pynvml asks for libnvidia-ml.so.1; the loader then hands out what is loaded under that soname.
    """
    if _on_real(request.config):
        pytest.fail("this is about a simulated GPU: it is not for real hardware")
    if not (shutil.which("make") and shutil.which("cc")):
        pytest.fail("needs make and a C compiler")
    if os.geteuid():
        pytest.fail("device nodes are made by root only")
    built = build(tmp_path_factory.mktemp("nvml"))
    ctypes.CDLL(str(built.libnvml), ctypes.RTLD_GLOBAL)
    return built


@pytest.fixture
def sim(paths: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Simulator:
    """A node without GPUs yet: `create` makes it; NVML calls of this process are about it."""
    simulator = Simulator(paths, tmp_path / "state")
    monkeypatch.setenv("NVML_SIM_STATE", str(simulator.state))
    _shut()
    return simulator


def _shut() -> None:
    """What a test of another module left open: the library looks for its node at the first init."""
    while True:
        try:
            pynvml.nvmlShutdown()
        except pynvml.NVMLError:
            return


Opened = Callable[..., NvmlGpus]


@pytest.fixture
def opened(sim: Simulator, tmp_path: Path) -> Iterator[Opened]:
    """Makes a node of these GPUs and opens them."""
    made: list[NvmlGpus] = []

    def open_gpus(*specs: GpuSpec, driver: str = "580.95.05") -> NvmlGpus:
        sim.create(specs, root=tmp_path, driver=driver)
        gpus = NvmlGpus(str(tmp_path / "dev" / "nvidia-caps"), str(tmp_path / "proc"), retry_s=0.6)
        made.append(gpus)
        return gpus

    yield open_gpus
    for gpus in made:
        gpus.close()


@pytest.fixture
def nvml() -> Iterator[None]:
    """NVML between init and shutdown; a test asks for it after its node is made."""
    pynvml.nvmlInit()
    yield
    pynvml.nvmlShutdown()


@pytest.fixture
def gpu(model: str, request: pytest.FixtureRequest) -> Any:
    """A MIG-enabled GPU of the model; on real hardware the first that can do MIG, as it is."""
    if model != REAL:
        simulator = request.getfixturevalue("sim")
        root = request.getfixturevalue("tmp_path")
        simulator.create([GpuSpec(model, mig=True)], root=root)
    try:
        request.getfixturevalue("nvml")
    except pynvml.NVMLError as error:
        pytest.fail(f"no NVML here: {error}")
    for index in range(pynvml.nvmlDeviceGetCount()):
        device = pynvml.nvmlDeviceGetHandleByIndex(index)
        try:
            pynvml.nvmlDeviceGetMigMode(device)
        except pynvml.NVMLError:
            continue
        return device
    pytest.fail("no GPU here can do MIG")


@pytest.fixture
def make(
    sim: Simulator, tmp_path: Path, request: pytest.FixtureRequest
) -> Callable[..., list[Any]]:
    """Makes a node of these GPUs, starts NVML, gives the handles."""

    def made(*gpus: GpuSpec, **options: Any) -> list[Any]:
        sim.create(gpus, root=tmp_path, **options)
        request.getfixturevalue("nvml")
        return [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(len(gpus))]

    return made


@pytest.fixture
def a100(make: Callable[..., list[Any]]) -> Any:
    return make(GpuSpec(A100, mig=True))[0]


@pytest.fixture
def site(opened: Opened, tmp_path: Path) -> Site:
    return Site(opened, tmp_path)
