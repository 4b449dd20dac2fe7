"""The hooks on a node: one suite over the shell's fast path and the Python reference."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

from slurm_mig import hooks
from slurm_mig.core import slotmap

SCRIPTS = Path(__file__).parents[2] / "scripts"
UUIDS = {0: "MIG-a", 1: "MIG-b", 2: "-", 11: "MIG-c", 12: "GPU-d"}


@dataclass
class Site:
    """A node's /run directory, and the hooks as a shell or Python has them."""

    run: Path
    kind: str

    def write(self, *, constrained: bool = False, narrow: bool = False) -> None:
        lines = [slotmap.HEADER, f"constrained={'yes' if constrained else 'no'}",
                 f"narrow={'yes' if narrow else 'no'}"]  # fmt: skip
        lines += [f"slot_{i}='{'off' if u == '-' else '1g.5gb'} {u} /dev/null,/dev/zero -'"
                  for i, u in UUIDS.items()]  # fmt: skip
        (self.run / "slots").write_text("\n".join(lines) + "\n")
        (self.run / "clean").mkdir(exist_ok=True)

    def mark(self, *uuids: str) -> None:
        for uuid in uuids:
            (self.run / "clean" / uuid).write_text("clean\n")

    def marks(self) -> set[str]:
        return {m.name for m in (self.run / "clean").iterdir() if m.stat().st_size}

    def call(self, name: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
        """The hook's exit code and output."""
        if self.kind == "python":
            out = io.StringIO()
            with redirect_stdout(out), redirect_stderr(io.StringIO()):
                code = hooks.main([name, str(self.run)], env)
            return subprocess.CompletedProcess([], code, out.getvalue())
        # In doubt the shell hands over; here, to what says so.
        words = ["/bin/dash", str(SCRIPTS / name), str(self.run), "false"]
        return subprocess.run(
            words, env=env, cwd=self.run, capture_output=True, text=True, check=False, timeout=20
        )

    def uuids(self, env: dict[str, str]) -> str:
        done = self.call("task_prolog", env)
        assert done.returncode == 0, done.stderr
        if not done.stdout:
            return ""
        lines = done.stdout.splitlines()
        found = lines[0].removeprefix("export CUDA_VISIBLE_DEVICES=")
        assert lines[1:] == [f"export NVIDIA_VISIBLE_DEVICES={found}"]
        return found


@pytest.fixture(params=["shell", "python"])
def site(tmp_path: Path, request: pytest.FixtureRequest) -> Site:
    found = Site(tmp_path, request.param)
    found.write()
    return found


@pytest.mark.parametrize(
    ("job", "step", "seen", "constrained", "wanted"),
    [
        ("0", "", "0", True, "MIG-a"),
        ("11", "11", "0", True, "MIG-c"),
        ("11", "11", "11", False, "MIG-c"),
        ("0-1,11", "", "0,1,2", True, "MIG-a,MIG-b,MIG-c"),
        ("0,1", "1", "1", False, "MIG-b"),
        ("011", "", "11", False, "MIG-c"),
        ("1,12", "", "1,12", False, "MIG-b,GPU-d"),
        # What is no list came with the user's environment.
        ("0-1", "$(id)", "0,1", True, "MIG-a,MIG-b"),
        ("0-1,11", "0,", "1", True, "MIG-b"),
        ("0-1-2", "1", "0", True, "MIG-b"),
        # Nothing to say: whole GPUs only, AutoDetect's UUIDs, a step without GPUs, no GPUs at all.
        ("12", "", "12", False, ""),
        ("0", "0", "MIG-auto", False, ""),
        ("0,1", "", "", False, ""),
        ("", "", "", False, ""),
        ("", "", "0", False, ""),
        # Not a device: filler, beyond the map.
        ("2", "", "2", False, ""),
        ("99", "", "99", False, ""),
        ("0-1", "", "5", True, ""),
    ],
)
def test_uuids(
    site: Site,
    job: str,
    step: str,
    seen: str,
    constrained: bool,  # noqa: FBT001
    wanted: str,
) -> None:
    site.write(constrained=constrained)
    # Nothing tells by the device files here: every one may be opened. Slurm's positions count.
    env = {"SLURM_JOB_GPUS": job, "SLURM_STEP_GPUS": step, "CUDA_VISIBLE_DEVICES": seen}
    assert site.uuids({k: v for k, v in env.items() if v}) == wanted


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"SLURM_JOB_GPUS": "0", "NVIDIA_VISIBLE_DEVICES": "MIG-a"}, "unset"),
        ({"SLURM_STEP_GPUS": "0", "NVIDIA_VISIBLE_DEVICES": "MIG-a"}, "unset"),
        ({"NVIDIA_VISIBLE_DEVICES": "MIG-a"}, ""),
        ({"SLURM_JOB_GPUS": "0", "NVIDIA_VISIBLE_DEVICES": "all"}, ""),
        ({"SLURM_JOB_GPUS": "0"}, ""),
    ],
)
def test_a_step_without_the_jobs_devices_is_not_told_of_them(
    site: Site, env: dict[str, str], said: str
) -> None:
    """srun brings along what the batch script was told, but CUDA_VISIBLE_DEVICES."""
    wanted = "unset NVIDIA_VISIBLE_DEVICES\n" if said else ""
    assert site.call("task_prolog", env).stdout == wanted


def test_the_device_files_tell_which_of_the_jobs_devices_are_a_bound_tasks(site: Site) -> None:
    """Bound tasks all have CUDA_VISIBLE_DEVICES=0 and SLURM_STEP_GPUS=0."""
    site.write(constrained=True)
    text = (site.run / "slots").read_text()
    text = text.replace("MIG-a /dev/null", "MIG-a /dev/denied")
    (site.run / "slots").write_text(text)
    env = {"SLURM_JOB_GPUS": "0,1", "SLURM_STEP_GPUS": "0", "CUDA_VISIBLE_DEVICES": "0"}
    assert site.uuids(env) == "MIG-b"


def test_a_bound_task_that_srun_brought_is_told_index_0_whatever_it_has(site: Site) -> None:
    """No SLURM_JOB_GPUS, SLURM_STEP_GPUS=0: one of the node's files opens, which tells."""
    site.write(constrained=True)
    text = (site.run / "slots").read_text().replace("/dev/null", "/dev/denied")
    (site.run / "slots").write_text(text.replace("MIG-b /dev/denied", "MIG-b /dev/null"))
    env = {"SLURM_STEP_GPUS": "0", "CUDA_VISIBLE_DEVICES": "0"}
    assert site.uuids(env) == "MIG-b"
    (site.run / "slots").write_text(text)
    assert site.uuids(env) == ""


def test_a_steps_further_node_has_other_indexes_than_its_first(site: Site) -> None:
    """SLURM_JOB_GPUS is the first node's (measured, 26.05): here that slot is another job's."""
    site.write(constrained=True)
    text = (site.run / "slots").read_text()
    text = text.replace("MIG-a /dev/null", "MIG-a /dev/denied")
    (site.run / "slots").write_text(text)
    env = {"SLURM_JOB_GPUS": "0", "SLURM_STEP_GPUS": "1", "CUDA_VISIBLE_DEVICES": "0"}
    assert site.uuids(env) == "MIG-b"


def test_an_environment_from_elsewhere_names_nobodys_devices(site: Site) -> None:
    site.write(constrained=True)
    text = (site.run / "slots").read_text().replace("/dev/null", "/dev/denied")
    (site.run / "slots").write_text(text)
    env = {"SLURM_JOB_GPUS": "0,1", "SLURM_STEP_GPUS": "0,1", "CUDA_VISIBLE_DEVICES": "0,1"}
    assert site.uuids(env) == ""


NONSENSE = [
    "", " ", "-", ",", "0-", "-1", "0,,1", "0--1", "1e3", "$(touch x)", "`id`", "0;id", "0\n1", "*",
    "0-999999999", "1" * 20_000, "0," * 5000, "0-999,0-999", "\x01", "é", "0 1", "../../etc",
    "MIG-a", "0x1", "+1", "³",
]  # fmt: skip


@pytest.mark.parametrize("value", NONSENSE)
@pytest.mark.parametrize("hook", ["task_prolog", "prolog", "epilog"])
def test_nonsense_in_the_environment(site: Site, hook: str, value: str) -> None:
    site.mark("MIG-a", "MIG-b", "MIG-c", "GPU-d")
    names = ("SLURM_JOB_GPUS", "SLURM_STEP_GPUS", "CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID",
             "SLURM_JOB_UID")  # fmt: skip
    done = site.call(hook, dict.fromkeys(names, value))
    assert done.stdout == ""
    # The prolog lets nobody start on what it does not understand; nothing else ever fails.
    assert bool(done.returncode) == (hook == "prolog" and value != "")
    assert site.marks() == {"MIG-a", "MIG-b", "MIG-c", "GPU-d"}
    assert not (site.run / "ended").exists()
    assert not (site.run / "x").exists()


RIGHT = {
    "SLURM_JOB_GPUS": "0-1", "SLURM_STEP_GPUS": "0", "CUDA_VISIBLE_DEVICES": "0",
    "NVIDIA_VISIBLE_DEVICES": "MIG-a", "SLURM_JOB_ID": "7", "SLURM_JOB_UID": "2001",
}  # fmt: skip
SAID = re.compile(
    r"(export CUDA_VISIBLE_DEVICES=(MIG-[abc],?)+\nexport NVIDIA_VISIBLE_DEVICES=(MIG-[abc],?)+\n"
    r"|unset NVIDIA_VISIBLE_DEVICES\n)?"
)


@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.parametrize("hook", ["task_prolog", "prolog", "epilog"])
def test_one_value_that_is_nonsense_or_missing(site: Site, hook: str, name: str) -> None:
    """Beside right ones: what a hook says stays well formed, and what it does within its node."""
    site.write(constrained=True)
    (site.run / "sample").touch()
    for value in (None, *NONSENSE):
        site.mark("MIG-a", "MIG-b", "MIG-c", "GPU-d")
        env = RIGHT | ({name: value} if value is not None else {})
        if value is None:
            del env[name]
        done = site.call(hook, env)
        assert SAID.fullmatch(done.stdout), (value, done.stdout)
        nothing_asked = name == "SLURM_JOB_GPUS" and not value
        doubted = hook == "prolog" and name == "SLURM_JOB_GPUS" and not nothing_asked
        assert bool(done.returncode) == doubted, (value, done.stderr)
        assert site.marks() >= {"MIG-c", "GPU-d"}
        there = {file.name for file in site.run.iterdir()}
        assert there <= {"slots", "clean", "ended", "sample", "hooks.lock"}, value
    noted = site.run / "ended"
    for line in noted.read_text().splitlines() if noted.exists() else ():
        assert re.fullmatch(r"7 2001 0-1", line)


def test_the_reference_is_a_program_too(site: Site) -> None:
    env = {"SLURM_JOB_GPUS": "0", "CUDA_VISIBLE_DEVICES": "0"}
    words = [sys.executable, "-m", "slurm_mig.hooks", "task_prolog", str(site.run)]
    done = subprocess.run(
        words, env=env, cwd=SCRIPTS.parent, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.startswith("export CUDA_VISIBLE_DEVICES=MIG-a\n")


@pytest.mark.parametrize("hook", ["task_prolog", "prolog", "epilog"])
def test_a_node_that_is_none_of_ours(site: Site, hook: str) -> None:
    (site.run / "slots").unlink()
    env = {"SLURM_JOB_GPUS": "0", "SLURM_JOB_ID": "7", "SLURM_JOB_UID": "1"}
    done = site.call(hook, {**env, "CUDA_VISIBLE_DEVICES": "0"})
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(
    ("gpus", "marked", "good"),
    [
        ("0", ("MIG-a",), True),
        ("0-1,11", ("MIG-a", "MIG-b", "MIG-c"), True),
        ("0-1,11", ("MIG-a", "MIG-c"), False),
        ("0", (), False),
        ("2", ("MIG-a", "-"), False),
        ("0,99", ("MIG-a",), False),
        ("12", ("GPU-d",), True),
    ],
)
def test_the_prolog_goes_by_the_marks(
    site: Site,
    gpus: str,
    marked: tuple[str, ...],
    good: bool,  # noqa: FBT001
) -> None:
    site.mark(*marked)
    done = site.call("prolog", {"SLURM_JOB_GPUS": gpus, "SLURM_JOB_ID": "7"})
    assert (done.returncode == 0) == good


@pytest.mark.parametrize("hanging", ["sleep 60", "sh -c 'trap \"\" TERM; sleep 60'"])
def test_a_look_that_hangs_counts_as_failed(tmp_path: Path, hanging: str) -> None:
    """A driver that does not answer: the prolog ends, and no job starts."""
    Site(tmp_path, "shell").write()
    in_doubt = tmp_path / "look"
    in_doubt.write_text(f"#!/bin/sh\n{hanging}\n")
    in_doubt.chmod(0o755)
    words = ["/bin/dash", str(SCRIPTS / "prolog"), str(tmp_path), str(in_doubt), "0.2"]
    done = subprocess.run(words, env={"SLURM_JOB_GPUS": "0"}, check=False, timeout=30)
    assert done.returncode


def test_the_prolog_doubts_a_missing_device_file(site: Site) -> None:
    site.mark("MIG-a")
    text = (site.run / "slots").read_text()
    (site.run / "slots").write_text(text.replace("MIG-a /dev/null", "MIG-a /dev/gone"))
    assert site.call("prolog", {"SLURM_JOB_GPUS": "0"}).returncode


def test_the_prolog_doubts_an_instance_that_the_driver_shows_no_more(site: Site) -> None:
    site.mark("MIG-a")
    text = (site.run / "slots").read_text()
    proof = site.run / "access"
    proof.touch()
    (site.run / "slots").write_text(
        text.replace("MIG-a /dev/null,/dev/zero -", f"MIG-a /dev/null {proof}")
    )
    assert site.call("prolog", {"SLURM_JOB_GPUS": "0"}).returncode == 0
    proof.unlink()
    assert site.call("prolog", {"SLURM_JOB_GPUS": "0"}).returncode


def test_the_epilog_empties_the_marks_and_notes_the_job(site: Site) -> None:
    site.mark("MIG-a", "MIG-b", "MIG-c")
    env = {"SLURM_JOB_GPUS": "0,11", "SLURM_JOB_ID": "7", "SLURM_JOB_UID": "2001"}
    assert site.call("epilog", env).returncode == 0
    assert site.call("epilog", {**env, "SLURM_JOB_ID": "8", "SLURM_JOB_GPUS": "2"}).returncode == 0
    assert site.marks() == {"MIG-b"}
    assert (site.run / "ended").read_text() == "7 2001 0,11\n8 2001 2\n"
    assert site.call("prolog", env).returncode


def test_narrowed_files_are_the_users_and_are_given_back(site: Site) -> None:
    site.write(narrow=True)
    device = site.run / "nvidia-cap7"
    os.mknod(device, 0o20444, os.makedev(1, 3))
    text = (site.run / "slots").read_text().replace("MIG-a /dev/null", f"MIG-a {device}")
    (site.run / "slots").write_text(text)
    site.mark("MIG-a")
    env = {"SLURM_JOB_GPUS": "0", "SLURM_JOB_ID": "7", "SLURM_JOB_UID": "2001"}
    assert site.call("prolog", env).returncode == 0
    assert (device.stat().st_uid, device.stat().st_mode & 0o777) == (2001, 0o400)
    assert Path("/dev/zero").stat().st_uid == 0
    assert site.call("epilog", env).returncode == 0
    assert (device.stat().st_uid, device.stat().st_mode & 0o777) == (0, 0o444)


def test_parts_of_one_instance_share_its_file(site: Site) -> None:
    """While two users have a part each, the GPU instance's file is neither's."""
    site.write(narrow=True)
    shared, first, second = (site.run / f"nvidia-cap{n}" for n in (30, 31, 32))
    for device in (shared, first, second):
        os.mknod(device, 0o20444, os.makedev(1, 3))
    lines = [slotmap.HEADER, "constrained=yes", "narrow=yes"]
    lines += [f"slot_{n}='1c.3g.20gb MIG-{n} /dev/null,{shared},{own} -'"
              for n, own in enumerate((first, second))]  # fmt: skip
    (site.run / "slots").write_text("\n".join(lines) + "\n")
    site.mark("MIG-0", "MIG-1")
    jobs = [{"SLURM_JOB_GPUS": str(n), "SLURM_JOB_ID": str(7 + n), "SLURM_JOB_UID": str(2001 + n)}
            for n in range(2)]  # fmt: skip
    for env in jobs:
        assert site.call("prolog", env).returncode == 0
    owners = [device.stat().st_uid for device in (shared, first, second)]
    assert owners == [0, 2001, 2002]
    assert shared.stat().st_mode & 0o777 == 0o444
    assert site.call("epilog", jobs[0]).returncode == 0
    assert [device.stat().st_uid for device in (shared, first, second)] == [0, 0, 2002]
