"""What can go wrong around slurm-mig, each as a script that makes it and one that ends it.

Used by the fault table's tests (docs/faults.md) and by the soak. The scripts run on the head as
root, `$NODE` is the node; what ends by itself has no second one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.testbed.product import CONFIGURATION, ManagedCluster

HERE = Path(__file__).resolve().parent

FAULTS = "/run/faults"
START_CTLD = "setpriv --reuid=slurm --regid=slurm --init-groups slurmctld"
CTLD = "$(cat /run/slurm/slurmctld.pid)"
SLURMD = "$(cat /run/slurm/slurmd-$NODE.pid)"
UPDATE = "scontrol update NodeName=$NODE"
CREATE = "nvmlDeviceCreateGpuInstanceWithPlacement"
NODES_CONF = "/etc/slurm/slurm-mig/nodes.conf"
GRES_CONF = "/etc/slurm/slurm-mig/gres.conf"
STATE = "/var/lib/slurm-mig"


@dataclass(frozen=True)
class Fault:
    """`strike` makes it, `heal` ends it."""

    name: str
    strike: str
    heal: str = ""


def _later(seconds: float, script: str) -> str:
    return f"setsid -f sh -c 'sleep {seconds}; {script}' >/dev/null 2>&1 </dev/null"


def _nvml(name: str, *words: str) -> Fault:
    clear = "on-node $NODE nvml-sim fault --clear"
    return Fault(name, f"on-node $NODE nvml-sim fault {' '.join(words)}", clear)


def _remote(name: str, kind: str, verb: str) -> Fault:
    return Fault(name, f"echo '{kind} {verb}' > {FAULTS}/remote", f"rm -f {FAULTS}/remote")


def _full(name: str, directory: str, where: str = "") -> Fault:
    """A file system with no byte left: as large as what is on it."""
    return Fault(
        name,
        f"{where} sh {FAULTS}/full {directory}".strip(),
        f"{where} mount -o remount,size=64m {directory}".strip(),
    )


def _read_only(name: str, directory: str, where: str = "") -> Fault:
    return Fault(
        name,
        f"{where} mount -o remount,ro {directory}".strip(),
        f"{where} mount -o remount,rw {directory}".strip(),
    )


def _pinned(name: str, file: str) -> Fault:
    """One file alone that cannot be replaced."""
    return Fault(name, f"mount --bind {file} {file}", f"umount {file}")


ON_NODE = "on-node $NODE"
NODE_STATE = "/var/lib/slurm-mig"
NODE_RUN = "/run/slurm-mig"

SLURMCTLD = (
    Fault("slurmctld killed", f"kill -9 {CTLD}; " + _later(1, START_CTLD)),
    Fault(
        "slurmctld restarted",
        f"p={CTLD}; kill $p; while kill -0 $p 2>/dev/null; do sleep 0.05; done; {START_CTLD}",
    ),
    Fault("slurmctld slow", f"sh {FAULTS}/slow 3"),
    Fault("slurmctld hangs", f"sh {FAULTS}/slow 14"),
)

SUPERVISED = f"kill -0 {SLURMD} 2>/dev/null || {ON_NODE} start-slurmd $NODE"
"""What systemd does of itself: a slurmd that has ended is started again, where nobody has yet."""

SLURMDS = (
    Fault("slurmd killed", f"kill -9 {SLURMD}", SUPERVISED),
    Fault(
        "slurmd does not come back",
        f"kill -9 {SLURMD}; {ON_NODE} mount --bind {FAULTS}/no-slurmd /usr/sbin/slurmd",
        f"{ON_NODE} umount /usr/sbin/slurmd; {SUPERVISED}",
    ),
    Fault(
        "slurmd comes back late",
        f"kill -9 {SLURMD}; {ON_NODE} mount --bind {FAULTS}/late-slurmd /usr/sbin/slurmd",
        f"{ON_NODE} umount /usr/sbin/slurmd; {SUPERVISED}",
    ),
    Fault("slurmd hangs", f"kill -STOP {SLURMD}", f"kill -CONT {SLURMD} || true; {SUPERVISED}"),
    Fault("an old gres.conf comes back", f"cp {FAULTS}/old-gres.conf {GRES_CONF}"),
)

NVML = (
    _nvml("NVML: one creation fails", CREATE, "--code", "UNKNOWN", "--times", "1"),
    _nvml("NVML: no creation succeeds", CREATE, "--code", "UNKNOWN", "--times", "-1"),
    _nvml("NVML: an instance stays in use", "nvmlGpuInstanceDestroy", "--code", "IN_USE",
          "--times", "-1"),
    _nvml("NVML: destroyed, it says, and it is still there", "nvmlGpuInstanceDestroy", "--code",
          "LIE", "--times", "-1"),
    _nvml("NVML: no permission", "nvmlComputeInstanceDestroy", "--code", "NO_PERMISSION",
          "--times", "-1"),
    _nvml("NVML: the GPUs are lost", "'*'", "--code", "GPU_IS_LOST", "--times", "-1"),
    _nvml("NVML: slow", CREATE, "--code", "SLOW", "--delay-ms", "1500", "--times", "2"),
)  # fmt: skip

VERBS = ("observe", "reshape", "prepare", "publish")
"""Those of every reshape. (`announce` is for a node that does not respond after all.)"""
REMOTE = tuple(
    _remote(f"remote command: {kind} ({verb})", kind, verb)
    for kind in ("fail", "hang", "rubbish", "lost", "late", "killed")
    for verb in VERBS
)

DISKS = (
    _full("state directory full", STATE),
    _read_only("state directory read-only", STATE),
    _full("/etc/slurm full", "/etc/slurm"),
    _read_only("/etc/slurm read-only", "/etc/slurm"),
    _pinned("nodes.conf cannot be replaced", NODES_CONF),
    _pinned("gres.conf cannot be replaced", GRES_CONF),
    _full("the node's boot record: disk full", NODE_STATE, ON_NODE),
    _read_only("the node's boot record: read-only", NODE_STATE, ON_NODE),
    _full("the node's slot map and marks: /run full", NODE_RUN, ON_NODE),
    _read_only("the node's slot map and marks: /run read-only", NODE_RUN, ON_NODE),
)

HANDS = (
    Fault(
        "gres.conf edited by a person",
        f"sed -i s/Type=guard/Type=mine/ {GRES_CONF}",
        f"sed -i s/Type=mine/Type=guard/ {GRES_CONF}",
    ),
    Fault(
        "nodes.conf edited by a person",
        f"sed -i 's/^NodeName=[^ ]* /&Weight=7 /' {NODES_CONF}",
        f"sed -i 's/ Weight=7//' {NODES_CONF}",
    ),
    Fault(
        "slurm.conf replaced by configuration management",
        f"cp {FAULTS}/site-slurm.conf /etc/slurm/slurm.conf",
    ),
    Fault(
        "gres.conf of the site replaced by configuration management",
        f"cp {FAULTS}/site-gres.conf /etc/slurm/gres.conf",
    ),
)  # fmt: skip

CLOCK = (
    Fault("the clock jumps a day ahead", f"echo 86400 > {FAULTS}/clock", f"rm {FAULTS}/clock"),
    Fault("the clock jumps a day back", f"echo -86400 > {FAULTS}/clock", f"rm {FAULTS}/clock"),
)

OTHERS = (
    Fault(
        "a second reconciler",
        f"slurm-mig reconcile >{FAULTS}/second 2>&1; echo exit $? >>{FAULTS}/second",
    ),
    Fault("the node reboots", f"sh {FAULTS}/reboot $NODE"),
    Fault("the reconciler is killed", f"sh {FAULTS}/kill-command reconcile"),
    Fault("the node command is killed", f"sh {FAULTS}/kill-command 'node serve' $NODE"),
)

CONFIG = (
    CONFIGURATION.replace(
        'command: [on-node, "%h", slurm-mig, node, serve]',
        'command: [python, -m, tests.testbed.faulty_remote, "%h"]\n  timeout_s: 4\n  rest_s: 1',
    )
    .replace("node:\n", "node:\n  restart_deadline_s: 3\n")
    .replace("policy:\n", "policy:\n  fence_deadline_s: 5\n  quarantine_after_s: 0\n")
)
"""Short deadlines, and the remote command that can go wrong."""

_NO_SLURMD = """#!/bin/sh
exit 1
"""
_LATE_SLURMD = f"""#!/bin/sh
sleep 5
exec {FAULTS}/slurmd "$@"
"""
_FULL = """
used=$(df --output=used -k $1 | tail -n 1 | tr -d ' ')
mount -o remount,size=${used}k $1
"""
_SLOW = """
p=$(cat /run/slurm/slurmctld.pid)
kill -STOP $p
setsid -f sh -c "sleep $1; kill -CONT $p" >/dev/null 2>&1 </dev/null
"""
_KILL = r"""
# The command `slurm-mig WORDS` on a host, or on the head.
words=$1
first=1
[ -z "$2" ] || first=$(cat /run/nodes/$2.pid)
host=$(readlink /proc/$first/ns/mnt)
for proc in /proc/[0-9]*; do
    [ "$(readlink $proc/ns/mnt 2>/dev/null)" = "$host" ] || continue
    case "$(tr '\0' ' ' < $proc/cmdline 2>/dev/null)" in
        *python*slurm_mig.cli\ "$words"*) kill -9 ${proc#/proc/} ;;
    esac
done
"""
_REBOOT = """
# Every process of the host ends but the one that holds its namespaces; its instances and what is in
# memory are gone. Then what systemd does at a boot: restore, slurmd.
name=$1
first=$(cat /run/nodes/$name.pid)
host=$(readlink /proc/$first/ns/mnt)
for proc in /proc/[0-9]*; do
    pid=${proc#/proc/}
    [ "$(readlink $proc/ns/mnt 2>/dev/null)" = "$host" ] || continue
    [ $pid != $first ] && [ "$(cat $proc/comm)" != sleep ] && kill -9 $pid
done
on-node $name sh -ec 'rm -rf /run/slurm-mig/*; nvml-sim reboot'
on-node $name slurm-mig restore
on-node $name start-slurmd $name
"""


def prepare(cluster: ManagedCluster) -> None:
    """What the scripts need, on a cluster that is running and not yet enrolled."""
    cluster.sh(f"mkdir -p {FAULTS}; cp /usr/sbin/slurmd {FAULTS}/slurmd")
    cluster.write(f"{FAULTS}/no-slurmd", _NO_SLURMD, "755")
    cluster.write(f"{FAULTS}/late-slurmd", _LATE_SLURMD, "755")
    scripts = {"reboot": _REBOOT, "full": _FULL, "slow": _SLOW, "kill-command": _KILL}
    for name, script in scripts.items():
        cluster.write(f"{FAULTS}/{name}", script)
    cluster.sh(f"cp /etc/slurm/slurm.conf {FAULTS}/site-slurm.conf")
    cluster.sh(f"cp /etc/slurm/gres.conf {FAULTS}/site-gres.conf")
    cluster.sh(f"cc -shared -fPIC -O1 -o {FAULTS}/clock.so {HERE}/clock.c")
    for size in (STATE, "/etc/slurm"):
        cluster.sh(f"mount -o remount,size=64m {size}")


UNDER_CLOCK = ("env", f"LD_PRELOAD={FAULTS}/clock.so", f"CLOCK_OFFSET={FAULTS}/clock")
"""Before a command whose clock a fault may set."""
