"""`slurm-mig check`: looks at all that MIG under Slurm needs of a GPU node, and changes nothing.

What fails to be looked at is itself a finding: one fault never hides the others.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from slurm_mig.adapters import gresfile, holders
from slurm_mig.adapters.findslurmd import SlurmdFinder, expanded
from slurm_mig.adapters.gpus import NvmlGpus
from slurm_mig.adapters.ownedhere import owned_here
from slurm_mig.adapters.system import conf_value
from slurm_mig.config import NodeSettings
from slurm_mig.core import findings as rules
from slurm_mig.core.findings import ERROR, NOTE, OK, WARNING, Finding, Listed
from slurm_mig.core.model import Gpu
from slurm_mig.errors import SlurmMigError
from slurm_mig.gpurender import gres_devices
from slurm_mig.tables import minimum_drivers
from slurm_mig.worlds import Worlds

MARKS = {OK: "ok     ", NOTE: "note   ", WARNING: "WARNING", ERROR: "ERROR  "}

SLURMS_PID_FILE = "/var/run/slurmd.pid"
"""Where slurm.conf says nothing (source: read_config.h, DEFAULT_SLURMD_PIDFILE; Debian: /run)."""


class Doctor:
    """The checks of one node. `proc` and `sys` are the kernel's file systems."""

    def __init__(
        self,
        gpus: NvmlGpus,
        settings: NodeSettings,
        name: str,
        proc: Path = Path("/proc"),
        sys: Path = Path("/sys"),
    ) -> None:
        self._gpus = gpus
        self._settings = settings
        self._name = name
        self._proc = proc
        self._sys = sys

    def findings(self) -> list[Finding]:
        """Everything found, in the order of the checks. Without a driver: UnreachableError."""
        gpus, faults = self._gpus.survey()
        found = rules.driver_findings(self._gpus.driver(), minimum_drivers(), gpus)
        for index, fault in sorted(faults.items()):
            found.append(
                Finding(ERROR, f"the GPU cannot be read: {fault.splitlines()[0]}", f"GPU {index}",
                        "nothing can run on it", "see dmesg for its Xid; reset it or reboot")
            )  # fmt: skip
        if gpus and not any(gpu.mig_capable for gpu in gpus):
            found.append(Finding(ERROR, "no GPU here can do MIG", self._name))
        checks: tuple[Callable[[Sequence[Gpu]], Iterator[Finding]], ...] = (
            self._modes, self._device_files, self._holders, self._kernel, self._gres,
            self._slurmd, self._worlds,
        )  # fmt: skip
        for check in checks:
            try:
                found += check(gpus)
            except (SlurmMigError, OSError) as error:
                found.append(Finding(ERROR, f"could not be checked: {error}", check.__name__[1:]))
        return found

    def text(self, findings: Sequence[Finding]) -> str:
        return findings_text(findings)

    def _modes(self, gpus: Sequence[Gpu]) -> Iterator[Finding]:
        for gpu in gpus:
            persistent = gpu.mig_capable and self._gpus.persistence(gpu.index)
            yield from rules.mode_findings(gpu, persistent=persistent)

    def _device_files(self, gpus: Sequence[Gpu]) -> Iterator[Finding]:
        """Device nodes there, with the number that the driver says and the right modes."""
        bad = list(self._wrong_files(gpus))
        yield from bad
        if not bad:
            yield Finding(OK, "every device file is there with the right mode", "/dev")

    def _wrong_files(self, gpus: Sequence[Gpu]) -> Iterator[Finding]:
        caps = Path(self._settings.caps_dir)
        for gpu in gpus:
            yield from _file_finding(gpu.file, minor=gpu.minor, mode=0o666)
            for instance in gpu.instances:
                minors = [instance.gi_minor, *(c.minor for c in instance.computes)]
                for file, minor in zip(instance.files[1:], minors, strict=True):
                    yield from _file_finding(file, minor=minor, mode=0o444)
        config = caps / "nvidia-cap1"
        if config.exists() and stat.S_IMODE(os.stat(config).st_mode) & 0o077:
            yield Finding(
                ERROR, "others than root may open the right to change MIG", str(config),
                "any user could destroy any instance", f"chmod 0400 {config}",
            )  # fmt: skip

    def _holders(self, gpus: Sequence[Gpu]) -> Iterator[Finding]:
        """Who has the GPUs open, beyond the processes that NVML lists."""
        listed = {gpu.file: set(gpu.pids) for gpu in gpus}
        for file, processes in holders.by_files(listed, self._proc).items():
            index = next(gpu.index for gpu in gpus if gpu.file == file)
            for process in processes:
                known = process.pid in listed[file]
                mend = f"systemctl stop {process.unit}" if process.unit.endswith(".service") else ""
                yield Finding(
                    NOTE,
                    f"{'used' if known else 'held open, unknown to NVML,'} by {process}",
                    f"GPU {index}",
                    "while it is, the GPU's MIG mode cannot change"
                    + ("" if known else ", and its instances may stay in use"),
                    "" if process.job else mend or f"end process {process.pid}",
                )
            listed[file] -= {process.pid for process in processes}
        for gpu in gpus:
            for pid in sorted(listed[gpu.file]):
                who = holders.describe(pid, self._proc)
                yield Finding(NOTE, f"used by {who}", f"GPU {gpu.index}")

    def _kernel(self, gpus: Sequence[Gpu]) -> Iterator[Finding]:
        for module, words in holders.kernel_users(self._proc, self._sys).items():
            holds = "it holds every GPU" in words
            yield Finding(
                WARNING if holds else NOTE,
                f"kernel module {module}: {words}",
                "kernel",
                "the MIG mode cannot change on GPUs that need a reset for it" if holds else "",
                "options nvidia-drm modeset=0 in /etc/modprobe.d, then reboot" if holds else "",
            )

    def _gres(self, gpus: Sequence[Gpu]) -> Iterator[Finding]:
        path = Path(self._settings.slurm_conf).parent / "gres.conf"
        if not path.exists():
            yield Finding(NOTE, "there is no gres.conf here", str(path))
            return
        file = gresfile.read(path, self._name)
        listed = [Listed(d.type, d.files, d.where) for d in file.devices]
        bad = list(rules.gres_findings(listed, gres_devices(gpus), file.autodetect))
        bad += [
            Finding(ERROR, f"{name} does not exist", device.where,
                    "slurmd does not start without it", "slurm-mig gres shows the lines that fit")
            for device in file.devices for name in device.files if not os.path.exists(name)
        ]  # fmt: skip
        yield from bad
        if not bad:
            yield Finding(OK, f"gres.conf agrees with {len(listed)} devices", str(path))

    def _slurmd(self, _: Sequence[Gpu]) -> Iterator[Finding]:
        """One is found. A host that slurm.conf is not on need not have one (but for configless)."""
        conf = Path(self._settings.slurm_conf)
        if not conf.exists() and self._settings.slurm.config != "configless":
            return
        finder = SlurmdFinder(self._settings.pid_file, self._name, self._proc)
        slurms = expanded(conf_value(conf, "SlurmdPidFile") or SLURMS_PID_FILE, self._name)
        differ = finder.pid_file.resolve() != slurms.resolve()
        if pid := finder.pid():
            yield Finding(OK, f"slurmd runs (process {pid})", self._name)
        else:
            yield Finding(
                ERROR, "no slurmd is found", self._name,
                "a reshape could not tell it, and would leave the node drained",
                f"systemctl start slurmd. It is looked for by {finder.pid_file}, then as root's "
                f"process slurmd, in this host's network, without -N or with -N {self._name}",
            )  # fmt: skip
        if differ and (not pid or slurms.exists()):
            yield Finding(
                NOTE, f"SlurmdPidFile is {slurms}, and `node.pid_file` is {finder.pid_file}",
                str(conf), "slurmd is found among all processes only",
                f"node: {{pid_file: {slurms}}} in slurm-mig.yaml",
            )  # fmt: skip

    def _worlds(self, gpus: Sequence[Gpu]) -> Iterator[Finding]:
        """Containers and Kubernetes beside Slurm."""
        owned = owned_here(self._settings, self._name, gpus)
        yield from Worlds(self._settings, owned, self._proc).findings()


def findings_text(findings: Sequence[Finding]) -> str:
    """The findings for people, the worst last."""
    lines = []
    for f in sorted(findings, key=lambda f: list(MARKS).index(f.level)):
        lines.append(f"{MARKS[f.level]}  {f.where}: {f.what}")
        lines += [f"         why:  {f.why}"] if f.why else []
        lines += [f"         mend: {f.mend}"] if f.mend else []
    bad = [f for f in findings if f.level in (WARNING, ERROR)]
    errors = sum(f.level == ERROR for f in bad)
    lines.append(f"{errors} errors, {len(bad) - errors} warnings")
    return "\n".join(lines) + "\n"


def _file_finding(file: str, *, minor: int, mode: int) -> Iterator[Finding]:
    try:
        info = os.stat(file)
    except OSError as error:
        mend = f"nvidia-modprobe -f /proc/driver/nvidia/capabilities/… (or {file} by mknod)"
        yield Finding(ERROR, f"cannot be looked at: {error.strerror}", file,
                      "slurmd does not start, and no job can use the device", mend)  # fmt: skip
        return
    if not stat.S_ISCHR(info.st_mode) or os.minor(info.st_rdev) != minor:
        yield Finding(ERROR, f"is not the device with minor {minor}", file,
                      "a job would open something else", f"rm {file}; nvidia-modprobe")  # fmt: skip
    elif stat.S_IMODE(info.st_mode) & mode != mode:
        yield Finding(
            WARNING, f"has mode {stat.S_IMODE(info.st_mode):04o}, not {mode:04o}", file,
            "users' jobs cannot open it", f"chmod {mode:04o} {file}",
        )  # fmt: skip
