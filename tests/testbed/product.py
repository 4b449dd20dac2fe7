"""A cluster with slurm-mig installed as the documentation says, its nodes not yet enrolled."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

from tests.testbed.cluster import ETC, Cluster

SOURCE = Path(__file__).resolve().parents[2]

CONFIGURATION = """\
remote:
  command: [on-node, "%h", slurm-mig, node, serve]
node:
  restart_command: [restart-slurmd]
  pid_file: /run/slurm/slurmd-%n.pid
policy:
  cooldown_s: 0
  max_nodes_in_transition: 4
submit:
  default_types: {main: 1g.5gb, a100: 1g.5gb, a30: 1g.6gb}
"""


def in_way(config: str, publish: str, *more: str) -> str:
    """The configuration for one of the ways of holding Slurm's configuration."""
    lines = (f"config: {config}", f"publish: {publish}", *more)
    return CONFIGURATION + "slurm:\n" + "".join(f"  {line}\n" for line in lines)


SLURM_LINES = f"""\
TaskProlog={SOURCE}/scripts/task_prolog
JobSubmitPlugins=lua
"""


HOOK_LINES = f"""\
Prolog={SOURCE}/scripts/prolog
Epilog={SOURCE}/scripts/epilog
PrologSlurmctld={SOURCE}/scripts/slurmctld_prolog
EpilogSlurmctld={SOURCE}/scripts/slurmctld_epilog
"""


@dataclass
class ManagedCluster(Cluster):
    """A `Cluster` whose slurm.conf has the lines that slurm-mig wants."""

    hooks: bool = False
    """With all of slurm-mig's hooks, not TaskProlog only."""
    configuration: str = CONFIGURATION

    def __post_init__(self) -> None:
        self.extra_conf += SLURM_LINES + (HOOK_LINES if self.hooks else "")
        plugin = (SOURCE / "etc" / "job_submit.lua").read_text()
        self.files = {
            "slurm-mig.yaml": self.configuration,
            "job_submit.lua": plugin,
            **self.files,
        }

    def __enter__(self) -> ManagedCluster:
        self.start()
        self.write("/usr/local/bin/prove", PROVE, "755")
        return self

    def slurm_mig(self, *words: str, check: bool = True) -> CompletedProcess[str]:
        """Run slurm-mig on the head. Raises with its output and the daemons' logs when it fails."""
        done = self.run("slurm-mig", *words, check=False, timeout=120)
        if check and done.returncode:
            said = f"{done.stdout}{done.stderr}\n{self.logs()}"
            raise RuntimeError(f"slurm-mig {' '.join(words)} exited {done.returncode}\n{said}")
        return done

    def enrol(self) -> None:
        """Take every node into care."""
        self.slurm_mig("enrol", *[node.name for node in self.nodes])

    def reconcile_every(self, seconds: float) -> None:
        """Have cycles run, as the timer has them run."""
        self.begin(f"slurm-mig reconcile --loop {seconds:g}", "/var/log/slurm/reconcile.log")

    def register(self, node: str) -> None:
        """Have a node's slurmd register, and wait until slurmctld counts it as responding: before,
        a step that a running job launches can hang for minutes."""
        before = self.node(node)["SlurmdStartTime"]
        self.sh("sleep 1")  # its start time, which tells, has a resolution of one second
        self.sh(f"kill -HUP {self.pid('slurmd', node)}")
        self.wait_for(
            lambda: "NOT_RESPONDING" not in (shown := self.node(node))["State"]
            and shown["SlurmdStartTime"] != before,
            30, f"{node} to register")  # fmt: skip

    def configure(self, text: str) -> None:
        """Change the configuration file, on every host that has one of its own."""
        self.write(f"{ETC}/slurm-mig.yaml", text)
        for host in (*self.own_files, *self.configless):
            self.run("sh", "-c", f"cat > {ETC}/slurm-mig.yaml", node=host, stdin=text)
        if self.backup_has_own_files:
            self.run("sh", "-c", f"cat > {ETC}/slurm-mig.yaml", node=self.backup, stdin=text)

    def status(self) -> dict[str, Any]:
        """`slurm-mig status --json`."""
        shown: dict[str, Any] = json.loads(self.slurm_mig("status", "--json").stdout)
        return shown

    def report(self) -> dict[str, Any]:
        """What the last cycle left for `status` and for the next one."""
        found: dict[str, Any] = json.loads(self.run("cat", "/var/lib/slurm-mig/cycle.json").stdout)
        return found

    def history(self) -> list[dict[str, Any]]:
        """Every finished transaction, oldest first; a line that a full disk has cut is none."""
        text = self.run("cat", "/var/lib/slurm-mig/history.jsonl", check=False).stdout
        entries = []
        for line in text.splitlines():
            with suppress(json.JSONDecodeError):
                entries.append(json.loads(line))
        return [entry for entry in entries if "phase" in entry]

    def reports(self, job: int, which: str) -> list[dict[str, Any]]:
        """What the fake CUDA programs of a job said of their device."""
        text = self.run("cat", f"/tmp/jobs/{job}.{which}", check=False).stdout
        return [json.loads(line) for line in text.splitlines()]

    def instances(self, node: str) -> Iterator[tuple[int, dict[str, Any]]]:
        """Every GPU instance of a node, by the simulator's own word."""
        for index, gpu in enumerate(self.sim(node)["gpus"]):
            for instance in gpu["instances"]:
                yield index, instance


PROVE = """\
#!/bin/sh
# prove LABEL: the task computes on each device that it was given, and can open no other one there.
# Its devices go to /tmp/jobs/JOB.LABEL, a line each; how many others it tried, to JOB.LABEL.tried.
own=${CUDA_VISIBLE_DEVICES-} report=/tmp/jobs/$SLURM_JOB_ID.$1
[ "$own" = "${NVIDIA_VISIBLE_DEVICES-}" ] || {
    echo "CUDA_VISIBLE_DEVICES=$own NVIDIA_VISIBLE_DEVICES=${NVIDIA_VISIBLE_DEVICES-}"
    exit 10
}
IFS=,
for uuid in $own; do
    CUDA_VISIBLE_DEVICES=$uuid fake-cuda --seconds 0.1 --report "$report" || exit
done
unset IFS
set --
while read -r _ uuid _; do
    case ,$own, in *,"$uuid",*) continue ;; esac
    case $uuid in MIG-* | GPU-*) set -- "$@" "$uuid" ;; esac
done </run/slurm-mig/slots
said=$(fake-cuda --probe "$@") || { echo "$said"; exit 11; }
[ $# -gt 0 ] && [ "$(echo "$said" | grep -c ' denied at ')" = $# ] || { echo "$said"; exit 12; }
echo $# >>"$report.tried"
"""
"""Exits with 0 when the task has its own devices and no other."""

CUDA_JOB = """\
me=/tmp/jobs/$SLURM_JOB_ID
fake-cuda --until-file $me.stop --report $me.first || exit $?
srun fake-cuda --seconds 0.1 --report $me.second
"""
"""Computes on its device until told, then launches a further step on it."""
