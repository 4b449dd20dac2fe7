"""Does a test fail when an invariant's check is taken out? Tries each, and prints a table.

    scripts/mutants            all of them
    scripts/mutants 2 5        those of invariants 2 and 5

Each mutant is a copy of the project in which one check is gone. The test named beside it runs there
and must fail; that it passes on the project itself is what scripts/test sees. Not part of
scripts/test: it takes some minutes. docs/safety.md has the invariants and the last result.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
COPY = Path("/tmp/mutant")


@dataclass(frozen=True)
class Mutant:
    """`old` in `file` becomes `new`; `test` must notice."""

    invariant: int
    what: str
    file: str
    old: str
    new: str
    test: str


MUTANTS = (
    Mutant(
        1, "released before slurmctld shows the new Gres", "slurm_mig/noderun.py",
        '"INVALID_REG" not in n.states and list(n.gres.items()) == list(wanted.items())',
        "True",
        "tests/cluster/test_last_instant.py::test_a_slurmd_that_registers_something_else_is_not_released",
    ),
    Mutant(
        1, "device files not made before slurmd reads their names", "slurm_mig/node.py",
        "    system.ensure_device_files(file for device in slots for file in device.files)\n",
        "",
        "tests/cluster/test_isolation.py::test_slurmd_comes_up_after_the_driver_took_its_device_nodes",
    ),
    Mutant(
        2, "Slurm's allocations are not looked at behind the fence", "slurm_mig/noderun.py",
        "        for allocation in node.allocations:\n            for index",
        "        for allocation in ():\n            for index",
        "tests/cluster/test_last_instant.py::test_a_job_that_starts_in_the_last_instant_before_the_fence",
    ),
    Mutant(
        2, "NVML's processes are not looked at behind the fence", "slurm_mig/node.py",
        "            _refuse_busy(gpus[part.gpu], part)\n",
        "            pass\n",
        "tests/cluster/test_last_instant.py::test_a_process_that_starts_behind_the_fence",
    ),
    Mutant(
        3, "busy devices do not keep their index", "slurm_mig/core/slots.py",
        "inside.pop() for i in range(hull.low, hull.high + 1))",
        "inside.pop() for i in reversed(range(hull.low, hull.high + 1)))",
        "tests/unit/test_slots.py",
    ),
    Mutant(
        4, "released without a registration", "slurm_mig/core/transitions.py",
        "    if not seen.registered:\n        return Step.REGISTER\n",
        "",
        "tests/unit/test_values.py::test_the_release_comes_last_of_all",
    ),
    Mutant(
        5, "every drain is taken for ours", "slurm_mig/core/fences.py",
        "    if node.reason.startswith(transaction.reason):\n        return True\n",
        "    return True\n",
        "tests/cluster/test_ownership.py::test_a_hand_in_the_middle",
    ),
    Mutant(
        6, "the reshape is not journalled before it is made", "slurm_mig/noderun.py",
        "        self._journal(Phase.RESHAPED)\n        self.touched = True\n",
        "        self.touched = True\n",
        "tests/cluster/test_recovery.py::test_killed_after_the_reshape_and_drained_by_somebody_else",
    ),
    Mutant(
        4, "what is seen after a step is not held against the invariant",
        "slurm_mig/core/transitions.py",
        "        if fault := broken(step, seen, after):\n",
        "        if fault := \"\":\n",
        "tests/property/test_transaction.py",
    ),
    Mutant(
        5, "a drain made between the journal and ours is not looked for", "slurm_mig/noderun.py",
        "        if before.states & KEPT_AWAY and not orphaned(before):\n",
        "        if False:\n",
        "tests/property/test_transaction.py",
    ),
    Mutant(
        6, "slurmctld's words after a crash are taken for somebody else's",
        "slurm_mig/core/fences.py",
        "    return transaction.touched and _REFUSED.match(node.reason) is not None\n",
        "    return False\n",
        "tests/property/test_transaction.py",
    ),
    Mutant(
        2, "a request of an earlier command is served", "slurm_mig/adapters/turns.py",
        "    if turn < latest:\n",
        "    if False:\n",
        "tests/unit/test_turns.py",
    ),
    Mutant(
        7, "the guard lists nothing that is not there yet", "slurm_mig/core/slots.py",
        "file not in used",
        "file in used",
        "tests/cluster/test_reshape.py::test_a_job_cannot_open_an_instance_made_after_it_started",
    ),
    Mutant(
        8, "types that the node has not now are not listed", "slurm_mig/core/slots.py",
        "absent = sorted(t for t in (*possible, ZERO) if t not in tally)",
        "absent = [ZERO]",
        "tests/cluster/test_ownership.py::test_an_old_state_of_our_files_costs_no_job",
    ),
    Mutant(
        4, "resumed so that the node does not respond at first", "slurm_mig/noderun.py",
        "            node = self._loosened()\n",
        "            pass\n",
        "tests/cluster/test_first_step.py::test_no_reshape_makes_a_node_silent",
    ),
    Mutant(
        5, "a drain made while the fence becomes FAIL is lifted", "slurm_mig/noderun.py",
        "            self._at.cluster.drain(self.name, node.reason)\n        else:\n",
        "            self._at.cluster.resume(self.name)\n        else:\n",
        "tests/property/test_transaction.py",
    ),
    Mutant(
        9, "instances that are not Slurm's are offered", "slurm_mig/core/slots.py",
        "own = (i for i in gpu.instances if not i.owner)",
        "own = gpu.instances",
        "tests/cluster/test_outside.py::test_slurm_is_offered_the_rest",
    ),
    Mutant(
        9, "no last look whose the instances are", "slurm_mig/noderun.py",
        "        self._refuse_foreign()\n",
        "",
        "tests/property/test_transaction.py",
    ),
)  # fmt: skip


def noticed(mutant: Mutant) -> bool:
    """Runs the mutant's test in a copy. Raises when the text to change is not there once."""
    shutil.rmtree(COPY, ignore_errors=True)
    shutil.copytree(HERE, COPY, ignore=shutil.ignore_patterns(".git", "__pycache__"))
    path = COPY / mutant.file
    text = path.read_text()
    if text.count(mutant.old) != 1:
        raise ValueError(f"{mutant.file} has {mutant.old!r} {text.count(mutant.old)} times")
    path.write_text(text.replace(mutant.old, mutant.new))
    # The product runs from where it is installed: the copy takes its place in this namespace.
    subprocess.run(["mount", "--bind", COPY, HERE], check=True)
    try:
        command = [sys.executable, "-m", "pytest", "-q", "-x", mutant.test]
        return subprocess.run(command, cwd=HERE, stdout=subprocess.DEVNULL).returncode == 1
    finally:
        subprocess.run(["umount", HERE], check=True)


def main(*chosen: str) -> int:
    missed = 0
    for mutant in MUTANTS:
        if chosen and str(mutant.invariant) not in chosen:
            continue
        found = noticed(mutant)
        missed += not found
        print(f"{mutant.invariant}  {'noticed' if found else 'MISSED '}  {mutant.what}", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
