"""What the submit plugin must know, as a Lua table that etc/job_submit.lua reads."""

from __future__ import annotations

from collections.abc import Collection, Mapping


def _text(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _list(values: Collection[str]) -> str:
    return "{ " + ", ".join(map(_text, sorted(values))) + " }"


def submit_table(
    default_types: Mapping[str, str],
    untyped: str,
    possible: Mapping[str, Collection[str]],
    fillers: Collection[str],
) -> str:
    """`return { … }`: default type and possible types by partition, and what nobody may ask for."""
    defaults = ", ".join(f"[{_text(k)}] = {_text(v)}" for k, v in sorted(default_types.items()))
    types = ", ".join(f"[{_text(k)}] = {_list(v)}" for k, v in sorted(possible.items()))
    return (
        "-- Written by slurm-mig: do not edit.\n"
        "return {\n"
        f"  untyped = {_text(untyped)},\n"
        f"  default_types = {{ {defaults} }},\n"
        f"  possible = {{ {types} }},\n"
        f"  fillers = {_list(fillers)},\n"
        "}\n"
    )
