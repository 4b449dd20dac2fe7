"""Every verb about GPUs, with the exact words that it prints."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slurm_mig.adapters.located import read
from slurm_mig.config import NodeSettings
from slurm_mig.core.layoutfile import Entry, interpret
from slurm_mig.errors import BusyError, SlurmMigError
from slurm_mig.gpuverbs import Answer, GpuVerbs, Wish, printable
from tests.contract.nvml.conftest import Opened
from tests.testbed.nvml_sim import GpuSpec, Simulator
from tests.unit import builders

A100 = "NVIDIA A100-SXM4-40GB"
H100 = "NVIDIA H100 80GB HBM3"
L40S = "NVIDIA L40S"

pytestmark = pytest.mark.changes_gpus

Verbs = Callable[..., GpuVerbs]


@pytest.fixture
def verbs(opened: Opened, tmp_path: Path) -> Verbs:
    """The verbs on a node `n1` of these GPUs."""

    def of(*specs: GpuSpec, driver: str = "580.95.05") -> GpuVerbs:
        settings = NodeSettings(
            pid_file=str(tmp_path / "slurmd.pid"),
            run_dir=str(tmp_path / "run"),
            state_dir=str(tmp_path / "state-dir"),
            caps_dir=str(tmp_path / "dev" / "nvidia-caps"),
            slurm_conf=str(tmp_path / "etc" / "slurm.conf"),
        )
        return GpuVerbs(settings, "n1", opened(*specs, driver=driver))

    return of


def words(*words: str) -> Wish:
    return Wish(words=words)


@pytest.fixture
def holder() -> Iterator[int]:
    """A process that is somebody else's: a Slurm job's, by its environment."""
    child = subprocess.Popen(["sleep", "60"], env={"SLURM_JOB_ID": "17"})
    yield child.pid
    child.kill()
    child.wait()


def shown(answer: Answer, tmp_path: Path) -> str:
    return answer.text.replace(str(tmp_path), "")


def test_inventory(verbs: Verbs, sim: Simulator, holder: int, tmp_path: Path) -> None:
    node = verbs(GpuSpec(A100, mig=True), GpuSpec(H100, minor=3), GpuSpec(L40S))
    node.apply(words("gpu0=3g.20gb@4,1c.2g.10gb@0*2"), dry_run=False)
    sim.add_process(holder, 0, sim.dump()["gpus"][0]["instances"][1]["gi"])
    u = [i["compute_instances"] for i in sim.dump()["gpus"][0]["instances"]]
    half, pair = sorted(u, key=len)
    gpus = [g["uuid"] for g in sim.dump()["gpus"]]
    first = min(sim.dump()["gpus"][0]["instances"], key=lambda i: i["gi"])["start"]
    held = {4: "2g.10gb@0", 0: "3g.20gb@4"}[first]
    assert (
        shown(node.inventory(), tmp_path)
        == f"""\
driver 580.95.05, 3 GPUs

GPU 0  NVIDIA A100-SXM4-40GB  40960 MiB  /dev/nvidia0  00000000:10:00.0
  {gpus[0]}  MIG on, a mode change resets it
  device      place  gi  ci  caps   uuid
  1c.2g.10gb  0:2    3   0   30,31  {pair[0]["uuid"]}
  1c.2g.10gb  0:2    3   1   30,32  {pair[1]["uuid"]}
  3g.20gb     4:4    2   0   21,22  {half[0]["uuid"]}
  {held} held by process {holder} (sleep 60): job 17

GPU 1  NVIDIA H100 80GB HBM3  81559 MiB  /dev/nvidia3  00000000:11:00.0
  {gpus[1]}  MIG off

GPU 2  NVIDIA L40S  46068 MiB  /dev/nvidia2  00000000:12:00.0
  {gpus[2]}  no MIG
"""
    )
    data = json.loads(printable(node.inventory(), as_json=True))
    assert [i["profile"] for i in data["gpus"][0]["instances"]] == ["2g.10gb", "3g.20gb"]
    assert any(h["job"] == 17 for i in data["gpus"][0]["instances"] for h in i["holders"])


def test_profiles(verbs: Verbs) -> None:
    node = verbs(GpuSpec("NVIDIA A30", mig=True))
    node.apply(words("gpu0=2g.12gb@2"), dry_run=False)
    assert (
        node.profiles().text
        == """\
GPU 0  NVIDIA A30  MIG on
  profile     id  MiB    slices  most  free  free at  possible at
  1g.6gb      14  5952   1+1     4     2     0,1      0,1,2,3
  2g.12gb     5   11968  2+2     2     1     0        0,2
  4g.24gb     0   24000  4+4     1     0     -        0
  1g.6gb+me   21  5952   1+1     1     1     0,1      0,1,2,3
  2g.12gb+me  6   11968  2+2     1     1     0        0,2
"""
    )


def test_apply_says_what_it_does_and_does_only_that(verbs: Verbs, sim: Simulator) -> None:
    node = verbs(GpuSpec(A100, mig=True), GpuSpec(A100))
    node.apply(words("gpu0=1g.5gb*7"), dry_run=False)
    wish = words("gpu0=3g.20gb,1g.5gb*4", "gpu1=7g.40gb")
    plan = """\
GPU 0:
    1g.5gb@0
    1g.5gb@1
    1g.5gb@2
    1g.5gb@3
  - 1g.5gb@4
  - 1g.5gb@5
  - 1g.5gb@6
  + 3g.20gb@4
GPU 1:
  + MIG mode
  + 7g.40gb@0
"""
    before = sim.dump()["created"], sim.dump()["destroyed"]
    assert node.apply(wish, dry_run=True).text == plan
    assert (sim.dump()["created"], sim.dump()["destroyed"]) == before
    assert node.apply(wish, dry_run=False).text == plan
    assert sim.dump()["created"] - before[0] == 2
    assert sim.dump()["destroyed"] - before[1] == 3
    assert node.apply(wish, dry_run=False).text == "GPU 0: already so\nGPU 1: already so\n"


def test_apply_names_who_is_in_the_way(verbs: Verbs, sim: Simulator, holder: int) -> None:
    node = verbs(GpuSpec(A100, mig=True))
    node.apply(words("gpu0=3g.20gb*2"), dry_run=False)
    for instance in sim.dump()["gpus"][0]["instances"]:
        sim.add_process(holder, 0, instance["gi"])
    before = sim.dump()["gpus"]
    with pytest.raises(BusyError) as raised:
        node.apply(words("gpu0=3g.20gb,1g.5gb"), dry_run=False)
    assert str(raised.value) == (
        "in use, nothing was touched:\n"
        f"  GPU 0: 3g.20gb@0 would have to go, and is held by process {holder} (sleep 60): job 17\n"
        "  Wait for them to end, or choose a layout that keeps these instances."
    )
    assert sim.dump()["gpus"] == before


def test_assert(verbs: Verbs) -> None:
    node = verbs(GpuSpec(A100, mig=True), GpuSpec(A100))
    node.apply(words("gpu0=3g.20gb,1g.5gb*2"), dry_run=False)
    good = node.asserted(words("gpu0=1g.5gb*2,3g.20gb", "gpu1=off"))
    assert (good.exit, good.text) == (0, "GPU 0: 1g.5gb*2, 3g.20gb\nGPU 1: MIG off\n")
    bad = node.asserted(words("gpu0=7g.40gb", "gpu1=7g.40gb"))
    assert (bad.exit, bad.text) == (
        1,
        "GPU 0: 1g.5gb*2, 3g.20gb, should be 7g.40gb\nGPU 1: MIG off, should be 7g.40gb\n",
    )


def test_export_is_what_apply_reads(verbs: Verbs, tmp_path: Path) -> None:
    node = verbs(GpuSpec(A100, mig=True), GpuSpec(A100, mig=True))
    node.apply(words("gpu0=1c.3g.20gb@4*3,1g.5gb@2", "gpu1=2g.10gb"), dry_run=False)
    text = node.export(inline=False).text
    inline = node.export(inline=True).text.split()
    assert inline[0] == "gpu0=1g.5gb@2,1c.3g.20gb@4,1c.3g.20gb@4,1c.3g.20gb@4"
    (tmp_path / "f").write_text(text)
    entries = interpret(read(tmp_path / "f"), "f")["current"]
    node.apply(words("all=7g.40gb"), dry_run=False)
    assert node.asserted(Wish(entries=entries)).exit == 1
    node.apply(Wish(entries=entries), dry_run=False)
    assert node.asserted(Wish(entries=entries)).exit == 0
    node.apply(words(*inline), dry_run=False)
    assert node.export(inline=True).text.split() == inline
    assert node.export(inline=False).text == text


def test_nothing_to_export(verbs: Verbs) -> None:
    with pytest.raises(SlurmMigError, match="nothing to export"):
        verbs(GpuSpec(L40S)).export(inline=False)


def test_mode_names_who_is_in_the_way(verbs: Verbs, sim: Simulator, holder: int) -> None:
    node = verbs(GpuSpec(H100))
    sim.add_process(holder, 0)
    with pytest.raises(BusyError, match=rf"held by process {holder} \(sleep 60\): job 17; it was"):
        node.mode((), on=True)


def test_mode(verbs: Verbs) -> None:
    node = verbs(GpuSpec(H100), GpuSpec(A100, mig=True), GpuSpec(L40S))
    assert node.mode((), on=True).text == "GPU 0: MIG on\nGPU 1: MIG on already\n"
    assert node.mode((0,), on=False).text == "GPU 0: MIG off\n"
    with pytest.raises(SlurmMigError, match="there is no GPU 9 here; 3 are there"):
        node.mode((9,), on=True)


def test_gres(verbs: Verbs, tmp_path: Path) -> None:
    node = verbs(GpuSpec(A100, mig=True), GpuSpec(H100), GpuSpec(A100, mig=True))
    node.apply(words("gpu0=3g.20gb@4,1c.2g.10gb@0*2"), dry_run=False)
    caps = "/dev/nvidia-caps/nvidia-cap"
    assert (
        shown(node.gres(), tmp_path)
        == f"""\
NodeName=n1 AutoDetect=off
NodeName=n1 Name=gpu Type=1c.2g.10gb MultipleFiles=/dev/nvidia0,{caps}[30,31]
NodeName=n1 Name=gpu Type=1c.2g.10gb MultipleFiles=/dev/nvidia0,{caps}[30,32]
NodeName=n1 Name=gpu Type=3g.20gb MultipleFiles=/dev/nvidia0,{caps}[21,22]
NodeName=n1 Name=gpu Type=nvidia_h100_80gb_hbm3 File=/dev/nvidia1
# slurm.conf: NodeName=n1 … Gres=gpu:1c.2g.10gb:2,gpu:3g.20gb:1,gpu:nvidia_h100_80gb_hbm3:1
"""
    )


def test_a_managed_node_is_changed_by_the_controller_only(verbs: Verbs, tmp_path: Path) -> None:
    node = verbs(GpuSpec(A100, mig=True))
    ours = tmp_path / "etc" / "slurm-mig"
    ours.mkdir(parents=True)
    (ours / "nodes.conf").write_text("NodeName=n1 CPUs=1 Gres=gpu:off:7\n")
    with pytest.raises(SlurmMigError, match="n1 is in slurm-mig's care") as raised:
        node.apply(words("gpu0=1g.5gb"), dry_run=False)
    assert raised.value.hint == "On the controller: slurm-mig apply --node n1 …"
    with pytest.raises(SlurmMigError, match="n1 is in slurm-mig's care"):
        node.mode((), on=False)
    assert node.apply(words("gpu0=1g.5gb"), dry_run=True).text
    (ours / "nodes.conf").write_text("NodeName=n10 CPUs=1\n")
    node.apply(words("gpu0=1g.5gb"), dry_run=False)


PUBLISHED = Path(__file__).parent / "layouts.yaml"


@pytest.mark.parametrize(
    ("card", "names"),
    [
        (A100, ["all-disabled", "all-enabled", "all-1g.5gb", "all-2g.10gb", "all-3g.20gb",
                "all-7g.40gb", "all-balanced", "custom-config"]),
        ("NVIDIA A30", ["all-1g.6gb", "all-2g.12gb", "all-4g.24gb", "all-balanced"]),
        (H100, ["all-1g.10gb", "all-1g.10gb.me", "all-2g.20gb", "all-3g.40gb", "all-balanced"]),
        ("NVIDIA H200", ["all-1g.18gb", "all-3g.71gb", "all-balanced"]),
        ("NVIDIA B200", ["all-1g.23gb", "all-3g.90gb", "all-balanced"]),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", ["all-1g.24gb", "all-1g.24gb.gfx",
                                                          "all-2g.48gb"]),
    ],
)  # fmt: skip
def test_files_as_sites_have_them(verbs: Verbs, card: str, names: list[str]) -> None:
    """Named layouts as they are published for these models parse, apply and assert."""
    layouts = interpret(read(PUBLISHED), PUBLISHED.name)
    node = verbs(*[GpuSpec(card) for _ in range(8 if "custom-config" in names else 2)])
    for name in names:
        wish = Wish(entries=layouts[name])
        answer = node.apply(wish, dry_run=False)
        assert answer.text, name
        assert node.asserted(wish).exit == 0, name


def test_what_crosses_the_remote_command_comes_back(verbs: Verbs) -> None:
    node = verbs(GpuSpec(A100, mig=True))
    request = {"verb": "apply", "wish": {"words": ["gpu0=1g.5gb"]}, "dry_run": True}
    assert node.run(request)["text"] == "GPU 0:\n  + 1g.5gb@4\n" or node.run(request)["exit"] == 0
    with pytest.raises(SlurmMigError, match="unknown verb 'reboot'"):
        node.run({"verb": "reboot"})
    nasty = Answer("a\x1b[31mb\n")
    assert printable(nasty, as_json=False) == "a?[31mb\n"


def test_the_own_process_is_named(verbs: Verbs, sim: Simulator) -> None:
    node = verbs(GpuSpec(H100))
    sim.add_process(os.getpid(), 0)
    with pytest.raises(BusyError, match=f"cannot change while process {os.getpid()} holds it"):
        node.apply(words("gpu0=1g.10gb"), dry_run=False)


def test_one_name_is_resolved_on_each_gpu(verbs: Verbs, sim: Simulator) -> None:
    """1g.24gb is id 15 on an H100 NVL, with double memory, and id 14 on an RTX PRO 6000."""
    rtx = "NVIDIA RTX PRO 6000 Blackwell Server Edition"
    node = verbs(GpuSpec("NVIDIA H100 NVL", mig=True), GpuSpec(rtx, mig=True))
    node.apply(words("all=1g.24gb*2"), dry_run=False)
    ids = [[i["profile_id"] for i in gpu["instances"]] for gpu in sim.dump()["gpus"]]
    assert ids == [[15, 15], [14, 14]]
    assert node.asserted(words("all=1g.24gb*2")).exit == 0


def test_profiles_that_no_table_knows(verbs: Verbs, sim: Simulator) -> None:
    """A driver that calls everything otherwise: its word is taken for everything."""
    node = verbs(GpuSpec(A100, mig=True))
    sim.rename_profiles()
    assert "3g.21gb" in node.profiles().text
    node.apply(words("gpu0=3g.21gb,1c.2g.11gb*2"), dry_run=False)
    assert node.asserted(words("gpu0=3g.21gb,1c.2g.11gb*2")).exit == 0
    assert "Type=1c.2g.11gb" in node.gres().text
    assert "NVIDIA A100-SXM4-40GB: the table has no 3g.21gb\n" in node.record().text
    with pytest.raises(SlurmMigError, match=r"has no profile 3g\.20gb; it has 1g\.6gb, 2g\.11gb"):
        node.apply(words("gpu0=3g.20gb"), dry_run=False)


def test_mode_in_a_virtual_machine(verbs: Verbs, sim: Simulator) -> None:
    node = verbs(GpuSpec(A100, passthrough=True))
    with pytest.raises(SlurmMigError) as raised:
        node.mode((0,), on=True)
    assert str(raised.value) == (
        "GPU 0: the MIG mode changes with a reset only, which the driver cannot do here (a GPU "
        "passed through to a virtual machine); it stays off, and a change to on is pending\n"
        "  Reboot the virtual machine once the mode is pending."
    )
    sim.reboot()
    assert node.mode((0,), on=True).text == "GPU 0: MIG on already\n"


@pytest.mark.parametrize("card", sorted(builders.models()))
def test_every_profile_of_every_model(verbs: Verbs, card: str) -> None:
    """Each alone, with its attributes; then a split of it where it has parts."""
    node = verbs(GpuSpec(card))
    for profile in builders.models()[card]["profiles"]:
        name, slices = profile["name"], profile["slices"]
        for wish in ({name: 1}, {f"1c.{name}": slices} if slices > 1 else {name: 1}):
            asked = Wish(entries=(Entry(mig=True, devices=wish),))
            node.apply(asked, dry_run=False)
            assert node.asserted(asked).exit == 0, name
    assert node.apply(words("all=off"), dry_run=False).text.endswith("  - MIG mode\n")
