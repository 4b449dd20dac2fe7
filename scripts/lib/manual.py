"""Builds the manual: HTML and man pages from one source, a warning being an error.

    manual.py OUTPUT        OUTPUT/html, OUTPUT/man; OUTPUT/source is what they were built from

The pages are docs/*.md and, generated from the code, one for each command (click's own words, and
docs/verbs for its exit codes and examples) and one for the configuration file (the settings'
classes and the comments of etc/slurm-mig.yaml).
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import math
import re
import shutil
import subprocess
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

SOURCE = Path(__file__).parents[2]
sys.path.insert(0, str(SOURCE))

from slurm_mig import config, errors  # noqa: E402
from slurm_mig.cli import main as program  # noqa: E402

LOOKS = {
    "assert", "catalog", "check", "export", "gres", "history", "inventory", "metrics", "plan",
    "profiles", "report", "snapshot", "status",
}  # fmt: skip
"""Commands that change nothing: section 1, the others 8."""


def main(output: Path) -> None:
    source = output / "source" / "docs"
    shutil.rmtree(output, ignore_errors=True)
    shutil.copytree(SOURCE / "docs", source)
    # What pages link to beside them.
    for folder in ("etc", "scripts"):
        shutil.copytree(SOURCE / folder, source.parent / folder)
    pages = dict(generated())
    (source / "reference").mkdir()
    for name, (text, _, _) in pages.items():
        (source / "reference" / f"{name}.md").write_text(text, encoding="utf-8")
    listed = [[name, short, section] for name, (_, short, section) in pages.items()]
    (source / "reference" / "man.json").write_text(json.dumps(listed))
    # A man page that names another is a link in HTML: to the page beside it.
    for builder, settings in (("html", ["-D", "manpages_url={page}.html"]), ("man", [])):
        subprocess.run(
            [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", builder, *settings,
             "-d", str(output / "doctrees" / builder), str(source), str(output / builder)],
            check=True,
        )  # fmt: skip


def generated() -> Iterator[tuple[str, tuple[str, str, int]]]:
    """Name, text, one line and man section of each generated page."""
    commands = list(leaves(program, ("slurm-mig",)))
    yield "slurm-mig", (overview(commands), "reshapes MIG GPUs to what the Slurm queue asks for", 8)
    for path, command in commands:
        short = command.get_short_help_str(200).rstrip(".")
        yield "-".join(path), (command_page(path, command), short, section_of(path))
    yield "slurm-mig.yaml", (configuration(), "the configuration of slurm-mig", 5)


def section_of(path: tuple[str, ...]) -> int:
    return 1 if path[1] in LOOKS and len(path) == 2 else 8


def manpage(name: str, section: int) -> str:
    """A man page's name and section; in HTML a link to its page."""
    return f"{{manpage}}`{name}({section})`"


def leaves(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command that is no group, in the order of their names."""
    if isinstance(command, click.Group):
        for name in sorted(command.commands):
            yield from leaves(command.commands[name], (*path, name))
    else:
        yield path, command


# -- commands -------------------------------------------------------------------------------------


def command_page(path: tuple[str, ...], command: click.Command) -> str:
    name = " ".join(path)
    context = click.Context(command, info_name=name)
    synopsis = f"{name} {' '.join(command.collect_usage_pieces(context))}"
    lines = [f"# {name}", "", "## Synopsis", "", f"    {synopsis}", "",
             "## Description", "", help_text(command), ""]  # fmt: skip
    records = [param.get_help_record(context) for param in command.get_params(context)]
    options = [record for record in records if record]
    if options:
        lines += ["## Options", ""]
    for names, text in options:
        lines += [f"`{names}`", f": {escaped(text) or 'See above.'}", ""]
    own = SOURCE / "docs" / "verbs" / f"{path[-1]}.md"
    if len(path) == 2 and own.exists():
        lines.append(own.read_text(encoding="utf-8"))
    else:
        lines += ["## Exit codes", "",
                  f"Those of every command, see {manpage('slurm-mig', 8)}.", ""]  # fmt: skip
    return "\n".join(lines)


def help_text(command: click.Command) -> str:
    """The help's paragraphs; one that click must not rewrap is shown as it is."""
    shown = []
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(command.help or "")):
        if paragraph.startswith("\b"):
            shown.append("```text\n" + paragraph.lstrip("\b\n") + "\n```")
        else:
            shown.append(escaped(" ".join(paragraph.split())))
    return "\n\n".join(shown)


def escaped(text: str) -> str:
    """Markdown that shows a plain text: what click prints has no markup of its own."""
    return re.sub(r"([<>*_\[\]{}$|])", r"\\\1", text)


def overview(commands: list[tuple[tuple[str, ...], Any]]) -> str:
    lines = ["# slurm-mig", "", "## Description", "", help_text(program), "", "## Commands", ""]
    for path, command in commands:
        lines += [manpage("-".join(path), section_of(path)),
                  f": {escaped(command.get_short_help_str(200))}", ""]  # fmt: skip
    lines += ["## Options", "", "`-v`, `--verbose`", ": Also log every decision.", "",
              "`--version`", ": Show the version.", "",
              "`-h`, `--help`", ": Show a command's help.", "", "## Exit codes", ""]  # fmt: skip
    for value, text in exit_codes():
        lines += [f"`{value}`", f": {text}", ""]
    lines += ["## Files", "",
              "`/etc/slurm/slurm-mig.yaml`", f": {manpage('slurm-mig.yaml', 5)}",
              "", "## Environment", "", "`SLURM_MIG_CONFIG`", ": Another configuration file.", "",
              "`SLURM_MIG_LAYOUTS`", ": The layout file of apply and assert.", ""]  # fmt: skip
    return "\n".join(lines)


def exit_codes() -> Iterator[tuple[int, str]]:
    """Each code with the words under it in the code."""
    body = ast.parse(inspect.getsource(errors.Exit)).body[0].body  # type: ignore[attr-defined]
    for code, text in zip(body[1::2], body[2::2], strict=True):
        yield code.value.value, text.value.value


# -- the configuration file -----------------------------------------------------------------------


def configuration() -> str:
    """slurm-mig.yaml(5): every key with its type, default, bounds and comment."""
    comments, sections = commented((SOURCE / "etc" / "slurm-mig.yaml").read_text())
    lines = ["# slurm-mig.yaml", "", escaped(comments[""]), ""]
    for item in keys(config.Settings):
        hint = typing.get_type_hints(config.Settings, include_extras=True)[item.name]
        text = comments.get(item.name, "")
        if dataclasses.is_dataclass(hint):
            lines += [f"## {item.name}", "", escaped(text), ""]
            for key in keys(hint):
                lines += entry(hint, key, comments[f"{item.name}.{key.name}"])
        elif item.name == "groups":
            lines += groups(sections["groups"])
        else:
            lines += [f"## {item.name}", "", *entry(config.Settings, item, text)]
    return "\n".join(lines) + "\n"


def groups(comment: str) -> list[str]:
    """Lists have no default to be written out: their keys are shown as they are commented."""
    lines = ["## groups", "", "A list. Each entry has some of:", "", "```yaml", comment, "```", ""]
    for key in keys(config.GroupSettings):
        lines += entry(config.GroupSettings, key, "")
    return lines


def keys(kind: Any) -> list[dataclasses.Field[Any]]:
    return [item for item in dataclasses.fields(kind) if not item.metadata.get("derived")]


def entry(kind: Any, item: dataclasses.Field[Any], text: str) -> list[str]:
    hint = typing.get_type_hints(kind, include_extras=True)[item.name]
    kind_of_value = ", ".join(filter(None, (type_of(hint), escaped(bounds_of(hint)))))
    said = f"*{kind_of_value}; default* {default_of(item)}."
    return [f"`{item.name}`", f": {said} {escaped(text)}".rstrip(), ""]


def default_of(item: dataclasses.Field[Any]) -> str:
    value = item.default
    if item.default_factory is not dataclasses.MISSING:
        value = item.default_factory()
    if value is dataclasses.MISSING:
        return "none, it must be given"
    if value is None:
        return "not set"
    if isinstance(value, float):
        return f"`{value:g}`"
    plain = list(value) if isinstance(value, tuple) else value
    return f"`{json.dumps(plain)}`"


WORDS = {str: "text", float: "number", int: "whole number", bool: "yes or no", tuple: "list"}


def type_of(hint: Any) -> str:
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        return type_of(typing.get_args(hint)[0])
    if origin in (typing.Union, types.UnionType):
        return type_of(next(a for a in typing.get_args(hint) if a is not type(None)))
    return WORDS.get(origin or hint, "keys and values")


def bounds_of(hint: Any) -> str:
    """What a rule of the settings says that a value should be."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return bounds_of(next(a for a in typing.get_args(hint) if a is not type(None)))
    if typing.get_origin(hint) is not typing.Annotated:
        return ""
    kind, rule = typing.get_args(hint)
    if kind is str:
        fault = rule.check("\n")
    elif kind in (int, float):
        fault = rule.check(math.nan)
    else:
        return ""
    return fault.partition(": ")[2].removeprefix("should be ").strip()


def commented(text: str) -> tuple[dict[str, str], dict[str, str]]:
    """Comments by key (`policy.cooldown_s`, `policy`, "" for the file's own) as one paragraph each,
    and by section as they are written."""
    found: dict[str, str] = {}
    verbatim: dict[str, str] = {}
    block: list[str] = []
    section = ""
    for line in text.splitlines():
        if match := re.match(r"\s*#( (.*))?$", line):
            block.append(line.strip().removeprefix("#").removeprefix(" "))
        elif match := re.match(r"( *)([a-z_]+):", line):
            section = section if match[1] else match[2]
            name = f"{section}.{match[2]}" if match[1] else section
            found[name] = " ".join(" ".join(block).split())
            verbatim[name] = "\n".join(block)
            block = []
        else:
            if block and not found:
                found[""] = " ".join(" ".join(block).split())
            block = []
    return found, verbatim


if __name__ == "__main__":
    main(Path(sys.argv[1]))
