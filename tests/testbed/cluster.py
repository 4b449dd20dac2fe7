"""One private Slurm cluster: munge, slurmctld and a slurmd per GPU node, with simulated GPUs.

Runs inside the entered root filesystem. Each GPU node has its own mount, network and uts
namespaces, so its own /dev, /proc/driver and host name; munge's socket is shared, and so is
/etc/slurm, but where a test wants another way of holding configuration.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from subprocess import CompletedProcess
from types import TracebackType
from typing import Any

from tests.testbed import accounting, hosts
from tests.testbed.namespaces import Namespaces, cgroup_version

A100 = "NVIDIA A100-SXM4-40GB"
A30 = "NVIDIA A30"
H100 = "NVIDIA H100 80GB HBM3"
L40S = "NVIDIA L40S"
SITE_TYPES = {L40S: "l40s"}
SMALLEST = {A100: ("1g.5gb", 7), A30: ("1g.6gb", 4), H100: ("1g.10gb", 7)}
ETC = "/etc/slurm"
DAEMON_TIMEOUT_S = 90.0
HOSTS_AT_ONCE = 4
"""A first slurmctld that takes control back from the second one needs 30 s for it."""


@dataclass(frozen=True)
class NodeSpec:
    """A GPU node: its models, and what slurm.conf says of it."""

    name: str
    gpus: tuple[str, ...]
    cpus: int = 32
    memory_mib: int = 64000
    partitions: tuple[str, ...] = ("main",)
    features: str = ""
    overrides: bool = True
    """With SlurmdParameters=config_overrides; without it the node has what the host has."""
    layout: str = "N"
    """Which of the two placement layouts its boards have (see docs/facts.md)."""


def default_nodes() -> tuple[NodeSpec, ...]:
    """Two nodes with two A100-40GB each, one with two A30, one with an A100 beside an L40S."""
    host_mib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    return (
        NodeSpec("a100-1", (A100, A100), partitions=("main", "a100"), features="a100"),
        NodeSpec("a100-2", (A100, A100), partitions=("main", "a100"), features="a100", layout="F"),
        NodeSpec("a30-1", (A30, A30), partitions=("main", "a30"), features="a30"),
        NodeSpec(
            "mixed-1",
            (A100, L40S),
            cpus=os.cpu_count() or 1,
            memory_mib=min(host_mib // 2, 4000),
            features="mixed",
            overrides=False,
        ),
    )


@dataclass
class Cluster:
    """A running cluster. Use as a context manager, or `start` and `stop`."""

    nodes: Sequence[NodeSpec] = field(default_factory=default_nodes)
    extra_conf: str = ""
    """Lines added to slurm.conf."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Further files under /etc/slurm, by name."""
    timing: str = "none"
    """NVML's delays: `none`, or `hardware` for the published create and destroy times."""
    accounting: bool = False
    """With slurmdbd and MariaDB (tests/testbed/accounting.py)."""
    ignored: Sequence[str] = ()
    """Nodes of `extra_conf` that need not come up."""
    own_files: Sequence[str] = ()
    """Nodes with their own /etc/slurm; their gres.conf has lines without NodeName."""
    configless: Sequence[str] = ()
    """Nodes that get their configuration from slurmctld and have none of their own."""
    backup: str = ""
    """The host of a second slurmctld."""
    backup_has_own_files: bool = False
    spaces: Namespaces = field(default_factory=Namespaces)

    def __enter__(self) -> Cluster:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Bring everything up; returns when every node is idle."""
        self.spaces.start()
        try:
            self._prepare()
            with ThreadPoolExecutor(HOSTS_AT_ONCE) as pool:
                list(pool.map(self._start_host, range(len(self.nodes)), self.nodes))
            if self.backup:
                self._enter_host(self.backup, hosts.SECOND_HEAD, "10.77.0.2")
            self._write_site_configuration()
            self.run("munged", user="munge")
            if self.accounting:
                accounting.start(self)
            self.start_daemon("slurmctld")
            if self.backup:
                self.start_daemon("slurmctld", self.backup)
            if self.accounting:
                accounting.fill(self)
            for node in self.nodes:
                self.start_daemon("slurmd", node.name)
            self.wait_for(self._all_idle, 60 + 3 * len(self.nodes), "every node to be idle")
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End every process of the cluster; nothing is left."""
        self.spaces.stop()

    def describe(self) -> str:
        """What this testbed is, in a few lines."""
        version = cgroup_version()
        devices = f"constrained by cgroup v{version}" if version else "NOT constrained (no cgroup)"
        slurm = self.run("slurmctld", "-V").stdout.split()[1]
        return f"Slurm {slurm}, {len(self.nodes)} GPU nodes, devices {devices}"

    # -- running things ---------------------------------------------------------------------

    def run(
        self,
        *argv: str,
        node: str | None = None,
        user: str | None = None,
        env: Mapping[str, str] | None = None,
        stdin: str | None = None,
        check: bool = True,
        timeout: float = 60,
    ) -> CompletedProcess[str]:
        """Run a command on the head, or on a node."""
        command = [*argv] if node is None else ["on-node", node, *argv]
        return self.spaces.run(
            command, user=user, env=env, stdin=stdin, check=check, timeout=timeout
        )

    def sh(self, script: str, **options: Any) -> str:
        """Output of a shell script on the head, or on a node."""
        return self.run("sh", "-ec", script, **options).stdout

    def begin(self, command: str, log: str = "/dev/null", **options: Any) -> None:
        """Have a shell's command go on beside the test; it ends with the cluster at the latest."""
        self.sh(f"setsid -f {command} >{log} 2>&1 </dev/null", **options)

    def write(self, path: str, text: str, mode: str = "644") -> None:
        """Put a file on the head (and on every node, where the path is shared)."""
        self.sh(f"cat > {shlex.quote(path)}; chmod {mode} {shlex.quote(path)}", stdin=text)

    def read(self, path: str, node: str | None = None) -> str:
        return self.run("cat", path, node=node).stdout

    def submit(self, script: str, *options: str, user: str = "alice") -> int:
        """sbatch a script as a user; its output goes to /tmp/jobs/ID.out."""
        done = self.run(
            "sbatch",
            "--parsable",
            "--output=/tmp/jobs/%j.out",
            "--chdir=/tmp/jobs",
            *options,
            user=user,
            stdin=f"#!/bin/sh\n{script}\n",
        )
        return int(done.stdout.split(";")[0])

    def output(self, job: int) -> str:
        return self.run("cat", f"/tmp/jobs/{job}.out", check=False).stdout

    def job(self, job: int) -> dict[str, str]:
        """A job as `scontrol show job -d -o` has it; empty when it is gone."""
        shown = self.run("scontrol", "show", "job", "-d", "-o", str(job), check=False).stdout
        return fields(shown.splitlines()[0]) if shown.strip() else {}

    def node(self, name: str) -> dict[str, str]:
        """A node as `scontrol show node -d -o` has it."""
        return fields(self.run("scontrol", "show", "node", "-d", "-o", name).stdout)

    def wait_for(self, ready: Callable[[], Any], timeout: float, what: str) -> Any:
        """Poll until `ready` gives something true; raises with the logs when it does not."""
        deadline = time.monotonic() + timeout
        while True:
            value = ready()
            if value:
                return value
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {timeout:g} s for {what}\n{self.logs()}")
            time.sleep(0.05)

    def wait_job(self, job: int, *states: str, timeout: float = 30) -> dict[str, str]:
        """Wait until a job is in one of these states."""

        def there() -> dict[str, str]:
            shown = self.job(job)
            return shown if shown.get("JobState") in states else {}

        found: dict[str, str] = self.wait_for(
            there, timeout, f"job {job} to be {' or '.join(states)} (it is {self.job(job)})"
        )
        return found

    # -- daemons ----------------------------------------------------------------------------

    def pid_file(self, daemon: str, node: str | None = None) -> str:
        if daemon == "slurmctld" and node:
            return f"/run/slurm-{node}/slurmctld.pid"
        return f"/run/slurm/{daemon}{'-' + node if node else ''}.pid"

    def pid(self, daemon: str, node: str | None = None) -> int:
        """Pid of a daemon that runs, 0 otherwise."""
        file = self.pid_file(daemon, node)
        text = self.sh(f"p=$(cat {file} 2>/dev/null) && kill -0 $p 2>/dev/null && echo $p || true")
        return int(text.strip() or 0)

    def start_daemon(self, daemon: str, node: str | None = None) -> None:
        if daemon == "slurmctld":
            as_slurm = ("setpriv", "--reuid=slurm", "--regid=slurm", "--init-groups")
            self.run(*as_slurm, "slurmctld", node=node)
        else:
            assert node is not None
            self.run("start-slurmd", node, node=node)
        self.wait_for(lambda: self.pid(daemon, node), DAEMON_TIMEOUT_S, f"{daemon} to start")

    def kill_daemon(self, daemon: str, node: str | None = None, signal: str = "TERM") -> None:
        """Signal a daemon and wait until it is gone."""
        pid = self.pid(daemon, node)
        if pid:
            self.sh(f"kill -{signal} {pid}")
            self.wait_for(
                lambda: not self.sh(f"kill -0 {pid} 2>/dev/null && echo y || true"),
                DAEMON_TIMEOUT_S,
                f"{daemon} to end",
            )

    def restart_daemon(self, daemon: str, node: str | None = None, signal: str = "TERM") -> None:
        self.kill_daemon(daemon, node, signal)
        self.start_daemon(daemon, node)

    def logs(self, lines: int = 40) -> str:
        """The end of every daemon's log, and what sinfo and squeue say."""
        return self.sh(
            f"sinfo -N -o '%N %T %G %E' 2>&1 || true; squeue 2>&1 || true; "
            f'for f in /var/log/slurm/*.log; do echo "== $f"; tail -n {lines} $f; done',
            check=False,
        )

    def sim(self, node: str) -> dict[str, Any]:
        """The simulated GPUs' own state of a node."""
        state: dict[str, Any] = json.loads(self.run("nvml-sim", "dump", node=node).stdout)
        return state

    def _all_idle(self) -> bool:
        shown = self.run("sinfo", "-h", "-N", "-o", "%N %T", check=False).stdout.splitlines()
        states = {name: state for name, state in map(str.split, shown) if name not in self.ignored}
        return bool(states) and set(states.values()) == {"idle"}

    # -- making it --------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Folders, hosts, the bridge, and `on-node`."""
        self.spaces.run(["sh", "-ec", hosts.PREPARE])
        names = ["127.0.0.1 localhost", "10.77.0.1 head"]
        names += [f"10.77.0.{n + 10} {node.name}" for n, node in enumerate(self.nodes)]
        names += [f"10.77.0.2 {self.backup}"] if self.backup else []
        self.write("/run/hosts", "\n".join(names) + "\n")
        # A name that does not exist must fail at once, as it does with a name server that answers:
        # Slurm repeats a temporary failure for 10 s.
        self.write("/run/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files\n")
        self.sh("mount --bind /run/hosts /etc/hosts")
        self.sh("mount --bind /run/nsswitch.conf /etc/nsswitch.conf")

    def _enter_host(self, host: str, script: str, address: str) -> None:
        """A host's namespaces and network."""
        name = shlex.quote(host)
        self.sh(
            f"setsid -f unshare -mnu --propagation private sh -ec {shlex.quote(script)} host {name}"
            f" >/run/nodes/{name}.log 2>&1 </dev/null"
        )
        self.wait_for(
            lambda: self.sh(f"cat /run/nodes/{name}.pid 2>/dev/null || true").strip(),
            10, f"host {host}")  # fmt: skip
        link = f"v{address.rpartition('.')[2]}"
        self.sh(
            f"pid=$(cat /run/nodes/{name}.pid)\n"
            f"ip link add {link} type veth peer name eth0 netns $pid\n"
            f"ip link set {link} master br0 up\n"
            f"on-node {name} sh -ec 'ip link set lo up; "
            f"ip addr add {address}/24 dev eth0; ip link set eth0 up; "
            f"ip route add default via 10.77.0.1'"
        )

    def _start_host(self, number: int, node: NodeSpec) -> None:
        """A node's namespaces, network and simulated GPUs, cut by the site's own hand."""
        self._enter_host(node.name, hosts.HOST, f"10.77.0.{number + 10}")
        gpus = [f"{model}:mig=on:layout={node.layout}" if model in SMALLEST else model
                for model in node.gpus]  # fmt: skip
        major = re.search(r"(\d+) nvidia-caps", self.read("/proc/devices", node.name))
        assert major is not None
        self.run("nvml-sim", "create", "--caps-major", major[1], "--seed", node.name,
                 "--timing", self.timing, *gpus, node=node.name)  # fmt: skip
        self.run("python", "-m", "tests.testbed.cut", *map(_cut, node.gpus),
                 node=node.name)  # fmt: skip

    def _extra_conf(self) -> str:
        extra = self.extra_conf + (accounting.SLURM_LINES if self.accounting else "")
        if self.configless:
            extra += "SlurmctldParameters=enable_configless\n"
        if self.backup:
            extra += f"SlurmctldHost={self.backup}(10.77.0.2)\nSlurmctldTimeout=4\n"
        return extra

    def _write_site_configuration(self) -> None:
        """slurm.conf and gres.conf as the site's administrator wrote them, before slurm-mig."""
        self.write(f"{ETC}/slurm.conf", slurm_conf(self.nodes, self._extra_conf()))
        with ThreadPoolExecutor(HOSTS_AT_ONCE) as pool:
            gres = list(pool.map(self._site_gres_lines, self.nodes))
        self.write(f"{ETC}/gres.conf", "# The site's own.\n" + "".join(g.stdout for g in gres))
        self.write(f"{ETC}/cgroup.conf", cgroup_conf())
        self.write(f"{ETC}/slurmd-parameters.conf", "SlurmdParameters=config_overrides\n")
        for name, text in self.files.items():
            self.write(f"{ETC}/{name}", text)
        self._write_other_copies()
        for node in self.nodes:
            if not node.overrides:
                self.write(f"/run/no-overrides-{node.name}.conf", "# What the host has.\n")
                self.run("mount", "--bind", f"/run/no-overrides-{node.name}.conf",
                         f"{ETC}/slurmd-parameters.conf", node=node.name)  # fmt: skip

    def _site_gres_lines(self, node: NodeSpec) -> CompletedProcess[str]:
        command = ("python", "-m", "tests.testbed.cut", "--gres", node.name)
        return self.run(*command, node=node.name)

    def _write_other_copies(self) -> None:
        """/etc/slurm of the hosts that do not share the head's. gres.conf has the lines of nodes
        that have their own there alone."""
        self.sh(f"tar -C {ETC} -cf /run/etc-slurm.tar .")
        unpack = f"mount -t tmpfs -o mode=755 tmpfs {ETC}; tar -C {ETC} -xf /run/etc-slurm.tar"
        if self.backup_has_own_files:
            self.sh(unpack, node=self.backup)
        for name in self.own_files:
            only = f"sed -i '/^NodeName={name} /!d; s/^NodeName={name} //' {ETC}/gres.conf"
            self.sh(f"{unpack}; {only}", node=name)
            self.sh(f"sed -i '/^NodeName={name} /d' {ETC}/gres.conf")
        for name in self.configless:
            self.sh(f"{unpack}; cd {ETC}; ls | grep -v slurm-mig.yaml | xargs rm", node=name)
            self.write(f"/run/nodes/{name}.options", "--conf-server head:6817\n")


def _cut(model: str) -> str:
    """`1g.5gb*7` for an A100: how the site cut it; `-` for a GPU without MIG."""
    if model not in SMALLEST:
        return "-"
    profile, count = SMALLEST[model]
    return f"{profile}*{count}"


def fields(text: str) -> dict[str, str]:
    """`Key=value Key=value …` of scontrol; a value ends before the next ` Key=`."""
    found = re.findall(r"(?:^|\s)([A-Za-z][\w:/.]*)=(.*?)(?=\s[A-Za-z][\w:/.]*=|$)", text.strip())
    return dict(found)


def cgroup_conf() -> str:
    """cgroup.conf for what this host has."""
    version = cgroup_version()
    if not version:
        return "CgroupPlugin=disabled\n"
    conf = f"CgroupPlugin=cgroup/v{version}\nConstrainDevices=yes\n"
    return conf + ("IgnoreSystemd=yes\n" if version == 2 else "")


def slurm_conf(nodes: Iterable[NodeSpec], extra: str) -> str:
    """The site's slurm.conf."""
    cgroup = bool(cgroup_version())
    nodes = list(nodes)
    lines = [
        "# The site's own slurm.conf.",
        "ClusterName=testbed",
        "SlurmctldHost=head(10.77.0.1)",
        "SlurmUser=slurm",
        "AuthType=auth/munge",
        "StateSaveLocation=/var/lib/slurm/ctld",
        "SlurmdSpoolDir=/var/spool/slurmd-%n",
        "SlurmctldPidFile=/run/slurm/slurmctld.pid",
        "SlurmdPidFile=/run/slurm/slurmd-%n.pid",
        "SlurmctldLogFile=/var/log/slurm/slurmctld.log",
        "SlurmdLogFile=/var/log/slurm/slurmd-%n.log",
        f"ProctrackType=proctrack/{'cgroup' if cgroup else 'linuxproc'}",
        f"TaskPlugin=task/{'cgroup' if cgroup else 'none'}",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_Core_Memory",
        "DefMemPerCPU=100",
        "GresTypes=gpu",
        "SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0,"
        "sched_min_interval=0,nohold_on_prolog_fail",
        f"PriorityType=priority/{'multifactor' if 'slurmdbd' in extra else 'basic'}",
        "MpiDefault=none",
        "ReturnToService=2",
        "SlurmdTimeout=60",
        "MinJobAge=900",
        "KillWait=2",
        "DebugFlags=NO_CONF_HASH",
        "Include slurmd-parameters.conf",
        extra,
        "",
    ]
    for node in nodes:
        gres = ",".join(f"gpu:{t}:{n}" for t, n in _site_gres(node).items())
        feature = f" Features={node.features}" if node.features else ""
        lines.append(
            f"NodeName={node.name} CPUs={node.cpus} RealMemory={node.memory_mib}{feature} "
            f"Gres={gres}"
        )
    partitions = dict.fromkeys(p for node in nodes for p in node.partitions)
    for partition in partitions:
        names = ",".join(n.name for n in nodes if partition in n.partitions)
        default = " Default=YES" if partition == "main" else ""
        lines.append(f"PartitionName={partition} Nodes={names} MaxTime=INFINITE State=UP{default}")
    return "\n".join(lines) + "\n"


def _site_gres(node: NodeSpec) -> dict[str, int]:
    counts: dict[str, int] = {}
    for model in node.gpus:
        gres_type, count = SMALLEST.get(model, (SITE_TYPES.get(model, "gpu"), 1))
        counts[gres_type] = counts.get(gres_type, 0) + count
    return counts
