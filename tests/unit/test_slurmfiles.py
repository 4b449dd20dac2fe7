"""Slurm's files: read as Slurm reads them, edited in place, written all or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from slurm_mig.adapters import atomic
from slurm_mig.adapters.slurmfiles import FileEdit, SlurmFiles, parse
from slurm_mig.adapters.slurmfiles.blocks import undo
from slurm_mig.adapters.slurmfiles.files import _commit
from slurm_mig.adapters.slurmfiles.names import expand, fold
from slurm_mig.errors import ConfigError, DriftError, UsageError

SLURM = """\
# the site's
ClusterName=Mig
SelectType=select/cons_tres
selecttype=select/other
NodeName=DEFAULT CPUs=8 Feature=old State=UNKNOWN
NodeName=a100-[1-3] Gres=gpu:1g.5gb:14 RealMemory=64000 NodeAddr=10.0.0.[1-3] Port=7001-7003 # rack
NodeName=DEFAULT RealMemory=1000
nodename=cpu[01-02] features="new,big" \\
  Weight=3
NodeSet=big Feature=big
NodeSet=gpus Nodes=a100-[1-2]
PartitionName=DEFAULT MaxTime=60 Nodes=cpu01
PartitionName=gpu Nodes=gpus State=UP
PartitionName=all Nodes=ALL
PartitionName=rest Nodes=big,a100-3
PartitionName=own
"""
GRES = """\
AutoDetect=off
NodeName=a100-[1-2] Name=gpu Type=1g.5gb File=/dev/nvidia0
NodeName=a100-[1-3] AutoDetect=nvml
NodeName=a100-[1-3] Name=nic Count=1
"""

Make = Callable[..., SlurmFiles]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def write(slurm: str = SLURM, gres: str | None = GRES, **others: str) -> SlurmFiles:
        (tmp_path / "slurm.conf").write_bytes(slurm.encode())
        if gres is not None:
            (tmp_path / "gres.conf").write_bytes(gres.encode())
        for name, text in others.items():
            (tmp_path / f"{name}.conf").write_text(text)
        return SlurmFiles(tmp_path / "slurm.conf", tmp_path / "gres.conf")

    return write


def after(edits: list[FileEdit], name: str = "slurm.conf") -> str:
    return next(edit.after for edit in edits if edit.path.name == name)


class TestLines:
    @pytest.mark.parametrize(
        ("text", "pairs"),
        [
            ("A = b", [("A", "b")]),
            ('A="b c"  D=e=f', [("A", "b c"), ("D", "e=f")]),
            ('A=""', [("A", "")]),
            ("A=b\\#c # d", [("A", "b#c")]),
            ("A=b\\\\\nC=d", [("A", "b\\")]),
            ("A=b\\\nc D=e", [("A", "bc"), ("D", "e")]),
            ("A=b \\ # why\r\n C=d\r\n", [("A", "b"), ("C", "d")]),
            ("A=b # c \\\nC=d", [("A", "b")]),
            ("  # A=b \\\n", []),
            ("A=b \\", [("A", "b")]),
            ("Gres= CPUs=4", [("Gres", "CPUs=4")]),
        ],
    )
    def test_pairs_as_slurm_reads_them(self, text: str, pairs: list[tuple[str, str]]) -> None:
        assert [(p.key, p.value) for p in parse(text, Path("f"))[0].pairs] == pairs

    def test_numbers_count_physical_lines(self) -> None:
        lines = parse("A=b \\\n\nC=d\n\nE=f", Path("f"))
        assert [line.number for line in lines] == [1, 3, 4, 5]

    def test_include(self) -> None:
        assert [line.include for line in parse("include  x/y\nInclude=z\n", Path("f"))] == [
            "x/y",
            None,
        ]

    @pytest.mark.parametrize(
        "text", ["word", " Include x", "Include a b", "Include", "A=b c", "A=b NodeName=c", "A=\0"]
    )
    def test_what_slurm_refuses_is_refused(self, text: str) -> None:
        with pytest.raises(ConfigError, match=r"^f:2: line not understood .*nothing was changed"):
            parse(f"# first\n{text}\n", Path("f"))

    def test_a_value_is_replaced_in_its_place(self) -> None:
        line = parse('Nodes="a,\\\nb" \\\n X=1 # Nodes', Path("f"))[0]
        assert line.replaced({line.pairs[0]: "c"}) == 'Nodes="c" \\\n X=1 # Nodes'


class TestNames:
    @pytest.mark.parametrize(
        ("value", "names"),
        [
            ("gpu[001-002,010]", ["gpu001", "gpu002", "gpu010"]),
            ("b,a", ["b", "a"]),
            ("r[1-2]n[3,1]", ["r1n3", "r1n1", "r2n3", "r2n1"]),
            ("[7001-7002]", ["7001", "7002"]),
            ("10.0.0.[1-2]", ["10.0.0.1", "10.0.0.2"]),
        ],
    )
    def test_expand_keeps_order(self, value: str, names: list[str]) -> None:
        assert expand(value, "f:1") == names

    @pytest.mark.parametrize(
        "value",
        [
            *("", "a b", "@gpus", "a!b", "a&b", "a^b", "a*", "a,", "a[1", "a[]", "a[x]"),
            *("a[1-4/2]", "a[3-1]", "a[01-100]", "a[1-99999999]", "a[1-1000][1-1000]"),
        ],
    )
    def test_anything_else_is_refused(self, value: str) -> None:
        with pytest.raises(ConfigError, match=r"^f:1: "):
            expand(value, "f:1")

    def test_fold_uses_one_range_at_the_end(self) -> None:
        assert fold(["a1-1", "a1-2", "a2-1"]) == "a1-[1-2],a2-1"
        assert fold(["b2", "b1"]) == "b2,b1"
        assert fold(["n1.c", "n2.c"]) == "n1.c,n2.c"
        assert fold(["::1", "fe80::2"]) == "::1,fe80::2"


class TestQuestions:
    def test_node_has_the_defaults_in_force_and_its_own_position(self, make: Make) -> None:
        node = make().node("a100-2")
        assert (node.path.name, node.line) == ("slurm.conf", 6)
        assert node.attributes == {
            "CPUs": "8",
            "Feature": "old",
            "State": "UNKNOWN",
            "Gres": "gpu:1g.5gb:14",
            "RealMemory": "64000",
            "NodeAddr": "10.0.0.2",
            "Port": "7002",
        }

    def test_own_spelling_wins_and_displaces_the_alias(self, make: Make) -> None:
        node = make().node("cpu01")
        assert node.attributes["features"] == "new,big"
        assert node.get("FEATURE") is None
        assert (node.get("realmemory"), node.get("weight"), node.line) == ("1000", "3", 8)

    def test_names_and_options(self, make: Make) -> None:
        files = make()
        assert files.node_names() == ["a100-1", "a100-2", "a100-3", "cpu01", "cpu02"]
        assert files.value("SELECTTYPE") == "select/other"
        assert files.value("Prolog") is None

    def test_partitions(self, make: Make) -> None:
        files = make()
        assert [(p.name, p.nodes, p.line) for p in files.partitions()] == [
            ("gpu", "a100-[1-2]", 13),
            ("all", "ALL", 14),
            ("rest", "a100-3,cpu[01-02]", 15),
            ("own", "cpu01", 16),
        ]
        assert files.partitions_of("a100-1") == ["gpu", "all"]
        assert files.partitions_of("cpu01") == ["all", "rest", "own"]

    def test_gres_lines_and_autodetect(self, make: Make) -> None:
        files = make(gres=GRES + "Name=gpu Type=x File=/dev/y\n")
        assert [(g.nodes, g.get("type"), g.line) for g in files.gres_lines("a100-1")] == [
            (None, "x", 5),
            ("a100-[1-2]", "1g.5gb", 2),
        ]
        assert (files.autodetect("a100-3"), files.autodetect("cpu01")) == ("nvml", "off")

    def test_unknown_node(self, make: Make) -> None:
        with pytest.raises(UsageError, match="a100-9"):
            make().node("a100-9")

    @pytest.mark.parametrize(
        ("line", "match"),
        [
            ("NodeName=a100-1", r"slurm\.conf:17: node a100-1 is already defined at .*:6"),
            ("NodeName=@gpus", r"slurm\.conf:17: '@gpus'"),
            ("NodeName=ALL", r"slurm\.conf:17: NodeName=ALL"),
            ("NodeName+=b", r"slurm\.conf:17: NodeName\+="),
            ("NodeName=DEFAULT NodeAddr=x", r"slurm\.conf:17: NodeAddr"),
        ],
    )
    def test_what_is_not_understood(self, make: Make, line: str, match: str) -> None:
        files = make(f"{SLURM}{line}\n")
        with pytest.raises(ConfigError, match=match):
            files.node("a100-1")


class TestIncludes:
    def test_nested_and_cluster_name(self, make: Make, tmp_path: Path) -> None:
        slurm = "ClusterName=Mig\nInclude one.conf\nNodeName=c\n"
        files = make(slurm, "", one="NodeName=a\nInclude %c.conf\n", mig="NodeName=b\n")
        assert files.node_names() == ["a", "b", "c"]
        assert (files.node("b").path, files.node("b").line) == (tmp_path / "mig.conf", 1)
        assert [f.path.name for f in files.files] == [
            "slurm.conf",
            "one.conf",
            "mig.conf",
            "gres.conf",
        ]
        edits = files.manage({"b"})
        assert after(edits, "mig.conf").startswith("# slurm-mig keeps: NodeName=b\n# slurm-mig end")
        assert after(edits).index("slurm-mig/nodes.conf") < after(edits).index("one.conf")

    @pytest.mark.parametrize(
        ("include", "match"),
        [
            ("none.conf", "No such file"),
            ("*.conf", "wildcards"),
            ("%c.conf", "no ClusterName"),
            ("slurm.conf", "includes itself"),
            ("slurm-mig/nodes.conf", "is slurm-mig's"),
        ],
    )
    def test_refused(self, make: Make, include: str, match: str) -> None:
        with pytest.raises(ConfigError, match=rf"slurm\.conf:1: Include .*{match}"):
            make(f"Include {include}\n").load()

    def test_links_are_followed(self, make: Make, tmp_path: Path) -> None:
        files = make()
        (tmp_path / "real").mkdir()
        (tmp_path / "slurm.conf").rename(tmp_path / "real" / "slurm.conf")
        (tmp_path / "slurm.conf").symlink_to("real/slurm.conf")
        files.write(files.manage({"a100-1"}), tmp_path / "backups")
        assert (tmp_path / "slurm.conf").is_symlink()
        assert "keeps" in (tmp_path / "real" / "slurm.conf").read_text()

    def test_missing_files(self, make: Make, tmp_path: Path) -> None:
        files = make(gres=None)
        assert after(files.manage({"a100-1"}), "gres.conf").splitlines()[1] == (
            "Include slurm-mig/gres.conf"
        )
        (tmp_path / "slurm.conf").unlink()
        with pytest.raises(ConfigError, match=r"slurm\.conf cannot be read"):
            files.load()


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


class TestAtomic:
    def test_new_file_gets_the_mode(self, tmp_path: Path) -> None:
        atomic.write_atomic(tmp_path / "f", "a\r\n\udcff", mode=0o600)
        assert (tmp_path / "f").read_bytes() == b"a\r\n\xff"
        assert (tmp_path / "f").stat().st_mode & 0o7777 == 0o600

    def test_existing_file_keeps_mode_owner_and_link(self, tmp_path: Path) -> None:
        real = tmp_path / "real"
        real.write_text("old")
        real.chmod(0o604)
        if os.geteuid() == 0:
            os.chown(real, 12, 34)
        (tmp_path / "link").symlink_to("real")
        owner = (real.stat().st_uid, real.stat().st_gid)
        atomic.write_atomic(tmp_path / "link", "new", mode=0o666)
        there = real.stat()
        assert (tmp_path / "link").is_symlink()
        assert (there.st_uid, there.st_gid, there.st_mode & 0o7777) == (*owner, 0o604)
        assert real.read_text() == "new"

    def test_refusal_leaves_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="it was left as it is"):
            atomic.write_atomic(tmp_path / "no" / "f", "x")
        (tmp_path / "d").mkdir()
        with pytest.raises(ConfigError, match="it was left as it is"):
            atomic.write_atomic(tmp_path / "d", "x")
        assert [path.name for path in tmp_path.iterdir()] == ["d"]

    def test_staged_can_be_discarded(self, tmp_path: Path) -> None:
        (tmp_path / "f").write_text("old")
        atomic.stage(tmp_path / "f", "new").discard()
        assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]
