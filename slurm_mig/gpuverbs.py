"""The verbs about a node's GPUs: inventory, profiles, apply, assert, export, mode, gres, check.

Run on the GPU node as root, by the command line there or for the controller (`--node`), which is
sent the same answer. Reading verbs change nothing. Changing ones refuse on a node in the
controller's care: there the controller does it, so that Slurm never offers what is not there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from slurm_mig import gpurender
from slurm_mig.adapters import holders, squeue
from slurm_mig.adapters.bootrecord import BootRecord
from slurm_mig.adapters.findslurmd import SlurmdFinder
from slurm_mig.adapters.gpus import NvmlGpus
from slurm_mig.adapters.managedhere import managed_here
from slurm_mig.adapters.ownedhere import owned_here
from slurm_mig.adapters.shown import shown
from slurm_mig.config import NodeSettings
from slurm_mig.core.codec import decode, encode
from slurm_mig.core.exports.chosen import Ask
from slurm_mig.core.layoutfile import Board, Entry, export, export_text, select
from slurm_mig.core.layouts import LayoutChange, Wanted, agrees, devices_of, parse_inline
from slurm_mig.core.model import Gpu, Placement
from slurm_mig.core.observed import differences
from slurm_mig.doctor import Doctor, findings_text
from slurm_mig.errors import BusyError, Exit, SlurmMigError, UsageError
from slurm_mig.exporting import Exporter, keep_cdi
from slurm_mig.relayout import Relayout
from slurm_mig.tables import tables


@dataclass(frozen=True)
class Wish:
    """What `apply` and `assert` are asked for: entries of a named layout, or inline words."""

    entries: tuple[Entry, ...] = ()
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer:
    """What a verb prints, as text and as plain values, and its exit code."""

    text: str
    data: Any = None
    exit: int = int(Exit.OK)


@dataclass(frozen=True)
class Request:
    """A verb with its arguments, as it crosses the remote command."""

    verb: str
    wish: Wish = field(default_factory=Wish)
    gpus: tuple[int, ...] = ()
    on: bool = False
    dry_run: bool = False
    inline: bool = False
    ask: Ask | None = None
    """What `export FORMAT` is asked for; None: the layout file."""


class GpuVerbs:
    """The verbs on one node. `name` is its NodeName."""

    def __init__(self, settings: NodeSettings, name: str, gpus: NvmlGpus) -> None:
        self._settings = settings
        self._name = name
        self._gpus = gpus

    def run(self, data: Any) -> Any:
        """One encoded request, as `slurm-mig node serve` gets it; its encoded answer."""
        return encode(self.answer(decode(Request, data, "request")))

    def answer(self, request: Request) -> Answer:
        verbs = {
            "inventory": lambda: self.inventory(),
            "record": lambda: self.record(),
            "profiles": lambda: self.profiles(),
            "apply": lambda: self.apply(request.wish, dry_run=request.dry_run),
            "assert": lambda: self.asserted(request.wish),
            "export": lambda: self.export(request.ask or Ask(), inline=request.inline),
            "mode": lambda: self.mode(request.gpus, on=request.on),
            "gres": lambda: self.gres(),
            "check": lambda: self.check(),
            "wanted": lambda: self.wanted(request.wish),
        }
        if request.verb not in verbs:
            raise UsageError(f"unknown verb {request.verb!r}; there are {', '.join(verbs)}")
        return verbs[request.verb]()

    # -- reading --------------------------------------------------------------------------------

    def inventory(self) -> Answer:
        found, faults = self._gpus.survey()
        gpus = owned_here(self._settings, self._name, found).gpus
        driver = self._gpus.driver()
        text = gpurender.inventory_text(driver, gpus, faults, lambda pid: str(_process(pid)))
        data = gpurender.inventory_json(driver, gpus, faults, lambda pid: asdict(_process(pid)))
        return Answer(text, data, int(Exit.UNREACHABLE if faults else Exit.OK))

    def record(self) -> Answer:
        """What the GPUs show, as data without anything that tells whose they are, and where the
        built-in tables say otherwise."""
        record = shown(self._gpus.driver(), self._gpus.inventory())
        found = differences(record, tables())
        text = "".join(f"{line}\n" for line in found) or "nothing is otherwise than in the tables\n"
        return Answer(text, {"record": encode(record), "differences": found})

    def profiles(self) -> Answer:
        gpus = self._gpus.inventory()
        free = {gpu.index: self._gpus.remaining(gpu.index) for gpu in gpus if gpu.mig}
        return Answer(gpurender.profiles_text(gpus, free), gpurender.profiles_json(gpus, free))

    def export(self, ask: Ask = Ask(), *, inline: bool = False) -> Answer:  # noqa: B008 frozen
        """What is there in another world's words; without a format as a file for `apply`."""
        if ask.format == "slurm":
            return self.gres()
        if ask.format != "mig-parted":
            made = Exporter(self._settings, self._name, self._gpus).run(ask)
            if made.findings is None:
                return Answer(made.text, made.data)
            exit_code = max((f.exit for f in made.findings), default=int(Exit.OK))
            found = {"findings": [asdict(f) for f in made.findings]}
            return Answer(findings_text(made.findings), found, exit_code)
        gpus = [gpu for gpu in self._gpus.inventory() if gpu.mig_capable]
        if not gpus:
            raise SlurmMigError("no GPU here can do MIG: there is nothing to export")
        words = gpurender.inline_words(gpus)
        data = {"inline": words} if inline else export(gpus, "current")
        return Answer(f"{words}\n" if inline else export_text(gpus, "current"), data)

    def gres(self) -> Answer:
        gpus = self._gpus.inventory()
        lines = gpurender.gres_lines(gpus, self._name)
        return Answer("\n".join(lines) + "\n", gpurender.gres_json(gpus, self._name))

    def asserted(self, wish: Wish) -> Answer:
        """Exit 0 if every GPU of the wish is as wished, 1 if one is not."""
        gpus = {gpu.index: gpu for gpu in self._gpus.inventory()}
        wanted = self._wanted(wish, list(gpus.values()))
        rows = [_compared(gpus[index], wanted[index]) for index in sorted(wanted)]
        text = "".join(f"{row['words']}\n" for row in rows)
        ok = all(row["agrees"] for row in rows)
        return Answer(text, {"agrees": ok, "gpus": rows}, int(Exit.OK if ok else Exit.REFUSED))

    def wanted(self, wish: Wish) -> Answer:
        """What the wish means here, GPU by GPU: for the controller's own change."""
        return Answer("", encode(self._wanted(wish, self._gpus.inventory())))

    def check(self) -> Answer:
        doctor = Doctor(self._gpus, self._settings, self._name)
        findings = doctor.findings()
        return Answer(
            doctor.text(findings),
            {"findings": [asdict(f) for f in findings]},
            max((f.exit for f in findings), default=int(Exit.OK)),
        )

    # -- changing -------------------------------------------------------------------------------

    def apply(self, wish: Wish, *, dry_run: bool) -> Answer:
        """Make the GPUs what is wished: only what differs is touched."""
        if not dry_run:
            self._refuse_managed("apply")
        wanted = self._wanted(wish, self._gpus.inventory())
        relayout = self._relayout()
        if dry_run:
            changes, _ = relayout.plan(wanted)
            return Answer(gpurender.change_text(changes), _change_data(changes, done=False))
        applied = relayout.apply(wanted)
        self._record(applied.gpus)
        keep_cdi(self._settings, self._name, applied.gpus)
        text = gpurender.change_text(applied.changes) + self._next_step(applied.changes)
        return Answer(text, _change_data(applied.changes, done=True))

    def mode(self, indexes: Sequence[int], *, on: bool) -> Answer:
        """Switch the MIG mode of idle GPUs; without indexes, of every GPU that can do MIG."""
        self._refuse_managed("mode")
        gpus = {gpu.index: gpu for gpu in self._gpus.inventory()}
        missing = [str(index) for index in indexes if index not in gpus]
        if missing:
            raise UsageError(f"there is no GPU {', '.join(missing)} here; {len(gpus)} are there")
        chosen = indexes or [index for index, gpu in gpus.items() if gpu.mig_capable]
        word = "on" if on else "off"
        lines, rows = [], []
        for index in chosen:
            before = gpus[index]
            if before.mig != on and before.pids:
                who = ", ".join(str(_process(pid)) for pid in before.pids)
                raise BusyError(
                    f"GPU {index}: its MIG mode cannot change while it is held by {who}; it was "
                    "left as it is"
                )
            self._gpus.set_mode(index, on=on, keep_pending=True)
            changed = before.mig != on
            lines.append(f"GPU {index}: MIG {word}{'' if changed else ' already'}")
            rows.append({"index": index, "mig": on, "changed": changed})
            self._record(self._gpus.inventory())
        keep_cdi(self._settings, self._name, self._gpus.inventory())
        changes = [LayoutChange(r["index"], mig=on, switch=True) for r in rows if r["changed"]]
        text = "".join(f"{line}\n" for line in lines) + self._next_step(changes)
        return Answer(text, {"gpus": rows})

    def _refuse_managed(self, verb: str) -> None:
        """A change behind the controller's back would make Slurm offer what is not there."""
        if managed_here(self._settings, self._name):
            raise SlurmMigError(
                f"{self._name} is in slurm-mig's care: its GPUs are changed by the controller "
                "only; nothing was touched",
                hint=f"On the controller: slurm-mig {verb} --node {self._name} …",
            )

    def _relayout(self) -> Relayout:
        return Relayout(self._gpus, lambda pid, gpu, place: str(_process(pid)), self._claimed)

    def _claimed(self, gpu: Gpu) -> Mapping[Placement, str]:
        """Every instance, while jobs have gpus of this node by Slurm's word: which of them cannot
        be told here, and a count that changes under a running job costs that job its life."""
        if not gpu.instances or not self._slurmd_runs():
            return {}
        jobs = squeue.gpu_jobs(self._name)
        if not jobs:
            return {}
        listed = ", ".join(f"job {job}" for job in jobs)
        words = f"{listed} (gpus of this node, by Slurm's word)"
        return {instance.placement: words for instance in gpu.instances}

    def _slurmd_runs(self) -> bool:
        return bool(SlurmdFinder(self._settings.pid_file, self._name).pid())

    def _wanted(self, wish: Wish, gpus: Sequence[Gpu]) -> dict[int, Wanted]:
        if wish.words:
            return parse_inline(wish.words, gpus)
        boards = [
            Board(gpu, *self._gpus.pci_ids(gpu.index) if _filtered(wish) else (0, 0))
            for gpu in gpus
        ]
        return select(wish.entries, boards)

    def _record(self, gpus: Sequence[Gpu]) -> None:
        BootRecord(Path(self._settings.state_dir)).save_gpus(gpus)

    def _next_step(self, changes: Sequence[LayoutChange]) -> str:
        if all(part.empty for part in changes) or not self._slurmd_runs():
            return ""
        return (
            "Slurm does not know yet: put the lines of `slurm-mig gres` into gres.conf and "
            "slurm.conf, then `scontrol reconfigure`.\n"
        )


def _filtered(wish: Wish) -> bool:
    return any(entry.filters for entry in wish.entries)


def _process(pid: int) -> holders.Process:
    return holders.describe(pid)


def _change_data(changes: Sequence[LayoutChange], *, done: bool) -> Any:
    return gpurender.change_json(changes, done=done)


def _compared(gpu: Gpu, wanted: Wanted) -> dict[str, Any]:
    """One GPU of `assert`: what it is, what it should be."""
    same = agrees(gpu, wanted) or (not gpu.mig_capable and not wanted.mig)
    has = _counts(devices_of(gpu)) if gpu.mig else "MIG off"
    should = _wish_words(wanted) if wanted.mig else "MIG off"
    words = f"GPU {gpu.index}: {has}" + ("" if same else f", should be {should}")
    return {"index": gpu.index, "agrees": same, "has": has, "wanted": should, "words": words}


def _counts(devices: Mapping[str, int]) -> str:
    words = [name if n == 1 else f"{name}*{n}" for name, n in sorted(devices.items()) if n]
    return ", ".join(words) or "no instances"


def _wish_words(wanted: Wanted) -> str:
    given = [str(cut) for cut in sorted(wanted.cuts)]
    counted = _counts(wanted.devices) if any(wanted.devices.values()) or not given else ""
    return ", ".join(filter(None, (*given, counted)))


def printable(answer: Answer, *, as_json: bool) -> str:
    """What the command line prints; what a node sent is not trusted with the terminal."""
    if as_json:
        return json.dumps(answer.data, indent=2) + "\n"
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in answer.text)
