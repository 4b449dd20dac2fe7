"""What the hooks cost: arrays of short jobs, single hooks, from sbatch to the first instruction.

    scripts/bench hooks [--json] [--rounds N] [--jobs N]

Three nodes that are alike run the same arrays in turn, in a new order each round: one with our
hooks, one with /bin/true as each hook, one with the same hooks written the plain way in Python (the
reference, `slurm_mig/hooks.py`). A round's ratio compares what ran within the same seconds; given
are the median of the ratios and the interval of its middle half.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from slurm_mig.core import slotmap
from tests.bench.claims import Claim, show
from tests.testbed.cluster import A100, NodeSpec
from tests.testbed.product import SOURCE, ManagedCluster

OURS, BARE, PYTHON = "ours", "bare", "python"
NODES = (OURS, BARE, PYTHON)
HOOKS = ("prolog", "epilog", "task_prolog")
KEYS = {"prolog": "Prolog", "epilog": "Epilog", "task_prolog": "TaskProlog"}
PLAIN = "#!/bin/sh\nexec /opt/slurm-mig/venv/bin/python -m slurm_mig.hooks {hook} /run/slurm-mig\n"
FRESH = "/tmp/jobs/fresh"

TIMED = """
import json, os, sys, time
hooks, env, count = json.loads(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3])
times = {name: [] for name in hooks}
for _ in range(count):
    for name, words in hooks.items():
        null = os.open("/dev/null", os.O_RDWR)
        start = time.monotonic()
        pid = os.posix_spawn(words[0], words, env, file_actions=[(os.POSIX_SPAWN_DUP2, null, 1)])
        assert os.waitpid(pid, 0)[1] == 0, name
        times[name].append(time.monotonic() - start)
        os.close(null)
        if name.endswith("epilog"):
            os.unlink("/run/slurm-mig/ended")
            for mark in os.listdir("/run/slurm-mig/clean"):
                open("/run/slurm-mig/clean/" + mark, "w").write("clean")
print(json.dumps(times))
"""
"""Runs hooks one after the other on a node, as slurmd would; the marks are set between."""


@dataclass
class Ratios:
    """One figure, by paired rounds."""

    values: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def middle(self) -> tuple[float, float]:
        low, _, high = statistics.quantiles(self.values, n=4)
        return low, high

    def claims(self, name: str, bound: str) -> list[Claim]:
        low, high = self.middle
        return [
            Claim(name, self.median, "", bound),
            Claim(f"{name}_low", low, ""),
            Claim(f"{name}_high", high, ""),
        ]


@contextmanager
def cluster() -> Iterator[ManagedCluster]:
    """Each node reads its own hooks.conf: what it has there is mounted over the shared one."""
    nodes = tuple(NodeSpec(name, (A100, A100), partitions=("main", name)) for name in NODES)
    # Ended jobs stay for a while (MinJobAge): thirty rounds are more than slurmctld's 10,000.
    with ManagedCluster(nodes=nodes, extra_conf="MaxJobCount=60000\nInclude hooks.conf\n",
                        files={"hooks.conf": "# each node's own\n"}) as found:  # fmt: skip
        conf = found.read("/etc/slurm/slurm.conf").replace("TaskProlog=", "# TaskProlog=")
        found.write("/etc/slurm/slurm.conf", conf)
        programs = {OURS: f"{SOURCE}/scripts/%s", BARE: "/bin/true", PYTHON: "/run/plain/%s"}
        found.sh("mkdir -p /run/plain")
        for hook in HOOKS:
            found.write(f"/run/plain/{hook}", PLAIN.format(hook=hook), "755")
        for name in NODES:
            lines = [f"{KEYS[h]}={programs[name].replace('%s', h)}\n" for h in HOOKS]
            found.write(f"/run/hooks-{name}.conf", "".join(lines))
            found.run("mount", "--bind", f"/run/hooks-{name}.conf", "/etc/slurm/hooks.conf",
                      node=name)  # fmt: skip
        found.enrol()
        for name in NODES:
            found.restart_daemon("slurmd", name)
        for name in (OURS, PYTHON):
            found.begin("slurm-mig hook check --linger 3600", "/tmp/check.log", node=name)
        yield found


def drained(found: ManagedCluster, node: str, jobs: int, *options: str) -> float:
    """Seconds until an array of jobs that do nothing has run on a node, epilogs and all."""
    start = time.monotonic()
    job = found.submit("exec true", "-p", node, f"--array=1-{jobs}", "--mem=1", *options)
    found.wait_for(lambda: not found.run("squeue", "-h", "-j", str(job)).stdout, 300, "the array")
    found.wait_for(lambda: "COMPLETING" not in found.node(node)["State"], 60, "the epilogs")
    seconds = time.monotonic() - start
    failed = found.run("scontrol", "show", "job", "-o", str(job)).stdout.count("JobState=FAILED")
    if failed:
        raise RuntimeError(f"{failed} jobs failed on {node}")
    return seconds


def arrays(found: ManagedCluster, rounds: int, jobs: int) -> list[Claim]:
    """Our hooks against /bin/true, for jobs without GPUs and with one instance each."""
    plain, mig = Ratios(), Ratios()
    kinds: list[tuple[Ratios, tuple[str, ...]]] = [(plain, ()), (mig, ("--gres=gpu:1g.5gb:1",))]
    for number in range(rounds):
        print(f"arrays: round {number + 1} of {rounds}", file=sys.stderr)
        for ratios, options in kinds:
            order = random.sample((OURS, BARE), 2)
            seconds = {name: drained(found, name, jobs, *options) for name in order}
            ratios.values.append(seconds[OURS] / seconds[BARE])
    return [
        *plain.claims("hooks_plain_ratio", "<= 1.15"),
        *mig.claims("hooks_mig_ratio", "<= 1.3"),
    ]


def single(found: ManagedCluster, rounds: int) -> list[Claim]:
    """Each hook of a MIG job by itself, ours and Python's in turn on the same node; what ours add
    to /bin/true's time."""
    found.sh("pkill -f '[h]ook check' || true", node=OURS)
    time.sleep(1)
    found.run("slurm-mig", "hook", "check", node=OURS)
    known = slotmap.parse(found.read("/run/slurm-mig/slots", OURS))
    env = {"SLURM_JOB_GPUS": str(min(known.devices)), "SLURM_JOB_ID": "7", "SLURM_JOB_UID": "2001",
           "CUDA_VISIBLE_DEVICES": "0"}  # fmt: skip
    programs = {h: [f"{SOURCE}/scripts/{h}"] for h in HOOKS}
    programs |= {f"plain {h}": [f"/run/plain/{h}"] for h in HOOKS} | {"true": ["/bin/true"]}
    done = found.run("python", "-c", TIMED, json.dumps(programs), json.dumps(env), str(rounds * 2),
                     node=OURS, timeout=300)  # fmt: skip
    times: dict[str, list[float]] = json.loads(done.stdout)
    ours = [sum(one) for one in zip(*(times[h] for h in HOOKS), strict=True)]
    plain = [sum(one) for one in zip(*(times[f"plain {h}"] for h in HOOKS), strict=True)]
    faster = Ratios([p / o for p, o in zip(plain, ours, strict=True)])
    added = {h: [t - bare for t, bare in zip(times[h], times["true"], strict=True)] for h in HOOKS}
    p95 = {h: statistics.quantiles(added[h], n=20)[-1] * 1000 for h in HOOKS}
    return [
        *faster.claims("hooks_vs_python", ">= 3"),
        *(Claim(f"{h}_ms", statistics.median(added[h]) * 1000, "ms") for h in HOOKS),
        *(Claim(f"{h}_p95_ms", value, "ms", "<= 10") for h, value in p95.items()),
        Claim("hook_p95_ms", max(p95.values()), "ms", "<= 10"),
        Claim("true_ms", statistics.median(times["true"]) * 1000, "ms"),
    ]


def started(found: ManagedCluster, profile: str) -> float:
    """Seconds from sbatch to the first instruction of a job on our node.

    Slurm starts batch jobs in passes, at whole seconds of the clock: a submission comes at any time
    between two.
    """
    found.sh(f"rm -f {FRESH}")
    time.sleep(random.random())
    start = time.time()
    job = found.submit(f"date +%s.%N >{FRESH}", "-p", OURS, f"--gres=gpu:{profile}:1", "--mem=1")
    found.wait_for(lambda: found.job(job).get("JobState") == "COMPLETED", 60, "the job")
    found.wait_for(lambda: "COMPLETING" not in found.node(OURS)["State"], 30, "the epilog")
    return float(found.read(FRESH)) - start


def submissions(found: ManagedCluster, rounds: int) -> list[Claim]:
    """A job that needs a reshape, woken by the plugin, against the same where it needs none."""
    found.begin("slurm-mig reconcile --loop 3600", "/tmp/loop.log")
    found.sh("while [ ! -s /run/slurm-mig/ctld/free.lua ]; do sleep 0.1; done")
    found.begin("slurm-mig hook check --linger 3600", "/tmp/check.log", node=OURS)
    ratios, first, again = Ratios(), [], []
    for number in range(rounds):
        print(f"submissions: round {number + 1} of {rounds}", file=sys.stderr)
        profile = ("7g.40gb", "3g.20gb", "2g.10gb")[number % 3]
        blank(found)
        first.append(started(found, profile))
        again.append(started(found, profile))
        ratios.values.append(first[-1] / again[-1])
    return [
        *ratios.claims("submit_to_start_ratio", "<= 3"),
        Claim("submit_to_start_reshaped_s", statistics.median(first), "s"),
        Claim("submit_to_start_there_s", statistics.median(again), "s"),
    ]


def controller(found: ManagedCluster, rounds: int, jobs: int) -> list[Claim]:
    """slurmctld's hooks: how many jobs a minute run with them, against without, and how many of
    them were ever at work at the same time."""
    ratios, seconds, pile = Ratios(), [], 0
    for number in range(rounds):
        print(f"controller: round {number + 1} of {rounds}", file=sys.stderr)
        took = {}
        for name in random.sample((OURS, BARE), 2):
            with slurmctld_hooks(found, wanted=name == OURS):
                took[name] = drained(found, BARE, jobs)
                pile = max(pile, int(found.read("/tmp/pile")) if name == OURS else 0)
        ratios.values.append(took[OURS] / took[BARE])
        seconds.append(took[OURS])
    left = found.sh("pgrep -f 'scripts/slurmctld_[pe]' || true").split()
    return [
        *ratios.claims("ctld_hooks_ratio", ""),
        Claim("ctld_jobs_per_minute", 60 * jobs / statistics.median(seconds), "", ">= 1000"),
        Claim("ctld_hooks_at_once", pile, ""),
        Claim("ctld_hooks_left", len(left), "", "<= 0"),
    ]


PILE = """
most=0; echo 0 >/tmp/pile
while [ ! -e /tmp/pile.stop ]; do
    now=$(pgrep -c -f 'scripts/slurmctld_[pe]')
    [ "$now" -le "$most" ] || { most=$now; echo "$most" >/tmp/pile; }
    sleep 0.05
done
"""


@contextmanager
def slurmctld_hooks(found: ManagedCluster, *, wanted: bool) -> Iterator[None]:
    """slurmctld with its two hooks, or without; the most that run at once go to /tmp/pile."""
    lines = "".join(f"{key}Slurmctld={SOURCE}/scripts/slurmctld_{key.lower()}\n"
                    for key in ("Prolog", "Epilog"))  # fmt: skip
    found.write("/etc/slurm/hooks.conf", lines if wanted else "# none\n")
    found.restart_daemon("slurmctld")
    found.wait_for(lambda: found.node(BARE)["State"] == "IDLE", 30, "the node")
    found.write("/tmp/pile.sh", PILE)
    found.sh("rm -f /tmp/pile.stop")
    found.begin("sh /tmp/pile.sh")
    try:
        yield
    finally:
        found.sh("touch /tmp/pile.stop; sleep 0.2")


def blank(found: ManagedCluster) -> None:
    """Both GPUs cut into one 1g.5gb; then the minimum interval between cycles goes by."""

    def done(gpu: str) -> bool:
        # A cycle may be at work.
        words = ("python", "-m", "tests.testbed.reshape_once", OURS, gpu, "1g.5gb@0")
        return found.run(*words, check=False).returncode == 0

    for gpu in ("0", "1"):
        found.wait_for(partial(done, gpu), 60, "a GPU to be blank")
    time.sleep(1.5)


def measured(what: Callable[[], list[Claim]], wanted: bool) -> list[Claim]:  # noqa: FBT001
    return what() if wanted else []


def main() -> int:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--json", action="store_true")
    options.add_argument("--rounds", type=int, default=30)
    options.add_argument("--jobs", type=int, default=100)
    options.add_argument("--only", choices=("arrays", "single", "controller", "submissions"))
    args = options.parse_args()
    with cluster() as found:
        claims = [
            *measured(lambda: arrays(found, args.rounds, args.jobs), args.only in (None, "arrays")),
            *measured(lambda: single(found, args.rounds), args.only in (None, "single")),
            *measured(lambda: controller(found, max(args.rounds // 3, 1), args.jobs),
                      args.only in (None, "controller")),
            *measured(lambda: submissions(found, args.rounds),
                      args.only in (None, "submissions")),
        ]  # fmt: skip
    return show(claims, as_json=args.json)


if __name__ == "__main__":
    sys.exit(main())
