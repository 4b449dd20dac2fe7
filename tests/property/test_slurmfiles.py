"""Whatever the site's files look like, leaving gives them back byte for byte."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slurm_mig.adapters.slurmfiles import SlurmFiles, parse
from slurm_mig.adapters.slurmfiles.blocks import add, keep, undo
from slurm_mig.adapters.slurmfiles.lines import physical_lines
from slurm_mig.core.hostlists import expand, fold
from slurm_mig.errors import DriftError

PATH = Path("slurm.conf")
INCLUDES = ("slurm-mig/nodes.conf", "slurm-mig/gres.conf")

comments = st.sampled_from(["", " ", "\t# note", " # a \\# b", " #NodeName=x99", " # é\udcff"])
ends = st.sampled_from(["\n", "\r\n"])
breaks = st.sampled_from([" ", "  ", "\t", " \\\n", " \\ \r\n  ", " \\ # why\n "])
noise = st.sampled_from(
    ["", "   ", "# comment", "# NodeName=a1 \\", "SelectType=select/cons_tres", 'Epilog="/a b"']
)


@st.composite
def host_list(draw: st.DrawFn, names: Sequence[str]) -> str:
    """These names, some folded into ranges."""
    if draw(st.booleans()):
        return fold(names)
    cut = draw(st.integers(1, len(names)))
    return ",".join(fold(part) for part in (names[:cut], names[cut:]) if part)


@st.composite
def configurations(draw: st.DrawFn) -> tuple[str, str, list[str]]:
    """slurm.conf, gres.conf and the nodes that slurm.conf defines."""
    order = draw(st.permutations([f"gpu{n:02}" for n in range(1, 11)] + ["a100-1", "a100-2"]))
    slurm, gres, names = [], [], []
    left = list(order)
    while left:
        slurm.append(draw(noise) + draw(ends))
        size = draw(st.integers(1, len(left)))
        part, left = left[:size], left[size:]
        nodes = draw(host_list(part))
        names += part
        key = draw(st.sampled_from(["NodeName", "nodename", "NODENAME"]))
        pairs = [f'{key}="{nodes}"' if draw(st.booleans()) else f"{key}={nodes}", "CPUs=4"]
        if draw(st.booleans()):
            pairs.append(f"Port=[{7001}-{7000 + size}]" if size > 1 else "Port=7001")
            pairs.append("NodeAddr=" + ",".join(f"h-{name}" for name in part))
        slurm.append(draw(breaks).join(pairs) + draw(comments) + draw(ends))
        gpu = draw(st.sampled_from(["Name=gpu File=/dev/nvidia0", "AutoDetect=nvml", "Name=nic"]))
        gres.append(f"NodeName={nodes}{draw(breaks)}{gpu}{draw(comments)}{draw(ends)}")
        if draw(st.booleans()):
            slurm.append("NodeName=DEFAULT RealMemory=10" + draw(ends))
    slurm.append(f"PartitionName=p{draw(breaks)}Nodes={fold(order)}{draw(breaks)}State=UP")
    if draw(st.booleans()):
        slurm[-1] += draw(ends)
    texts = ["".join(slurm), "".join(gres)]
    if draw(st.booleans()):
        texts[1] = texts[1].removesuffix("\n")
    return texts[0], texts[1], names


class Disk:
    """Both files in a directory of their own."""

    def __init__(self, directory: str, slurm: str, gres: str) -> None:
        self.paths = (Path(directory, "slurm.conf"), Path(directory, "gres.conf"))
        self.put(slurm, gres)

    def put(self, *texts: str) -> None:
        for path, text in zip(self.paths, texts, strict=True):
            path.write_bytes(text.encode("utf-8", "surrogateescape"))

    def manage(self, enrolled: set[str]) -> tuple[str, str]:
        """The texts after managing these nodes, which are also what is on disk then."""
        files = SlurmFiles(*self.paths)
        catalog = ["mig-catalog"] if enrolled else []
        edits = files.manage(enrolled, catalog, {"p": catalog} if catalog else {})
        files.write(edits, self.paths[0].parent / "backups")
        return self.texts()

    def texts(self) -> tuple[str, str]:
        one, two = (p.read_bytes().decode("utf-8", "surrogateescape") for p in self.paths)
        return one, two


def without_marks(text: str) -> str:
    """What Slurm reads: our own Include removed, comments left."""
    return "".join(
        part
        for part in physical_lines(text)
        if not any(part.rstrip("\r\n") == f"Include {name}" for name in INCLUDES)
    )


def defined(text: str) -> dict[str, tuple[tuple[str, str], ...]]:
    """Node -> its single-valued pairs, Port and NodeAddr by position."""
    nodes = {}
    for line in parse(without_marks(text), PATH):
        if line.kind != "nodename" or line.pairs[0].value == "DEFAULT":
            continue
        names = expand(line.pairs[0].value, "x")
        lists = {p.key: expand(p.value, "x") for p in line.pairs[1:] if "/" not in p.value}
        for n, name in enumerate(names):
            nodes[name] = tuple((k, v[n] if len(v) > 1 else v[0]) for k, v in lists.items())
    return nodes


@settings(deadline=None, max_examples=150)
@given(configurations(), st.data())
def test_managed_files(conf: tuple[str, str, list[str]], data: st.DataObject) -> None:
    slurm, gres, names = conf
    some = st.sets(st.sampled_from(names), min_size=1)
    one, other = data.draw(some), data.draw(some)
    with tempfile.TemporaryDirectory() as directory:
        disk = Disk(directory, slurm, gres)
        direct = disk.manage(other)
        disk.put(slurm, gres)
        first = disk.manage(one)
        assert disk.manage(one) == first, "idempotent"
        before, after = defined(slurm), defined(first[0])
        assert after == {n: pairs for n, pairs in before.items() if n not in one}
        for text, now in zip((slurm, gres), first, strict=True):
            unchanged = [
                x for x in parse(text, PATH) if x.kind not in ("nodename", "partitionname")
            ]
            assert all(x.raw.rstrip("\n") in now for x in unchanged)
        assert disk.manage(other) == direct, "the way there does not matter"
        assert SlurmFiles(*disk.paths).node_names() == names, "the site's own text is seen"
        assert disk.manage(set()) == (slurm, gres), "left as found"


def split_up(directory: Path, text: str, data: st.DataObject) -> list[Path]:
    """slurm.conf with parts of it in files that it includes, by relative and absolute names, one in
    another, through links; the files that hold the text."""
    lines = [line.raw for line in parse(text, PATH)]
    one = data.draw(st.integers(0, len(lines)))
    two = data.draw(st.integers(one, len(lines)))
    (directory / "inner").mkdir()
    inner, outer, root = directory / "inner" / "b.inc", directory / "a.inc", directory / "root"
    name = data.draw(st.sampled_from(["inner/b.inc", str(inner)]))
    word = data.draw(st.sampled_from(["Include", "include", "INCLUDE"]))
    end = data.draw(st.sampled_from(["\n", "\r\n"]))
    head = "".join(lines[:one])
    head += "" if head.endswith("\n") or not head else "\n"
    texts = {
        inner: "".join(lines[one:two]),
        outer: f"{word} {name}{end}" + "".join(lines[two:]),
        root: f"{head}{word} a.link{end}",
    }
    for path, part in texts.items():
        path.write_bytes(part.encode("utf-8", "surrogateescape"))
    (directory / "a.link").symlink_to(outer)
    (directory / "slurm.conf").symlink_to("root")
    return list(texts)


@settings(deadline=None)
@given(configurations(), st.data())
def test_files_in_files_and_links(conf: tuple[str, str, list[str]], data: st.DataObject) -> None:
    """Wherever a line is, only it changes, in its own file; links stay; leaving undoes all."""
    slurm, gres, names = conf
    enrolled = data.draw(st.sets(st.sampled_from(names), min_size=1))
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        paths = [*split_up(directory, slurm, data), directory / "gres.conf"]
        paths[-1].write_bytes(gres.encode("utf-8", "surrogateescape"))
        conf_link = directory / "slurm.conf"
        before = [path.read_bytes() for path in paths]

        def manage(nodes: set[str]) -> SlurmFiles:
            files = SlurmFiles(conf_link, paths[-1])
            files.write(files.manage(nodes), directory / "backups")
            return SlurmFiles(conf_link, paths[-1])

        assert manage(enrolled).node_names() == names
        now = [path.read_bytes().decode("utf-8", "surrogateescape") for path in paths[:-1]]
        left = [name for text in now for name in defined(text)]
        assert sorted(left) == sorted(set(names) - enrolled)
        assert conf_link.is_symlink()
        assert (directory / "a.link").is_symlink()
        manage(set())
        assert [path.read_bytes() for path in paths] == before


@settings(deadline=None)
@given(configurations())
def test_lines_joined_are_the_text(conf: tuple[str, str, list[str]]) -> None:
    assert "".join(line.raw for line in parse(conf[0], PATH)) == conf[0]


@given(st.text(alphabet='aN=#\\" \t\r\n[],-1', max_size=40), st.text("ab\r\\", max_size=5))
def test_any_line_is_kept_exactly(raw: str, instead: str) -> None:
    block = keep(raw or "x", instead)
    assert undo(f"first\n{add('Include x')}{block}", PATH).text == f"first\n{raw or 'x'}"


@given(configurations(), st.data())
@settings(deadline=None)
def test_an_edit_in_a_block_is_refused(
    conf: tuple[str, str, list[str]], data: st.DataObject
) -> None:
    line = next(line for line in parse(conf[0], PATH) if line.kind == "nodename")
    block = keep(line.raw, "NodeName=rest\n")
    parts = physical_lines(block)
    at = data.draw(st.integers(0, len(parts) - 1))
    changed = data.draw(
        st.sampled_from(
            [
                "".join([*parts[:at], *parts[at + 1 :]]),
                "".join([*parts[: at + 1], "inside\n", *parts[at + 1 :]]),
                "".join([*parts[:at], "x" + parts[at], *parts[at + 1 :]]),
            ]
        )
    )
    at_end = at == len(parts) - 1 and changed.startswith(block.rstrip("\r\n"))
    if at_end:
        return
    with pytest.raises(DriftError):
        undo(changed, PATH)


@given(st.lists(st.from_regex(r"[a-z]{1,3}[0-9]{0,3}(-[0-9]{1,2})?", fullmatch=True), min_size=1))
def test_fold_keeps_names_and_order(names: list[str]) -> None:
    assert expand(fold(names), "x") == names
