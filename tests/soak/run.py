"""Runs a soak and prints what it claims.

    scripts/soak --seconds N --seed S [--json]

Random jobs, faults and hand edits (actions.py) on three nodes of two kinds, for so many seconds;
then everything is healed, what is left of the queue is served, and each job is looked at. The
checker (tests/testbed/watch.py, views.py) looks from outside after every action and while a cycle
runs. Ends within six minutes after its time. Each violation is printed as soon as it is seen.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field

from tests.bench.claims import Claim, show
from tests.soak.actions import NODES, Action, Cycle, Hand, Submit, actions
from tests.testbed import faults
from tests.testbed.blame import Blame, epoch
from tests.testbed.cluster import A30, A100, NodeSpec
from tests.testbed.faults import Fault
from tests.testbed.product import ManagedCluster
from tests.testbed.views import differences, look
from tests.testbed.watch import Watch

SPECS = (
    NodeSpec("a100-1", (A100, A100)),
    NodeSpec("a100-2", (A100, A100), layout="F"),
    NodeSpec("a30-1", (A30, A30)),
)
MOST_JOBS = 12
"""No more are queued or running at once, so that the queue does not only grow."""

END_S = 300.0
"""How long the end may take: everything healed, the queue served. After an administrator's resume,
or a start of slurmctld, a job's first step may wait two minutes: Slurm's own (docs/facts.md)."""

LOOK_S = 0.3
"""Between two looks while a cycle runs: each costs the machine as much as the cycle itself."""

REGISTER_S = 8.0
"""Within which every node has registered with a slurmctld that has started: it asks after 3 s."""

CYCLE_S = 90.0
"""No cycle takes longer, whatever goes wrong: its time limits add up to less."""

UNSAVED_S = 15.0
"""slurmctld saves its state every few seconds; killed before, it forgets jobs and ends them."""

SCRIPT = """
me=/tmp/jobs/$SLURM_JOB_ID
srun {one} fake-cuda --seconds {computes} --report $me.first || exit $?
sleep {pause}
srun {one} fake-cuda --seconds 0.1 --report $me.second
"""
OUR_DRAIN = "soak: an administrator's"


@dataclass
class Healing:
    """A fault that is still there, and how many cycles it has left."""

    fault: Fault
    node: str
    left: int


@dataclass
class Soak:
    """The cluster under its actions."""

    cluster: ManagedCluster
    watch: Watch
    counts: Counter[str] = field(default_factory=Counter)
    asked: dict[int, str] = field(default_factory=dict)
    excused: set[int] = field(default_factory=set)
    """Jobs whose end is not slurm-mig's doing: cancelled, on a node that was rebooted, forgotten by
    a slurmctld that was killed before it saved them."""
    blame: Blame = field(default_factory=Blame)
    healing: list[Healing] = field(default_factory=list)
    drained: dict[str, int] = field(default_factory=dict)
    """Nodes that the administrator has drained, and for how many actions more."""
    suspended: list[int] = field(default_factory=list)

    def act(self, action: Action) -> None:
        if isinstance(action, Submit):
            self.submit(action)
        elif isinstance(action, Hand):
            self.hand(action)
        else:
            self.cycle(action)

    # -- jobs -------------------------------------------------------------------------------

    def submit(self, action: Submit) -> None:
        if len(self.live()) >= MOST_JOBS:
            return
        wide = action.shape == "wide" and not action.profile.endswith(("6gb", "12gb", "24gb"))
        count = 2 if action.shape == "several" and action.profile[0] not in "47" else 1
        gres = "gpu:1" if action.shape == "untyped" else f"gpu:{action.profile}:{count}"
        words = [f"--gres={gres}"]
        words += ["--array=0-1"] if action.shape == "array" else []
        words += ["-N2", "--ntasks-per-node=1"] if wide else []
        script = SCRIPT.format(
            one="-N2 -n2" if wide else "-n1", computes=action.computes_s, pause=action.pause_s
        )
        try:
            job = self.cluster.submit(script, *words)
        except (RuntimeError, subprocess.TimeoutExpired):
            return  # slurmctld is away: a user tries again later.
        self.counts["jobs"] += 2 if action.shape == "array" else 1
        self.asked[job] = "1g.5gb" if action.shape == "untyped" else action.profile
        if action.shape == "suspended":
            for other in self.suspended:
                self.cluster.run("scontrol", "resume", str(other), check=False)
            self.suspended = [job]
            self.cluster.run("scontrol", "suspend", str(job), check=False)

    def live(self) -> list[int]:
        shown = self.cluster.run("squeue", "-h", "-o", "%A", check=False).stdout.split()
        return sorted({int(word) for word in shown})

    def on_node(self, node: str) -> set[int]:
        """Jobs that have the node now; of an array every task's own number too."""
        text = self.cluster.run("squeue", "-h", "-w", node, "-o", "%A %F", check=False).stdout
        return {int(word) for word in text.split()}

    def excuse_unsaved(self) -> None:
        """slurmctld is about to be killed."""
        text = self.cluster.run(
            "squeue", "-h", "-t", "all", "-o", "%A %F %V %S %t", check=False
        ).stdout
        now = time.time()
        for line in text.splitlines():
            job, array, submitted, started, state = line.split()
            times = [submitted] if state == "PD" else [submitted, started]
            if any(now - epoch(t) < UNSAVED_S for t in times) or state in ("CG", "CF"):
                forgotten = {int(job), int(array)}
                self.excused |= forgotten
                self.watch.requeued |= forgotten  # one whose start is forgotten starts again

    # -- people -----------------------------------------------------------------------------

    def hand(self, action: Hand) -> None:
        self.counts["hands"] += 1
        run = self.cluster.run
        update = ("scontrol", "update", f"NodeName={action.node}")
        if action.what == "cancel" and len(self.asked) >= action.job:
            job = sorted(self.asked)[-action.job]
            self.excused.add(job)
            run("scancel", str(job), check=False)
        elif action.what == "restart slurmctld":
            self.strike(faults.SLURMCTLD[1], action.node)
        elif action.what == "drain":
            if run(*update, "State=DRAIN", f"Reason={OUR_DRAIN}", check=False).returncode == 0:
                self.drained[action.node] = 4
        elif action.what == "reason":
            run(*update, f"Reason={OUR_DRAIN}", check=False)
        elif action.what == "resume":
            run(*update, "State=RESUME", check=False)
            self.drained.pop(action.node, None)

    def undrain(self, *, all_of_them: bool = False) -> None:
        """Administrators take their drains down again; a drain must have stayed until then."""
        for node in NODES:
            reason = self.cluster.node(node).get("Reason", "")
            if node in self.drained:
                self.drained[node] -= 1
                if not reason.startswith(OUR_DRAIN) and "gres/gpu" not in reason:
                    self.watch.saw(f"{node}: an administrator's drain became {reason!r}")
                    self.drained.pop(node)
                    continue
            theirs = reason.startswith(OUR_DRAIN) or "Duplicate jobid" in reason
            if theirs and (all_of_them or self.drained.get(node, 0) <= 0):
                self.cluster.run(
                    "scontrol", "update", f"NodeName={node}", "State=RESUME", check=False
                )
                self.drained.pop(node, None)

    def person(self) -> None:
        """Does what reasons and messages ask for."""
        shown = self.cluster.run("sinfo", "-h", "-N", "-o", "%N %E", check=False).stdout
        for line in shown.splitlines():
            node, _, reason = line.partition(" ")
            if "needs a person" in reason:
                self.counts["releases"] += 1
                self.slurm_mig("rewrite")
                self.slurm_mig("release", node)

    # -- cycles and faults ------------------------------------------------------------------

    def cycle(self, action: Cycle) -> None:
        """One cycle with its fault; looked at meanwhile, and waited for."""
        process = self.cluster.spaces.begin(
            [*faults.UNDER_CLOCK, "slurm-mig", "reconcile"], subprocess.PIPE
        )
        start, struck = time.monotonic(), action.fault is None
        while process.poll() is None:
            spent = time.monotonic() - start
            if not struck and spent >= action.after_s:
                struck = True
                self.fault(action)
            elif spent > CYCLE_S:
                self.watch.saw(f"a cycle takes longer than {CYCLE_S:g} s")
                process.kill()
            else:
                self.watch.look()
                time.sleep(LOOK_S)
        said = process.communicate()[0].decode()
        self.counts["cycles"] += 1
        if not struck:
            # The cycle was faster: what follows notices it.
            self.fault(action)
            said += self.slurm_mig("reconcile")
            self.counts["cycles"] += 1
        if "Traceback" in said:
            self.watch.saw(f"a cycle ended with a traceback: {said[-1500:]}")
        if "edited by hand" in said:
            self.slurm_mig("rewrite")
        if action.fault and "configuration management" in action.fault.name:
            # Until a cycle has put our part in again, a slurmctld that restarts reads the site's
            # lines of before the enrolment: what that costs is none of slurm-mig's doing.
            self.slurm_mig("reconcile")
            self.slurm_mig("reconcile")
        self.after_cycle()

    def after_cycle(self) -> None:
        for one in self.healing:
            one.left -= 1
        due = [one for one in self.healing if one.left < 0]
        self.healing = [one for one in self.healing if one.left >= 0]
        for one in due:
            self.heal(one)
        self.supervise()
        if self.answers():
            self.person()
            self.undrain()
            self.watch.look()
            self.compare()

    def fault(self, action: Cycle) -> None:
        assert action.fault is not None
        if any(one.fault.heal == action.fault.heal != "" for one in self.healing):
            return  # The same thing is broken already.
        self.counts["faults"] += 1
        self.counts[f"fault: {action.fault.name}"] += 1
        if action.fault.name == "the node reboots":
            # Slurm holds a suspended job that it puts back into the queue (docs/facts.md).
            self.resume_jobs()
            self.excused |= self.on_node(action.node)
            self.watch.requeued |= self.on_node(action.node)
        self.strike(action.fault, action.node)
        if action.fault.heal:
            self.healing.append(Healing(action.fault, action.node, action.lasts))

    def strike(self, fault: Fault, node: str) -> None:
        if fault.name in ("slurmctld killed", "slurmctld restarted"):
            self.excuse_unsaved()
        self.blame.struck(fault, node)
        self.cluster.run("sh", "-ec", fault.strike, env=_where(node), check=False, timeout=90)

    def heal(self, one: Healing) -> None:
        self.cluster.run("sh", "-ec", one.fault.heal, env=_where(one.node), check=False)
        self.blame.healed(one.fault, one.node)

    def supervise(self) -> None:
        """What systemd does: a slurmd that has ended is started again, if it can be."""
        for node in NODES:
            if not self.cluster.pid("slurmd", node):
                self.cluster.run("start-slurmd", node, node=node, check=False)

    def slurm_mig(self, *words: str) -> str:
        done = self.cluster.run("slurm-mig", *words, check=False, timeout=CYCLE_S)
        return done.stdout + done.stderr

    def answers(self) -> bool:
        return self.cluster.run("sinfo", "-h", check=False).returncode == 0

    def compare(self) -> None:
        """Every view of each node that is open to jobs; looked at twice, as it may be changing."""
        for node in NODES:
            first = look(self.cluster, node)
            if "DRAIN" in first.state or not differences(first):
                continue
            time.sleep(max(1.0, REGISTER_S - self.age_of_slurmctld()))
            again = look(self.cluster, node)
            if again == first:
                for found in differences(again):
                    self.watch.saw(f"{node} ({'+'.join(sorted(again.state))}): {found}")

    def age_of_slurmctld(self) -> float:
        """Seconds since it started. Killed, it comes back with what it had saved, and starts no job
        on a node before that has registered
        (test_ownership::test_a_reshape_that_slurmctld_forgets_gives_no_job_a_wrong_device)."""
        return float(self.cluster.sh("ps -o etimes= -p $(cat /run/slurm/slurmctld.pid)") or 0)

    # -- the end ----------------------------------------------------------------------------

    def end(self) -> None:
        """All is healed; the queue must be served, and every node free and in agreement."""
        for one in self.healing:
            self.heal(one)
        self.cluster.run("sh", "-c", f"rm -f {faults.FAULTS}/remote {faults.FAULTS}/clock")
        self.healing = []
        # One whose end, or a step's, a killed slurmctld forgot runs for ever: Slurm's own.
        for job in self.excused & set(self.live()):
            self.cluster.run("scancel", str(job), check=False)
        deadline = time.monotonic() + END_S
        while time.monotonic() < deadline:
            if not self.answers():
                time.sleep(0.5)
                continue
            self.supervise()
            self.undrain(all_of_them=True)
            self.person()
            self.resume_jobs()
            done = self.cluster.run("slurm-mig", "reconcile", check=False, timeout=CYCLE_S)
            if "edited by hand" in done.stderr:
                self.slurm_mig("rewrite")
            self.watch.look()
            if not self.live() and done.returncode == 0:
                break
        else:
            stuck = "".join(self.diagnosis(job) for job in self.live())
            self.watch.saw(f"not at rest {END_S:g} s after the end: {self.status()}{stuck}")
        self.compare()
        for node in NODES:
            seen = look(self.cluster, node)
            if seen.state & {"DRAIN", "DOWN", "NOT_RESPONDING"}:
                self.watch.saw(f"{node} is left {'+'.join(sorted(seen.state))}: {seen.reason}")
        lost = self.blame.lost(self.cluster, self.asked.keys() - self.excused)
        self.counts["lost launches"] = len(lost)
        self.watch.cancelled |= self.excused | lost
        self.watch.finish(self.asked)

    def diagnosis(self, job: int) -> str:
        """All that Slurm and the hosts say of a job that does not end."""
        shown = self.cluster.job(job)
        node = shown.get("NodeList", "")
        steps = self.cluster.run("scontrol", "show", "step", str(job), check=False).stdout
        said = self.cluster.sh(
            f"grep -hE 'JobId={job}\\b|StepId={job}\\b|\\[{job}\\.' /var/log/slurm/*.log",
            check=False,
        )
        ps = ("ps", "-eo", "pid,ppid,stat,wchan:24,etimes,args")
        runs = self.cluster.run(*ps, node=node, check=False).stdout if node in NODES else ""
        return f"\n{shown}\n{steps}\n{self.cluster.output(job)}\n{said}\n{runs}"

    def resume_jobs(self) -> None:
        for job in self.cluster.run("squeue", "-h", "-t", "S", "-o", "%A").stdout.split():
            self.cluster.run("scontrol", "resume", job, check=False)

    def status(self) -> str:
        return self.slurm_mig("status") + self.cluster.logs(8)


def _where(node: str) -> dict[str, str]:
    """What a fault's script needs to know."""
    return {"NODE": node}


def soak(seconds: float, seed: int) -> tuple[Soak, float]:
    """Runs it; returns it with the seconds that it took."""
    start = time.monotonic()
    configuration = faults.CONFIG + "catalog: {nodes: 2}\n"
    # A slurmd may be away for several cycles: no reason for slurmctld to end its jobs. Jobs are
    # looked at in the end: slurmctld must remember them until then.
    conf = "SlurmdTimeout=300\nMinJobAge=86400\n"
    with ManagedCluster(nodes=SPECS, configuration=configuration, extra_conf=conf) as cluster:
        faults.prepare(cluster)
        cluster.enrol()
        it = Soak(cluster, Watch(cluster))
        began = time.monotonic()
        for number, action in enumerate(actions(seed)):
            if time.monotonic() - began > seconds:
                break
            before = len(it.watch.violations)
            it.act(action)
            for violation in it.watch.violations[before:]:
                print(f"action {number}, {action}: {violation}\n{cluster.logs(40)}",
                      file=sys.stderr, flush=True)  # fmt: skip
            it.counts["actions"] = number + 1
        it.end()
        it.counts["reshapes"] = len([h for h in cluster.history() if h["phase"] == "released"])
    return it, time.monotonic() - start


def claims(it: Soak, seconds: float, seed: int) -> list[Claim]:
    shown = ("actions", "cycles", "reshapes", "jobs", "faults", "hands", "releases")
    return [
        Claim("soak_violations", len(it.watch.violations), "", "<= 0"),
        Claim("soak_seed", seed, ""),
        Claim("soak_seconds", seconds, "s"),
        *(Claim(f"soak_{name}", it.counts[name], "") for name in shown),
        Claim("soak_looks", it.watch.looks, ""),
        Claim("soak_excused_jobs", len(it.excused & set(it.asked)), ""),
        Claim("soak_lost_launches", it.counts["lost launches"], ""),
    ]


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--seconds", type=float, default=60)
    options.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    options.add_argument("--json", action="store_true")
    given = options.parse_args()
    it, seconds = soak(given.seconds, given.seed)
    for violation in it.watch.violations:
        print(f"VIOLATION {violation}", file=sys.stderr)
    for name, count in sorted(it.counts.items()):
        if name.startswith("fault: "):
            print(f"{count:4} {name.removeprefix('fault: ')}", file=sys.stderr)
    return show(claims(it, seconds, given.seed), as_json=given.json)


if __name__ == "__main__":
    sys.exit(main())
