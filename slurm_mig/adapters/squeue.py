"""Slurm's word on jobs that have gpus of this node, for a GPU node without pyslurm: its commands.

Never changes anything. Called only where slurmd runs.
"""

from __future__ import annotations

import re
import subprocess

from slurm_mig.adapters.gresfile import names
from slurm_mig.adapters.slurmcommands import environment
from slurm_mig.core import demand
from slurm_mig.errors import UnreachableError

TIMEOUT_S = 20.0
STATES = "RUNNING,SUSPENDED,COMPLETING,CONFIGURING"
FIELDS = ("tres-per-node", "tres-per-job", "tres-per-socket", "tres-per-task", "tres-alloc")
"""Where a job's gpus show; in the last only where the site accounts for them."""


def gpu_jobs(node: str) -> list[int]:
    """Jobs on the node that asked for gpus; all of its jobs where some have gpus without asking
    (whole-node allocations). Raises UnreachableError: without Slurm's word nothing may go."""
    words = ",".join(("JobID:20", *(f"{field}:300" for field in FIELDS)))
    listed = _said(
        "squeue", "--noheader", "--local", f"--nodelist={node}", f"--states={STATES}",
        f"--Format={words}",
    )  # fmt: skip
    jobs: dict[int, str] = {}
    for line in listed.splitlines():
        job, _, asked = line.strip().partition(" ")
        if job.isdigit():
            jobs[int(job)] = asked
    asking = sorted(job for job, asked in jobs.items() if re.search(r"\bgpu\b", asked))
    used = re.search(r"(?m)^\s*GresUsed=(\S*)", _said("scontrol", "show", "node", "-d", node))
    some = used is not None and re.search(r"\bgpu:[^,()]*:[1-9]", used[1])
    return asking or (sorted(jobs) if some else [])


def indexes_of(job: int, node: str) -> list[int]:
    """GRES indexes of a running job's gpus on the node. Raises UnreachableError."""
    said = _said("scontrol", "show", "job", "-d", str(job))
    found: list[int] = []
    for nodes, gres in re.findall(r"\bNodes=(\S+) .*?\bGRES=(\S*)", said):
        if names(nodes, node):
            found += demand.gpu_indexes(gres)
    return sorted(found)


def _said(*command: str) -> str:
    try:
        done = subprocess.run(
            command,
            check=True,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            env=environment(),
            timeout=TIMEOUT_S,
        )
    except (OSError, subprocess.SubprocessError) as error:
        detail = (getattr(error, "stderr", "") or str(error)).strip()
        raise UnreachableError(
            f"slurmd runs here, but slurmctld cannot be asked which jobs have gpus: {detail}",
            hint="Nothing was touched. Stop slurmd if this node is to be changed without Slurm.",
        ) from error
    return done.stdout
