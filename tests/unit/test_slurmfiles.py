"""Slurm's files: read as Slurm reads them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from slurm_mig.adapters.slurmfiles import parse
from slurm_mig.core.hostlists import expand, fold
from slurm_mig.errors import ConfigError, UsageError
from tests.unit.sitefiles import GRES, SLURM, Make, after, write


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return partial(write, tmp_path)


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
