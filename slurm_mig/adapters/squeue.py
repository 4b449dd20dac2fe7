"""Slurm's word on jobs that have gpus of this node, for a GPU node without pyslurm: squeue.

Never changes anything. Called only where slurmd runs.
"""

from __future__ import annotations

import re
import subprocess

from slurm_mig.errors import UnreachableError

TIMEOUT_S = 20.0
STATES = "RUNNING,SUSPENDED,COMPLETING,CONFIGURING"


def gpu_jobs(node: str) -> list[int]:
    """Jobs on the node that have been allocated gpus. Raises UnreachableError: without Slurm's
    word nothing may be taken away."""
    command = [
        "squeue", "--noheader", f"--nodelist={node}", f"--states={STATES}",
        "--Format=JobID:20,tres-alloc:1000",
    ]  # fmt: skip
    try:
        done = subprocess.run(
            command,
            check=True,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=TIMEOUT_S,
        )
    except (OSError, subprocess.SubprocessError) as error:
        detail = (getattr(error, "stderr", "") or str(error)).strip()
        raise UnreachableError(
            f"slurmd runs here, but slurmctld cannot be asked which jobs have gpus: {detail}",
            hint="Nothing was touched. Stop slurmd if this node is to be changed without Slurm.",
        ) from error
    found = set()
    for line in done.stdout.splitlines():
        job, _, tres = line.strip().partition(" ")
        if job.isdigit() and re.search(r"\bgres/gpu\b", tres):
            found.add(int(job))
    return sorted(found)
