"""What a setting must satisfy besides its type, and the kinds of settings that are made of that.

The classes of config.py are annotated with these. pydantic asks a rule on the controller, config.py
itself on a GPU node: so both go by the same words.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated, Any, TypeVar

from slurm_mig.core import windows
from slurm_mig.core.model import is_filler

T = TypeVar("T")


@dataclass(frozen=True)
class Rule:
    """What a value must satisfy besides its type: `check` says what is wrong, or nothing."""

    check: Callable[[Any], str]

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        """pydantic's protocol for a marker of its own: its type check first, then ours."""
        from pydantic_core import core_schema

        schema = handler(source)
        if schema["type"] in ("int", "float"):
            # Not "60" and not `yes`: what load_node refuses, load must refuse.
            schema["strict"] = True
        return core_schema.no_info_after_validator_function(self._passed, schema)

    def _passed(self, value: T) -> T:
        from pydantic_core import PydanticCustomError

        if fault := self.check(value):
            raise PydanticCustomError("rule", "{fault}", {"fault": fault})
        return value


def matches(pattern: str, wanted: str) -> Rule:
    return Rule(lambda text: "" if re.fullmatch(pattern, text) else f"is {text!r}: {wanted}")


def one_of(*words: str) -> Rule:
    wanted = " or ".join(words)
    return Rule(lambda text: "" if text in words else f"is {text!r}: should be {wanted}")


def between(low: float, high: float) -> Rule:
    # Stated positively, so that not-a-number fails.
    return Rule(lambda n: "" if low <= n <= high else f"is {n:g}: should be {low:g} to {high:g}")


def above_zero(high: float) -> Rule:
    wanted = f"should be more than 0 and at most {high:g}"
    return Rule(lambda n: "" if 0 < n <= high else f"is {n:g}: {wanted}")


def _command(words: Sequence[str]) -> str:
    if not words or not words[0]:
        return "should be a program and its arguments"
    return "has a word with a NUL in it" if any("\0" in word for word in words) else ""


def is_remote_command(words: Sequence[str]) -> str:
    if fault := _command(words):
        return fault
    local = PurePosixPath(words[0]).name == "slurm-mig"
    return "" if local or any("%h" in word for word in words) else "lacks %h, the node's name"


def are_hosts(names: Sequence[str]) -> str:
    bad = [n for n in names if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]*", n)]
    return f"has {bad[0]!r}: should be the names of hosts" if bad else ""


def _gres_type(text: str) -> str:
    if is_filler(text):
        return f"is {text!r}: a filler, which no job may ask for"
    good = re.fullmatch(r"[A-Za-z0-9][\w.+-]*", text, re.ASCII)
    return "" if good else f"is {text!r}: should be a gpu type such as 1g.5gb or a100"


def is_gres_type_or_empty(text: str) -> str:
    return _gres_type(text) if text else ""


def is_node_set(text: str) -> str:
    # Only the outer form: ClusterShell, which reads node sets, is not on a GPU node.
    good = re.fullmatch(r"[\w.-]+(\[[\d,-]+\][\w.-]*)*(,[\w.-]+(\[[\d,-]+\][\w.-]*)*)*", text)
    return "" if good else f"is {text!r}: should be a node set such as a100-[1-2]"


def are_gpus(words: Sequence[str | int]) -> str:
    if not words:
        return "should have at least one GPU"
    forms = r"\d+|GPU-[0-9a-fA-F-]+|([0-9a-fA-F]{4,8}:)?[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7]"
    # In YAML `true` is a number for Python.
    bad = [w for w in words if isinstance(w, bool) or not re.fullmatch(forms, str(w))]
    return f"has {bad[0]!r}: should be indexes, UUIDs or PCI addresses of GPUs" if bad else ""


def are_placements(words: Sequence[str]) -> str:
    bad = [word for word in words if not re.fullmatch(rf"{PROFILE}@\d+", word)]
    return f"has {bad[0]!r}: should be places such as 3g.20gb@4" if bad else ""


def _window(texts: Sequence[str]) -> str:
    for text in texts:
        try:
            windows.parse(text)
        except ValueError as error:
            return str(error)
    return ""


PROFILE = r"\d+g\.\d+gb([+-][a-z.]+)?"
# No space: the slot map and Slurm's files are read word by word.
FilePath = Annotated[str, matches(r"/[!-~]*", "should be an absolute path without spaces")]
MaybePath = Annotated[str, matches(r"(/[!-~]*)?", "should be an absolute path without spaces")]
Command = Annotated[tuple[str, ...], Rule(_command)]
GresType = Annotated[str, Rule(_gres_type)]
Seconds = Annotated[float, between(0, 86400)]
Name = Annotated[str, matches(r"[^\s,]+", "should be one name")]
Points = Annotated[int, between(0, 1_000_000)]
Deadline = Annotated[float, above_zero(3600)]
ProfileName = Annotated[str, matches(PROFILE, "should be a MIG profile such as 3g.20gb")]
Instances = Annotated[int, between(0, 100_000)]
Windows = Annotated[tuple[str, ...], Rule(_window)]
FREE_FOR = ("waiting", "baseline")
Profiles = Mapping[
    Annotated[str, matches(PROFILE, "should be a MIG profile such as 3g.20gb")],
    Annotated[int, between(1, 16)],
]
