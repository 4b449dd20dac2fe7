"""The manual: built with warnings as errors, a page for everything, and no command that is not."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
import sys
import typing
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from slurm_mig import config
from slurm_mig.adapters.installed import Installed, man_pages
from slurm_mig.cli import main as program
from slurm_mig.errors import Exit
from tests.testbed import console

SOURCE = Path(__file__).parents[2]
DOCS = SOURCE / "docs"
PAGES = sorted([*DOCS.glob("*.md"), SOURCE / "README.md"])


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("manual")
    done = subprocess.run(
        [sys.executable, str(SOURCE / "scripts" / "lib" / "manual.py"), str(output)],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return output


def leaves(
    command: click.Command, path: tuple[str, ...] = ("slurm-mig",)
) -> Iterator[tuple[str, click.Command]]:
    """Every command that is no group, by the name of its man page."""
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from leaves(inner, (*path, name))
    else:
        yield "-".join(path), command


def test_every_command_has_a_man_page_with_all_its_options(built: Path) -> None:
    pages = {path.name.rpartition(".")[0]: path for path in (built / "man").iterdir()}
    commands: dict[str, click.Command] = {"slurm-mig": program, **dict(leaves(program))}
    assert set(pages) == {*commands, "slurm-mig.yaml"}
    for name, path in pages.items():
        text = plain(path)
        assert f'.TH "{name.upper()}"' in text
        assert ".SH NAME" in text
        if path.suffix == ".5":
            continue
        for option in commands[name].params:
            for spelling in getattr(option, "opts", ()) if not hidden(option) else ():
                assert spelling in text or isinstance(option, click.Argument), (name, spelling)


SPHINXS = "skipping paragraph macro: sp after SH"
"""What Sphinx's own writer of man pages leaves in each: an empty line that no reader sees."""


def test_mandoc_finds_nothing_in_the_man_pages(built: Path) -> None:
    pages = sorted(map(str, (built / "man").iterdir()))
    found = mandoc("lint", "-W", "warning", *pages).splitlines()
    assert not [line for line in found if SPHINXS not in line]
    for page in pages:
        shown = mandoc("utf8", page)
        assert not re.search(r"<(\S+\.html)?>", shown), "an address that leads nowhere"
        assert f"{Path(page).stem.upper()}(" in shown


def mandoc(form: str, *words: str) -> str:
    """What mandoc says of the pages, without the strokes that make its letters bold."""
    done = subprocess.run(["mandoc", "-T", form, *words], capture_output=True, text=True,
                          check=False)  # fmt: skip
    return re.sub(".\b", "", done.stdout)


def plain(path: Path) -> str:
    """A man page's text without its fonts."""
    return re.sub(r"\\f[BIPR]", "", path.read_text().replace("\\-", "-"))


def hidden(option: click.Parameter) -> bool:
    return isinstance(option, click.Option) and option.hidden


def test_the_man_page_of_the_file_has_every_key_and_default(built: Path) -> None:
    text = plain(built / "man" / "slurm-mig.yaml.5")
    for name in keys(config.Settings):
        assert re.search(rf"\b{name}\b", text, re.I), name
    assert "number, 0 to 86400; default 30" in " ".join(text.split())


def keys(kind: Any) -> Iterator[str]:
    for name, hint in typing.get_type_hints(kind).items():
        item = next(f for f in dataclasses.fields(kind) if f.name == name)
        if not item.metadata.get("derived"):
            yield name
            if dataclasses.is_dataclass(hint):
                yield from keys(hint)


def test_install_takes_the_man_pages_along_where_they_are_built(
    built: Path, tmp_path: Path
) -> None:
    tree = tmp_path / "tree"
    assert not list(man_pages(tree, tmp_path))
    (tree / "build" / "manual").mkdir(parents=True)
    (tree / "build" / "manual" / "man").symlink_to(built / "man")
    put = Installed(tmp_path / "list.json").put(list(man_pages(tree, tmp_path / "root")))
    assert tmp_path / "root/usr/local/share/man/man8/slurm-mig-enrol.8" in put
    assert tmp_path / "root/usr/local/share/man/man5/slurm-mig.yaml.5" in put
    assert Installed(tmp_path / "list.json").take_away() == (put, [])


@pytest.mark.parametrize("there", [True, False])
def test_a_wheel_has_the_man_pages_where_they_are_built(
    built: Path, tmp_path: Path, *, there: bool
) -> None:
    tree = tmp_path / "tree"
    for name in ("slurm_mig", "scripts", "etc"):
        shutil.copytree(SOURCE / name, tree / name)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(SOURCE / name, tree / name)
    if there:
        shutil.copytree(built / "man", tree / "build" / "manual" / "man")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
         "--wheel-dir", str(tmp_path), str(tree)],
        check=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    packed = [name.partition(".data/data/")[2] for name in zipfile.ZipFile(wheel).namelist()]
    assert "share/slurm-mig/scripts/prolog" in packed
    found = {name for name in packed if name.endswith(tuple("158"))}
    folder = "share/slurm-mig/build/manual/man/"
    assert found == {folder + p.name for p in (built / "man").iterdir() if there}


def test_every_exit_code_is_explained(built: Path) -> None:
    text = (built / "man" / "slurm-mig.8").read_text()
    for code in Exit:
        assert f"\\fB{int(code)}\\fP" in text


def test_every_page_is_in_the_manual_and_found_from_its_beginning(built: Path) -> None:
    html = (built / "html" / "index.html").read_text()
    for page in DOCS.glob("*.md"):
        assert (built / "html" / f"{page.stem}.html").exists()
        assert f'href="{page.stem}.html"' in html or page.stem == "index"
    assert 'href="reference/slurm-mig-enrol.html"' in html
    overview = (built / "html" / "reference" / "slurm-mig.html").read_text()
    assert 'href="slurm-mig-enrol.html"' in overview


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_command_that_a_page_names_is_one(page: Path) -> None:
    for text in named(page.read_text(encoding="utf-8")):
        words = text.replace("[", " ").replace("]", " ").split()[1:]
        command: click.Command = program
        while isinstance(command, click.Group) and words and words[0] in command.commands:
            command = command.commands[words.pop(0)]
        assert command is not program or not words or words[0].startswith("-"), text
        known = {
            o for p in (*command.params, *program.params) for o in (*p.opts, *p.secondary_opts)
        }
        for word in words:
            if re.fullmatch(r"--[a-z][a-z-]*", word):
                assert word in known | {"--help", "--version"}, f"{text}: {word}"


def named(text: str) -> Iterator[str]:
    """`slurm-mig …` in running text, in indented blocks and at prompts, up to what ends it."""
    inline = re.findall(r"`(slurm-mig(?: [^`\n]*)?)`", text)
    blocks = re.findall(r"^(?:    |\[root@[\w-]+\]# )(slurm-mig [^\n;|>#]*)", text, re.M)
    for found in (*inline, *blocks):
        yield re.split(r"\s{3,}|\\\|", found)[0]


def test_a_page_that_states_something_else_is_noticed() -> None:
    page = "```console\n[root@head]# a\nx ... z\n...\nend\n[alice@n1]$ b <<E\n> c\n(exit 3)\n```\n"
    first, second, third = console.steps(page + "<!-- testbed: restart slurmctld -->\n")
    assert third.hidden
    assert (first.user, first.host, first.command, first.exit) == ("root", "head", "a", 0)
    assert (second.command, second.exit, second.output) == ("b <<E\nc", 3, "")
    assert console.matches(first.output, "x  y z\n1\n2\nend\n")
    assert console.matches(first.output, "x y z\nend")
    for wrong in ("x y z\nen", "x y\nend", "w x y z\nend", "x y z\nend\nmore"):
        assert not console.matches(first.output, wrong)
    with pytest.raises(ValueError, match="line 2: a console block begins with a prompt"):
        list(console.steps("```console\n$ ls\n```\n"))
