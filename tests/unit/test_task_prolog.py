"""scripts/task_prolog under a POSIX shell: UUIDs for what the task was given, nothing otherwise."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "task_prolog"
MAP = """\
# slurm-mig slots v1
constrained {constrained}
0 1g.5gb MIG-a /dev/nvidia0,/c/1
1 1g.5gb MIG-b /dev/nvidia0,/c/2
2 off - /c/3
11 3g.20gb MIG-c /dev/nvidia1,/c/4
12 a100 GPU-d /dev/nvidia2
"""


def run(tmp_path: Path, env: dict[str, str], constrained: str = "yes") -> str:
    slots = tmp_path / "slots"
    slots.write_text(MAP.format(constrained=constrained))
    done = subprocess.run(
        ["/bin/dash", str(SCRIPT), str(slots)], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    return done.stdout


def exported(uuids: str) -> str:
    return f"export CUDA_VISIBLE_DEVICES={uuids}\nexport NVIDIA_VISIBLE_DEVICES={uuids}\n"


@pytest.mark.parametrize(
    ("env", "constrained", "uuids"),
    [
        ({"SLURM_JOB_GPUS": "0", "CUDA_VISIBLE_DEVICES": "0"}, "yes", "MIG-a"),
        ({"SLURM_JOB_GPUS": "11", "CUDA_VISIBLE_DEVICES": "0"}, "yes", "MIG-c"),
        ({"SLURM_JOB_GPUS": "11", "CUDA_VISIBLE_DEVICES": "11"}, "no", "MIG-c"),
        ({"SLURM_JOB_GPUS": "0-1,11", "CUDA_VISIBLE_DEVICES": "0,1,2"}, "yes", "MIG-a,MIG-b,MIG-c"),
        ({"SLURM_JOB_GPUS": "0,1", "SLURM_STEP_GPUS": "1"}, "yes", "MIG-b"),
        ({"SLURM_STEP_GPUS": "0,1,11", "CUDA_VISIBLE_DEVICES": "2"}, "yes", "MIG-c"),
        ({"SLURM_JOB_GPUS": "12"}, "yes", "GPU-d"),
    ],
)
def test_uuids(tmp_path: Path, env: dict[str, str], constrained: str, uuids: str) -> None:
    assert run(tmp_path, env, constrained) == exported(uuids)


@pytest.mark.parametrize(
    "value",
    ["", "99", "2", "$(touch /tmp/x)", "0\n1", "*", "0-", "-", "1" * 5000, "0;id", "0-999999999"],
)
def test_what_is_strange_is_left_as_slurm_made_it(tmp_path: Path, value: str) -> None:
    assert run(tmp_path, {"SLURM_JOB_GPUS": value}) == ""


def test_a_job_without_gpus_and_a_node_without_a_map(tmp_path: Path) -> None:
    assert run(tmp_path, {}) == ""
    done = subprocess.run(
        ["/bin/dash", str(SCRIPT), str(tmp_path / "none")], env={"SLURM_JOB_GPUS": "0"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "")
