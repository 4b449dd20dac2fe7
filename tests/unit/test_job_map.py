"""The job map for dcgm-exporter: who has which instance, in files by GPU and GPU instance id."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from slurm_mig.core import slotmap
from slurm_mig.hooks import refresh_job_map
from tests.unit.builders import A100, at, gpu, node, ones
from tests.unit.test_hooks import Site

ENV = {"SLURM_JOB_GPUS": "0-1", "SLURM_JOB_ID": "17", "SLURM_JOB_UID": "2001"}


@pytest.fixture(params=["shell", "python"])
def site(tmp_path: Path, request: pytest.FixtureRequest) -> Site:
    found = Site(tmp_path, request.param)
    found.write()
    found.mark("MIG-a", "MIG-b", "MIG-c", "GPU-d")
    (tmp_path / "jobs").mkdir()
    with open(tmp_path / "slots", "a") as file:
        file.write(f"job_map='{tmp_path}/jobs'\nmap_0=0.7\nmap_1=0.8\nmap_12=1\n")
    return found


def files(site: Site) -> dict[str, str]:
    return {file.name: file.read_text() for file in (site.run / "jobs").iterdir()}


def test_the_prolog_says_whose_a_slot_is_and_the_epilog_takes_it_back(site: Site) -> None:
    assert site.call("prolog", ENV).returncode == 0
    assert (
        site.call("prolog", {**ENV, "SLURM_JOB_GPUS": "12", "SLURM_JOB_ID": "18"}).returncode == 0
    )
    assert files(site) == {"0.7": "17\n", "0.8": "17\n", "1": "18\n"}
    assert site.call("epilog", ENV).returncode == 0
    assert files(site) == {"1": "18\n"}
    assert (site.run / "ended").read_text() == "17 2001 0-1\n"


def test_a_job_map_that_cannot_be_written_fails_no_job(site: Site) -> None:
    (site.run / "jobs").rmdir()
    assert site.call("prolog", ENV).returncode == 0
    assert site.call("epilog", ENV).returncode == 0
    assert site.call("prolog", {**ENV, "SLURM_JOB_ID": "$(id)"}).returncode in (0, 1)


def test_without_a_job_map_nothing_is_written(site: Site) -> None:
    site.write()
    assert site.call("prolog", {**ENV, "map_0": "../x", "job_map": str(site.run)}).returncode == 0
    site.mark("MIG-a", "MIG-b")
    assert site.call("epilog", {**ENV, "map_0": "slots"}).returncode == 0
    assert files(site) == {}
    assert (site.run / "slots").exists()


def test_names_are_gpu_and_gpu_instance_id() -> None:
    cut = gpu(A100, 0, *ones(4), at("3g.20gb", 4))
    whole = replace(gpu(A100, 1), mig=False)
    known = slotmap.job_map("/run/jobs", [cut, whole])
    assert known is not None
    assert set(known.names.values()) == {"0.7", "0.8", "0.9", "0.10", "0.5", "1"}
    assert slotmap.job_map("", [cut]) is None
    slots = node([cut, whole]).slots
    text = slotmap.slot_map(slots, constrained=True, job_map=known)
    read = slotmap.parse(text)
    assert read.job_map == "/run/jobs"
    assert {read.slots[i].uuid: name for i, name in read.mapped.items()} == known.names
    assert "job_map" not in slotmap.slot_map(slots, constrained=True)


def test_after_a_publish_what_is_gone_has_no_file(tmp_path: Path) -> None:
    text = f"{slotmap.HEADER}\njob_map='{tmp_path}/a/jobs'\nmap_0=0.7\n"
    (tmp_path / "slots").write_text(text)
    refresh_job_map(tmp_path)
    for name in ("0.7", "0.8", "3", "README"):
        (tmp_path / "a" / "jobs" / name).write_text("17\n")
    refresh_job_map(tmp_path)
    assert {p.name for p in (tmp_path / "a" / "jobs").iterdir()} == {"0.7", "README"}
