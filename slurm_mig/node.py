"""The node side: observe, reshape, publish, as root on a GPU node.

Called by the controller through the remote command as `slurm-mig node serve`: one JSON request a
line on stdin, one JSON answer a line on stdout, until stdin ends. Only what this protocol has can
be asked, so an ssh forced command may allow it and nothing else. Never talks to slurmctld.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TextIO

from slurm_mig import hooks
from slurm_mig.adapters import system
from slurm_mig.adapters.atomic import write_atomic
from slurm_mig.adapters.bootrecord import BootRecord
from slurm_mig.adapters.findslurmd import SlurmdFinder
from slurm_mig.adapters.gpus import NvmlGpus
from slurm_mig.adapters.managedfiles import ManagedFiles, Places
from slurm_mig.adapters.registrar import Registrar
from slurm_mig.adapters.turns import Turns
from slurm_mig.config import NodeSettings
from slurm_mig.core import slotmap
from slurm_mig.core.changes import GpuChange, NodeChange
from slurm_mig.core.codec import decode, encode
from slurm_mig.core.layouts import Cut, cut_of
from slurm_mig.core.model import Gpu, Instance, Placement, Slots
from slurm_mig.core.ownership import Outside
from slurm_mig.core.records import ManagedNode, NodeFacts
from slurm_mig.errors import BusyError, ConfigError, GpuError, SlurmMigError
from slurm_mig.exporting import keep_cdi
from slurm_mig.gpuverbs import GpuVerbs

PROTOCOL = 1


class NodeAgent:
    """The verbs of a node."""

    def __init__(self, settings: NodeSettings, node_name: str) -> None:
        self._settings = settings
        self._gpus = NvmlGpus(settings.caps_dir)
        self._slurmd = system.Slurmd(
            SlurmdFinder(settings.pid_file, node_name),
            settings.restart_command,
            settings.restart_deadline_s,
            settings.slurm_conf,
        )
        self._registrar = Registrar(settings.slurm_conf, settings.run_dir, node_name)
        self._name = node_name
        self._record = BootRecord(Path(settings.state_dir))
        self.gpus = self._gpus
        self.verbs = GpuVerbs(settings, node_name, self._gpus)
        self._files = _own_files(settings)
        self.turns = Turns(Path(settings.run_dir))
        self._prepared: Slots | None = None
        """What was prepared and not published yet, when nothing has changed since."""

    def observe(self) -> NodeFacts:
        """GPUs, driver, slurmd and its hooks, as they are now."""
        return NodeFacts(
            gpus=self._gpus.inventory(),
            driver=self._gpus.driver(),
            slurmd_pid=self._slurmd.pid(),
            hooks=self._slurmd.hooks(),
            stepd_jobs=system.stepd_jobs(),
            copies=self._files.copies() if self._files else {},
        )

    def reshape(self, change: NodeChange) -> NodeFacts:
        """Bring each GPU of the change to its target layout, or leave it as it was.

        Safe to repeat: only what differs from the target is done. Raises BusyError before
        anything is touched when an instance that must go has a process; GpuError when NVML
        fails, after the instances that were there have been made again.
        """
        self._prepared = None
        gpus = {gpu.index: gpu for gpu in self._gpus.inventory()}
        for part in change.gpus:
            _refuse_busy(gpus[part.gpu], part)
        for part in change.gpus:
            self._reshape_gpu(gpus[part.gpu], part)
        facts = self.observe()
        for part in change.gpus:
            _verify(facts.gpus[part.gpu], part)
        return facts

    def _reshape_gpu(self, gpu: Gpu, part: GpuChange) -> None:
        going = _going(gpu, part)
        coming = sorted(part.target - {i.placement for i in gpu.instances if i.uuid})
        splits = dict(part.splits)
        try:
            for instance in going:
                self._gpus.destroy(gpu.index, instance.gi)
            if part.mig != gpu.mig:
                self._gpus.set_mode(gpu.index, on=part.mig)
            for instance in _resplit(gpu, part):
                self._gpus.split(gpu.index, instance.gi, splits[instance.placement])
            for placement in coming:
                self._gpus.create(gpu.index, placement, splits.get(placement, ()))
        except GpuError:
            self._restore(gpu, part)
            raise

    def _restore(self, before: Gpu, part: GpuChange) -> None:
        """Back to the layout that was there: what we made goes, what we destroyed returns."""
        now = {g.index: g for g in self._gpus.inventory()}[before.index]
        if now.mig != before.mig and before.mig:
            self._gpus.set_mode(now.index, on=True)
        was = {i.placement: cut_of(i) for i in before.instances}
        for instance in now.instances:
            placement = instance.placement
            if placement in part.created and not instance.pids:
                self._gpus.destroy(now.index, instance.gi)
            elif placement in was and cut_of(instance) != was[placement]:
                # Split otherwise; or half destroyed: its compute instances went, and it could not.
                self._gpus.split(now.index, instance.gi, was[placement].widths)
        for placement in sorted(before.layout - (now.layout - frozenset(part.created))):
            self._gpus.create(now.index, placement, was[placement].widths)
        if now.mig != before.mig and not before.mig:
            self._gpus.set_mode(now.index, on=False)

    def own(self, outside: tuple[Outside, ...]) -> None:
        """Remember what of this node is not Slurm's, for restore, check and export."""
        self._record.save_gpus(self._gpus.inventory(), outside=outside)

    def prepare(self, slots: Slots) -> None:
        """Make the device nodes that are missing and write the slot map: all that slurmd and the
        hooks need before slurmd reads its configuration again."""
        _make_device_files(slots)
        constrained = system.devices_constrained(Path(self._settings.slurm_conf))
        run_dir = Path(self._settings.run_dir)
        run_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        narrow, gpus = self._settings.devices == "narrow", self._gpus.inventory()
        self._record.save_gpus(gpus, slots)
        text = slotmap.slot_map(
            slots,
            self._gpus.proofs(),
            constrained=constrained,
            narrow=narrow,
            job_map=slotmap.job_map(self._settings.job_map_dir, gpus),
        )
        write_atomic(run_dir / "slots", text)
        keep_cdi(self._settings, self._name, gpus)
        hooks.refresh_marks(run_dir, gpus)
        hooks.refresh_job_map(run_dir)
        self._prepared = slots

    def preregister(self, slots: Slots) -> None:
        """`prepare`, then have a passing slurmd register the slots (see adapters/registrar.py)."""
        self._prepare_again(slots)
        self._registrar.start()

    def publish(self, slots: Slots) -> None:
        """`prepare`, then have slurmd take up its new configuration."""
        self._registrar.stop()
        self._prepare_again(slots)
        self._prepared = None
        self._slurmd.reload()

    def _prepare_again(self, slots: Slots) -> None:
        """What was prepared a moment ago still is, but for device nodes, which the driver may
        have taken."""
        if slots == self._prepared:
            _make_device_files(slots)
        else:
            self.prepare(slots)

    def follow(self, slurmd_pid: int) -> None:
        """Wait until slurmd, `slurmd_pid` before a reconfigure, has taken up what it brought."""
        self._slurmd.follow(slurmd_pid)

    def announce(self) -> None:
        self._slurmd.announce()

    def write_files(self, node: ManagedNode) -> None:
        """This node's part of its own files; the site's lines around it are kept. Raises DriftError
        for one of ours that a person has edited; nothing is written then."""
        self._own(node.name).refuse_edited([node])
        self.commit_files(node)

    def commit_files(self, node: ManagedNode) -> None:
        """The same, over any edit."""
        files = self._own(node.name)
        files.commit([node])
        # As `restore` is to bring them back where a boot has lost them.
        self._record.save_files({str(path): text for path, text in files.texts([node]).items()})

    def leave_files(self) -> None:
        """The site's own files again, to the byte; ours go."""
        files = self._own(self._name)
        files.commit([])
        for path in files.places.ours:
            path.unlink(missing_ok=True)
        self._record.save_files({})

    def gres_lines(self) -> list[dict[str, str]]:
        """Attributes of the site's gpu lines for this node in its own gres.conf."""
        return [dict(line.attributes) for line in self._own(self._name).gres_lines(self._name)]

    def _own(self, name: str) -> ManagedFiles:
        if self._files is None or name != self._name:
            raise ConfigError(
                f"{self._name} has no files of its own for {name}; nothing was changed",
                hint="Are slurm.config and slurm.publish the same here as on the controller?",
            )
        return self._files


def _make_device_files(slots: Slots) -> None:
    """Those of the slots' files that are missing; see `system.ensure_device_files`."""
    system.ensure_device_files(file for device in slots for file in device.files)


def _own_files(settings: NodeSettings) -> ManagedFiles | None:
    slurm = settings.slurm
    if not slurm.nodes_have_own:
        return None
    places = Places(Path(slurm.conf), Path(slurm.gres_conf), slurm.includes)
    return ManagedFiles(places, Path(settings.state_dir) / "backups", one_host=True)


def _going(gpu: Gpu, part: GpuChange) -> list[Instance]:
    """Instances that the target does not have, and half-made ones in its way."""
    return [
        i
        for i in gpu.instances
        if i.placement in part.destroyed or (i.placement in part.created and not i.uuid)
    ]


def _resplit(gpu: Gpu, part: GpuChange) -> list[Instance]:
    """Instances that stay and do not have the compute instances that they are to have."""
    wanted = {p: Cut(p, tuple(sorted(split, reverse=True))) for p, split in part.splits}
    return [
        i
        for i in gpu.instances
        if i.uuid and i.placement in part.resplit and cut_of(i) != wanted[i.placement]
    ]


def _refuse_busy(gpu: Gpu, part: GpuChange) -> None:
    if part.mig != gpu.mig and gpu.pids:
        raise BusyError(
            f"GPU {gpu.index}: its MIG mode cannot change while process "
            f"{', '.join(map(str, gpu.pids))} holds it; nothing was touched"
        )
    for instance in (*_going(gpu, part), *_resplit(gpu, part)):
        if instance.pids:
            raise BusyError(
                f"GPU {gpu.index}: {instance.placement} is held by process "
                f"{', '.join(map(str, instance.pids))}; nothing was touched"
            )


def _verify(gpu: Gpu, part: GpuChange) -> None:
    """NVML can report success and leave a remnant: look."""
    if gpu.mig != part.mig:
        raise GpuError(f"GPU {gpu.index}: MIG is not {'on' if part.mig else 'off'}", code=0)
    whole = {i.placement for i in gpu.instances if i.uuid}
    missing: Iterable[Placement] = part.target - whole
    left = [i.placement for i in gpu.instances if i.placement in part.destroyed]
    left += [i.placement for i in _resplit(gpu, part)]
    if missing or left:
        raise GpuError(
            f"GPU {gpu.index} is not as it should be after the reshape: "
            f"missing {sorted(map(str, missing))}, left over {sorted(map(str, left))}",
            code=0,
        )


Verbs = Mapping[str, Callable[[Any], Any]]


def serve(agent: NodeAgent, requests: Iterable[str], answers: TextIO) -> None:
    """Answer what the controller may ask of a node."""
    verbs: Verbs = {
        "observe": lambda _: agent.observe(),
        "reshape": lambda data: agent.reshape(decode(NodeChange, data, "change")),
        "own": lambda data: agent.own(decode(tuple[Outside, ...], data, "outside")),
        "prepare": lambda data: agent.prepare(decode(Slots, data, "slots")),
        "publish": lambda data: agent.publish(decode(Slots, data, "slots")),
        "preregister": lambda data: agent.preregister(decode(Slots, data, "slots")),
        "announce": lambda _: agent.announce(),
        "gpus": lambda data: agent.verbs.run(data),
        "follow": lambda data: agent.follow(decode(int, data, "slurmd_pid")),
        "write_files": lambda data: agent.write_files(decode(ManagedNode, data, "node")),
        "commit_files": lambda data: agent.commit_files(decode(ManagedNode, data, "node")),
        "leave_files": lambda _: agent.leave_files(),
        "gres_lines": lambda _: agent.gres_lines(),
    }
    answer_all(verbs, requests, answers, agent.turns.taken)


Guard = Callable[[int], AbstractContextManager[None]]


def answer_all(
    verbs: Verbs,
    requests: Iterable[str],
    answers: TextIO,
    guard: Guard = lambda _: nullcontext(),
) -> None:
    """Answer requests until there are none, each under `guard` of its turn. A request that fails is
    answered with its error."""
    for line in requests:
        answers.write(json.dumps(_answer(verbs, line, guard)) + "\n")
        answers.flush()


def _answer(verbs: Verbs, line: str, guard: Guard) -> dict[str, Any]:
    try:
        request = json.loads(line)
        if not isinstance(request, dict) or request.get("verb") not in verbs:
            raise SlurmMigError(f"unknown request; known verbs: {', '.join(verbs)}")
        with guard(decode(int, request.get("turn", 0), "turn")):
            result = verbs[request["verb"]](request.get("data"))
        return {"protocol": PROTOCOL, "result": encode(result)}
    except SlurmMigError as error:
        return {
            "protocol": PROTOCOL,
            "error": {
                "kind": type(error).__name__,
                "message": str(error.args[0]),
                "hint": error.hint,
                "code": getattr(error, "code", 0),
            },
        }
    except (ValueError, OSError) as error:
        message = f"{type(error).__name__}: {error}"
        return {"protocol": PROTOCOL, "error": {"kind": "SlurmMigError", "message": message}}
