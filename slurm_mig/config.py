"""The one configuration file: YAML in, frozen settings out, every fault of a bad file at once.

`load` is the controller's (pydantic, imported there and nowhere else); `load_node` reads the two
sections that a GPU node needs, with PyYAML alone. etc/slurm-mig.yaml documents every key.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from slurm_mig.errors import ConfigError

DEFAULT_PATH = "/etc/slurm/slurm-mig.yaml"

Place = tuple[str | int, ...]


@dataclass(frozen=True)
class SlurmSettings:
    """Where Slurm's files are, and how what we write reaches the daemons."""

    conf: str = "/etc/slurm/slurm.conf"
    gres_conf: str = "/etc/slurm/gres.conf"
    managed_dir: str = "/etc/slurm/slurm-mig"


@dataclass(frozen=True)
class RemoteSettings:
    """How the controller runs the node command; `%h` is the node's name."""

    command: tuple[str, ...] = (
        "ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=5", "root@%h",
        "slurm-mig", "node", "serve",
    )  # fmt: skip
    timeout_s: float = 60.0


@dataclass(frozen=True)
class NodeSettings:
    """What the node command needs on a GPU node. `%n` in the pid file is the node's name."""

    restart_command: tuple[str, ...] = ("systemctl", "restart", "slurmd")
    pid_file: str = "/run/slurm/slurmd.pid"
    run_dir: str = "/run/slurm-mig"
    restart_deadline_s: float = 30.0
    caps_dir: str = "/dev/nvidia-caps"
    slurm_conf: str = "/etc/slurm/slurm.conf"
    """Taken from `slurm.conf`, not from the `node` section."""


@dataclass(frozen=True)
class GroupSettings:
    """Nodes that share a rule; the first group that has a node counts."""

    nodes: str = ""
    whole_type: str = ""


@dataclass(frozen=True)
class CatalogSettings:
    """Records of nodes that never exist, so that any possible profile queues."""

    nodes: int = 1
    prefix: str = "mig-catalog"


@dataclass(frozen=True)
class SubmitSettings:
    """What the submit plugin does with `--gres=gpu:1`."""

    default_types: Mapping[str, str] = field(default_factory=dict)
    untyped: str = "default"


@dataclass(frozen=True)
class PolicySettings:
    """When a reshape may happen, in seconds and counts."""

    min_wait_s: float = 0.0
    cooldown_s: float = 30.0
    max_nodes_in_transition: int = 1
    settle_s: float = 10.0
    fence_deadline_s: float = 60.0


@dataclass(frozen=True)
class Settings:
    """The whole file."""

    slurm: SlurmSettings = SlurmSettings()
    state_dir: str = "/var/lib/slurm-mig"
    remote: RemoteSettings = RemoteSettings()
    node: NodeSettings = NodeSettings()
    groups: tuple[GroupSettings, ...] = ()
    catalog: CatalogSettings = CatalogSettings()
    submit: SubmitSettings = SubmitSettings()
    policy: PolicySettings = PolicySettings()


def load(path: Path) -> Settings:
    """The controller's settings. Raises ConfigError listing every fault as `file:line: key: …`."""
    document = _Document.read(path)
    settings, faults = _validate(document.data)
    faults = [*document.faults, *faults]
    if faults or settings is None:
        raise _bad(document, faults)
    return settings


def load_node(path: Path) -> NodeSettings:
    """A GPU node's settings; a node without the file has the defaults. Raises ConfigError."""
    if not path.exists():
        return NodeSettings()
    document = _Document.read(path)
    faults = list(document.faults)
    section = document.section("node", faults)
    values: dict[str, Any] = {}
    for item in dataclasses.fields(NodeSettings):
        if item.name in section:
            value, fault = _plain(item, section[item.name])
            values[item.name] = value
            faults += [(("node", item.name), fault)] if fault else []
    unknown = set(section) - {f.name for f in dataclasses.fields(NodeSettings)}
    faults += [(("node", key), "unknown key") for key in sorted(map(str, unknown))]
    values["slurm_conf"] = document.section("slurm", faults).get("conf", SlurmSettings.conf)
    if faults:
        raise _bad(document, faults)
    return NodeSettings(**values)


def _plain(item: dataclasses.Field[Any], value: Any) -> tuple[Any, str]:
    """A value checked against its default's type, without pydantic."""
    if isinstance(item.default, tuple):
        if isinstance(value, list) and value and all(isinstance(v, str) for v in value):
            return tuple(value), ""
        return value, "should be a list of words"
    if isinstance(item.default, float):
        ok = isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
        return value, "" if ok else "should be a positive number"
    return value, "" if isinstance(value, str) and value else "should be a text"


def _bad(document: _Document, faults: Sequence[tuple[Place, str]]) -> ConfigError:
    lines = sorted(
        (document.line(place), f"{document.path}:{document.line(place)}: {_dotted(place)}{what}")
        for place, what in faults
    )
    return ConfigError(
        "\n".join(["bad configuration; nothing was changed", *(text for _, text in lines)]),
        hint="etc/slurm-mig.yaml documents every key.",
    )


def _dotted(place: Place) -> str:
    text = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in place).lstrip(".")
    return f"{text}: " if text else ""


class _Document:
    """A YAML file with the line of each key, and the faults of YAML itself."""

    def __init__(self, path: Path, root: yaml.Node | None) -> None:
        self.path = path
        self.faults: list[tuple[Place, str]] = []
        self._lines: dict[Place, int] = {(): 1}
        self.data: Any = {} if root is None else self._value(root, ())
        if not isinstance(self.data, dict):
            self.faults.append(((), "should be keys and values"))
            self.data = {}

    @classmethod
    def read(cls, path: Path) -> _Document:
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"cannot read {path}: {error.strerror}",
                hint="Copy etc/slurm-mig.yaml there, or name another file with --config.",
            ) from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path} is not UTF-8 text") from error
        try:
            return cls(path, yaml.compose(text, yaml.SafeLoader))
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = mark.line + 1 if mark else 1
            raise ConfigError(f"{path}:{line}: not YAML: {error.problem}") from error
        except yaml.YAMLError as error:
            raise ConfigError(f"{path}: not YAML: {error}") from error

    def line(self, place: Place) -> int:
        """The line of a place, or of the nearest thing around it."""
        while place not in self._lines:
            place = place[:-1]
        return self._lines[place]

    def section(self, name: str, faults: list[tuple[Place, str]]) -> dict[str, Any]:
        value = self.data.get(name) or {}
        if isinstance(value, dict):
            return value
        faults.append(((name,), "should be keys and values"))
        return {}

    def _value(self, node: yaml.Node, place: Place) -> Any:
        self._lines.setdefault(place, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            return dict(self._items(node, place))
        if isinstance(node, yaml.SequenceNode):
            return [self._value(v, (*place, n)) for n, v in enumerate(node.value)]
        return yaml.SafeLoader("").construct_object(node)

    def _items(self, node: yaml.MappingNode, place: Place) -> Iterator[tuple[str, Any]]:
        seen: set[str] = set()
        for key_node, value_node in node.value:
            key = str(key_node.value)
            where = (*place, key)
            if key in seen:
                line = key_node.start_mark.line + 1
                self.faults.append((where, f"given twice (again at line {line})"))
            seen.add(key)
            self._lines[where] = key_node.start_mark.line + 1
            yield key, self._value(value_node, where)


def _validate(data: Mapping[str, Any]) -> tuple[Settings | None, list[tuple[Place, str]]]:
    """Check everything with pydantic; the faults by place."""
    from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
    from pydantic.dataclasses import dataclass as checked

    strict = ConfigDict(extra="forbid")
    made: dict[type, type] = {}

    def model(kind: type) -> type:
        """The settings class as a pydantic one, with its nested classes likewise."""
        if kind not in made:
            names = {"__annotations__": dict(_annotations(kind, model)), "__doc__": kind.__doc__}
            for item in dataclasses.fields(kind):
                names[item.name] = _default(item, Field)
            made[kind] = checked(config=strict, frozen=True)(type(kind.__name__, (), names))
        return made[kind]

    found: Any = None
    try:
        found = TypeAdapter(model(Settings)).validate_python(dict(data))
    except ValidationError as error:
        return None, [(_place(e["loc"]), _message(e)) for e in error.errors()]
    settings: Settings = _back(Settings, found)
    return settings, list(_further(settings))


def _annotations(kind: type, model: Any) -> Iterator[tuple[str, Any]]:
    import typing

    for name, hint in typing.get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            yield name, model(hint)
        elif hint == tuple[GroupSettings, ...]:
            yield name, tuple[model(GroupSettings), ...]  # type: ignore[misc]
        else:
            yield name, hint


LIMITS: dict[str, dict[str, float]] = {
    "timeout_s": {"gt": 0, "le": 3600},
    "restart_deadline_s": {"gt": 0, "le": 3600},
    "min_wait_s": {"ge": 0, "le": 86400},
    "cooldown_s": {"ge": 0, "le": 86400},
    "settle_s": {"ge": 0, "le": 3600},
    "fence_deadline_s": {"gt": 0, "le": 3600},
    "max_nodes_in_transition": {"ge": 1, "le": 1000},
    "command": {"min_length": 1},
    "restart_command": {"min_length": 1},
}


def _default(item: dataclasses.Field[Any], make: Any) -> Any:
    limits = LIMITS.get(item.name, {})
    if item.name == "nodes" and isinstance(item.default, int):
        limits = {"ge": 0, "le": 64}
    if dataclasses.is_dataclass(item.default) or item.default is dataclasses.MISSING:
        return make(default_factory=dict) if item.name == "default_types" else make(default={})
    return make(default=item.default, **limits)


def _place(location: Sequence[Any]) -> Place:
    return tuple(p for p in location if isinstance(p, (str, int)))


def _message(error: Mapping[str, Any]) -> str:
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        near = difflib.get_close_matches(str(error["loc"][-1]), _all_keys(), n=1)
        return f"unknown key{f', did you mean {near[0]}?' if near else ''}"
    text = str(error["msg"])
    return text[:1].lower() + text[1:]


def _all_keys() -> list[str]:
    kinds = (
        Settings, SlurmSettings, RemoteSettings, NodeSettings, GroupSettings, CatalogSettings,
        SubmitSettings, PolicySettings,
    )  # fmt: skip
    return [f.name for kind in kinds for f in dataclasses.fields(kind)]


def _back(kind: Any, value: Any) -> Any:
    """The checked value as our own frozen class."""
    values: dict[str, Any] = {}
    for item in dataclasses.fields(kind):
        found = getattr(value, item.name)
        default = item.default
        if dataclasses.is_dataclass(default):
            found = default if found == {} else _back(type(default), found)
        elif item.name == "groups":
            found = tuple(_back(GroupSettings, g) for g in found)
        values[item.name] = found
    return kind(**values)


def _further(settings: Settings) -> Iterator[tuple[Place, str]]:
    """What a type cannot say."""
    local = settings.remote.command[0].rpartition("/")[2] == "slurm-mig"
    if not local and not any("%h" in word for word in settings.remote.command):
        yield ("remote", "command"), "lacks %h, the node's name"
    if settings.submit.untyped not in ("default", "refuse"):
        yield ("submit", "untyped"), f"is {settings.submit.untyped!r}: should be default or refuse"
    for number, group in enumerate(settings.groups):
        if not group.nodes:
            yield ("groups", number), "lacks nodes"
