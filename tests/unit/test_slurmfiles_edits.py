"""Slurm's files: edited in place, written all or not at all."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path

import pytest

from slurm_mig.adapters import atomic
from slurm_mig.adapters.slurmfiles import FileEdit
from slurm_mig.adapters.slurmfiles.blocks import undo
from slurm_mig.adapters.slurmfiles.files import _commit
from slurm_mig.errors import ConfigError, DriftError, UsageError
from tests.unit.sitefiles import SLURM, Make, after, write


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return partial(write, tmp_path)


class TestManage:
    def test_one_node_of_a_range(self, make: Make) -> None:
        edits = make().manage({"a100-2"})
        lines = after(edits).splitlines()
        assert lines[4:6] == ["# slurm-mig adds:", "Include slurm-mig/nodes.conf"]
        assert lines[7] == "NodeName=DEFAULT CPUs=8 Feature=old State=UNKNOWN"
        assert lines[8] == f"# slurm-mig keeps: {SLURM.splitlines()[5]}"
        assert lines[9] == (
            "NodeName=a100-[1,3] Gres=gpu:1g.5gb:14 RealMemory=64000 "
            "NodeAddr=10.0.0.[1,3] Port=[7001,7003] # rack"
        )
        assert lines[10].startswith("# slurm-mig end ")
        assert lines[11:] == SLURM.splitlines()[6:]
        gres = after(edits, "gres.conf").splitlines()
        assert gres[1] == "Include slurm-mig/gres.conf"
        assert "NodeName=a100-1 Name=gpu Type=1g.5gb File=/dev/nvidia0" in gres
        assert "NodeName=a100-[1,3] AutoDetect=nvml" in gres
        assert gres[-1] == "NodeName=a100-[1-3] Name=nic Count=1"

    def test_all_nodes_of_a_continued_line_without_end(self, make: Make) -> None:
        files = make("A=b\nNodeName=x \\\r\n CPUs=1", "")
        text = after(files.manage({"x"}))
        assert "# slurm-mig keeps: NodeName=x \\\r\n# slurm-mig keeps:  CPUs=1\n" in text
        assert not text.endswith("\n")
        assert undo(text, Path("f")).text == "A=b\nNodeName=x \\\r\n CPUs=1"

    def test_one_address_for_all_stays(self, make: Make) -> None:
        files = make("NodeName=n[1-3] NodeHostname=localhost Port=[1-3]\n", "")
        text = after(files.manage({"n1"}))
        assert "NodeName=n[2-3] NodeHostname=localhost Port=[2,3]\n" in text

    def test_numbers_stay_those_on_disk(self, make: Make, tmp_path: Path) -> None:
        files = make()
        files.write(files.manage({"a100-2"}), tmp_path / "backups")
        files.load()
        assert files.node("a100-2").line == 9
        assert files.node("cpu01").line == 13
        assert files.manage({"a100-2"}) == []

    def test_catalog_joins_partitions(self, make: Make) -> None:
        names = ["mig-catalog-1", "mig-catalog-2"]
        text = after(make().manage(set(), names, {"gpu": names, "all": names, "rest": names[:1]}))
        assert "\nPartitionName=gpu Nodes=gpus,mig-catalog-[1-2] State=UP\n" in text
        assert "\nPartitionName=all Nodes=ALL\n" in text
        assert "\nPartitionName=rest Nodes=big,a100-3,mig-catalog-1\n" in text
        assert "keeps: NodeName" not in text

    @pytest.mark.parametrize(
        ("enrolled", "catalog", "partitions", "error", "match"),
        [
            ({"a100-9"}, [], {}, UsageError, "a100-9"),
            (set(), ["m n"], {}, UsageError, "m n"),
            (set(), ["cpu01"], {}, ConfigError, r"slurm\.conf:8: the catalog node cpu01"),
            (set(), ["m"], {"none": ["m"]}, UsageError, "none"),
            (set(), [], {"gpu": ["m"]}, UsageError, "not a catalog node"),
            (set(), ["m"], {"own": ["m"]}, ConfigError, r"slurm\.conf:16: partition own"),
        ],
    )
    def test_refused(
        self,
        make: Make,
        enrolled: set[str],
        catalog: list[str],
        partitions: dict[str, list[str]],
        error: type[Exception],
        match: str,
    ) -> None:
        with pytest.raises(error, match=match):
            make().manage(enrolled, catalog, partitions)

    @pytest.mark.parametrize(
        ("line", "match"),
        [
            ("Name=gpu File=/dev/nvidia0", "also to a100-1"),
            ("NodeName=a100-1 Name=nic AutoDetect=nvml", "AutoDetect on a Name=nic line"),
            ("NodeName=a100-1;b Name=gpu", "not a node name"),
        ],
    )
    def test_gres_refused(self, make: Make, line: str, match: str) -> None:
        files = make(gres=f"{line}\n")
        with pytest.raises(ConfigError, match=rf"gres\.conf:1: .*{match}"):
            files.manage({"a100-1"})
        assert files.manage(set()) == []

    def test_lists_of_another_length_are_refused(self, make: Make) -> None:
        files = make("NodeName=n[1-3] NodeAddr=x[1-2]\n", "")
        with pytest.raises(ConfigError, match=r"slurm\.conf:1: .*2 values for 3 nodes"):
            files.manage({"n1"})
        with pytest.raises(ConfigError, match=r"slurm\.conf:1: .*2 values for 3 nodes"):
            files.node("n1")


class TestDrift:
    @pytest.mark.parametrize(
        ("old", "new", "match"),
        [
            ("a100-[1,3] Gres", "a100-[1-3] Gres", r"slurm\.conf:9: .*was edited"),
            ("# slurm-mig keeps: N", "#slurm-mig keeps: N", r"slurm\.conf:9: .*was rewritten"),
            ("adds:\nInclude slurm-mig/nodes.conf\n", "adds:\n", r"slurm\.conf:5: .*was edited"),
            ("# slurm-mig adds:\n", "", r"slurm\.conf:6: .*without its beginning"),
        ],
    )
    def test_an_edited_block_is_refused(
        self, make: Make, tmp_path: Path, old: str, new: str, match: str
    ) -> None:
        files = make()
        files.write(files.manage({"a100-2"}), tmp_path / "backups")
        path = tmp_path / "slurm.conf"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
        with pytest.raises(DriftError, match=match):
            files.load()

    def test_edits_outside_the_blocks_are_the_sites(self, make: Make, tmp_path: Path) -> None:
        files = make()
        files.write(files.manage({"a100-2"}), tmp_path / "backups")
        path = tmp_path / "slurm.conf"
        path.write_text("# new\n" + path.read_text().replace("MaxTime=60", "MaxTime=90"))
        files.load()
        files.write(files.manage(set()), tmp_path / "backups")
        assert path.read_text() == "# new\n" + SLURM.replace("MaxTime=60", "MaxTime=90")


class TestWrite:
    def test_backup_mode_and_text(self, make: Make, tmp_path: Path) -> None:
        files = make()
        (tmp_path / "slurm.conf").chmod(0o640)
        edits = files.manage({"a100-1"})
        files.write(edits, tmp_path / "b", at=datetime(2025, 1, 2, tzinfo=timezone.utc))
        assert (tmp_path / "slurm.conf").read_text() == after(edits)
        assert (tmp_path / "slurm.conf").stat().st_mode & 0o7777 == 0o640
        (backup,) = (tmp_path / "b").glob("*_slurm.conf.20250102T000000.000000Z")
        assert backup.read_text() == SLURM
        assert not list(tmp_path.glob(".*.tmp"))

    def test_only_the_newest_backups_stay(self, make: Make, tmp_path: Path) -> None:
        files = make()
        for n in range(24):
            files.load()
            edits = files.manage({"a100-1"} if n % 2 == 0 else set())
            at = datetime(2025, 1, 1, tzinfo=timezone.utc) + timedelta(days=n)
            files.write(edits, tmp_path / "b", at=at)
        kept = sorted(path.name for path in (tmp_path / "b").glob("*slurm.conf*"))
        assert len(kept) == 20
        assert "20250105T" in kept[0]

    def test_a_file_edited_meanwhile(self, make: Make, tmp_path: Path) -> None:
        files = make()
        edits = files.manage({"a100-1"})
        (tmp_path / "gres.conf").write_text("# somebody's\n")
        with pytest.raises(DriftError, match=r"gres\.conf was changed.*no file was written"):
            files.write(edits, tmp_path / "b")
        assert (tmp_path / "slurm.conf").read_text() == SLURM

    def test_nothing_is_written_if_one_cannot_be(self, make: Make, tmp_path: Path) -> None:
        files = make()
        edits = [*files.manage({"a100-1"}), FileEdit(tmp_path / "no" / "dir", "", "x")]
        with pytest.raises(ConfigError, match="cannot be written"):
            files.write(edits, tmp_path / "b")
        assert (tmp_path / "slurm.conf").read_text() == SLURM
        (tmp_path / "b").write_text("not a directory")
        with pytest.raises(ConfigError, match="backup directory"):
            files.write(edits[:2], tmp_path / "b")
        assert (tmp_path / "slurm.conf").read_text() == SLURM
        assert not list(tmp_path.glob(".*.tmp"))

    def test_a_rename_that_fails_undoes_those_before(self, tmp_path: Path) -> None:
        (tmp_path / "one").write_text("old")
        edits = [FileEdit(tmp_path / "one", "old", "new"), FileEdit(tmp_path / "two", "", "new")]
        staged = [atomic.stage(edit.path, edit.after) for edit in edits]
        (tmp_path / "two").mkdir()
        with pytest.raises(ConfigError, match="two cannot be written"):
            _commit(edits, staged)
        assert (tmp_path / "one").read_text() == "old"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]

    def test_diff(self, make: Make) -> None:
        files = make("NodeName=x", "")
        text = files.diff(files.manage({"x"}))
        assert "-NodeName=x\n\\ No newline at end of file\n" in text
        assert "+# slurm-mig keeps: NodeName=x\n" in text
