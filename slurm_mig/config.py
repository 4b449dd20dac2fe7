"""The one configuration file: YAML in, frozen settings out, every fault of a bad file at once.

`load` is the controller's (pydantic, imported there and nowhere else); `load_node` reads the two
sections that a GPU node needs, with PyYAML alone. Both go by the same classes and the same rules,
so they cannot disagree on what is right. etc/slurm-mig.yaml documents every key.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, TypeVar

import yaml

from slurm_mig.adapters import trust
from slurm_mig.core import windows
from slurm_mig.core.model import is_filler
from slurm_mig.errors import ConfigError

DEFAULT_PATH = "/etc/slurm/slurm-mig.yaml"
SENT_CONF = "/run/slurm/conf/slurm.conf"
"""Where a slurmd without files of its own puts what slurmctld sent (a link to its spool)."""

T = TypeVar("T")
Place = tuple[str | int, ...]
Faults = list[tuple[Place, str]]

NO_TEXT = "should be a text"
NO_LIST = "should be a list"
NO_SECTION = "should be keys and values"
NO_NUMBER = "should be a number"
NO_COUNT = "should be a whole number"


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


def _matches(pattern: str, wanted: str) -> Rule:
    return Rule(lambda text: "" if re.fullmatch(pattern, text) else f"is {text!r}: {wanted}")


def _one_of(*words: str) -> Rule:
    wanted = " or ".join(words)
    return Rule(lambda text: "" if text in words else f"is {text!r}: should be {wanted}")


def _between(low: float, high: float) -> Rule:
    # Stated positively, so that not-a-number fails.
    return Rule(lambda n: "" if low <= n <= high else f"is {n:g}: should be {low:g} to {high:g}")


def _above_zero(high: float) -> Rule:
    wanted = f"should be more than 0 and at most {high:g}"
    return Rule(lambda n: "" if 0 < n <= high else f"is {n:g}: {wanted}")


def _command(words: Sequence[str]) -> str:
    if not words or not words[0]:
        return "should be a program and its arguments"
    return "has a word with a NUL in it" if any("\0" in word for word in words) else ""


def _remote_command(words: Sequence[str]) -> str:
    if fault := _command(words):
        return fault
    local = PurePosixPath(words[0]).name == "slurm-mig"
    return "" if local or any("%h" in word for word in words) else "lacks %h, the node's name"


def _hosts(names: Sequence[str]) -> str:
    bad = [n for n in names if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]*", n)]
    return f"has {bad[0]!r}: should be the names of hosts" if bad else ""


def _gres_type(text: str) -> str:
    if is_filler(text):
        return f"is {text!r}: a filler, which no job may ask for"
    good = re.fullmatch(r"[A-Za-z0-9][\w.+-]*", text, re.ASCII)
    return "" if good else f"is {text!r}: should be a gpu type such as 1g.5gb or a100"


def _maybe_gres_type(text: str) -> str:
    return _gres_type(text) if text else ""


def _node_set(text: str) -> str:
    # Only the outer form: ClusterShell, which reads node sets, is not on a GPU node.
    good = re.fullmatch(r"[\w.-]+(\[[\d,-]+\][\w.-]*)*(,[\w.-]+(\[[\d,-]+\][\w.-]*)*)*", text)
    return "" if good else f"is {text!r}: should be a node set such as a100-[1-2]"


def _gpu_names(words: Sequence[str | int]) -> str:
    if not words:
        return "should have at least one GPU"
    forms = r"\d+|GPU-[0-9a-fA-F-]+|([0-9a-fA-F]{4,8}:)?[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7]"
    # In YAML `true` is a number for Python.
    bad = [w for w in words if isinstance(w, bool) or not re.fullmatch(forms, str(w))]
    return f"has {bad[0]!r}: should be indexes, UUIDs or PCI addresses of GPUs" if bad else ""


def _placements(words: Sequence[str]) -> str:
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
FilePath = Annotated[str, _matches(r"/[!-~]*", "should be an absolute path without spaces")]
MaybePath = Annotated[str, _matches(r"(/[!-~]*)?", "should be an absolute path without spaces")]
Command = Annotated[tuple[str, ...], Rule(_command)]
GresType = Annotated[str, Rule(_gres_type)]
Seconds = Annotated[float, _between(0, 86400)]
Name = Annotated[str, _matches(r"[^\s,]+", "should be one name")]
Points = Annotated[int, _between(0, 1_000_000)]
Deadline = Annotated[float, _above_zero(3600)]
ProfileName = Annotated[str, _matches(PROFILE, "should be a MIG profile such as 3g.20gb")]
Instances = Annotated[int, _between(0, 100_000)]
Windows = Annotated[tuple[str, ...], Rule(_window)]
FREE_FOR = ("waiting", "baseline")
Profiles = Mapping[
    Annotated[str, _matches(PROFILE, "should be a MIG profile such as 3g.20gb")],
    Annotated[int, _between(1, 16)],
]


@dataclass(frozen=True)
class SlurmSettings:
    """Where Slurm's files are, and how what we write reaches the daemons."""

    conf: FilePath = "/etc/slurm/slurm.conf"
    gres_conf: FilePath = "/etc/slurm/gres.conf"
    managed_dir: FilePath = "/etc/slurm/slurm-mig"
    config: Annotated[str, _one_of("shared", "per-host", "configless")] = "shared"
    publish: Annotated[str, _one_of("node", "reconfigure")] = "node"
    reconfigure_interval_s: Seconds = 60.0
    controllers: Annotated[tuple[str, ...], Rule(_hosts)] = ()
    """Hosts of a slurmctld that have copies of their own; the one that this runs on is left out."""
    controller_command: Annotated[tuple[str, ...], Rule(_remote_command)] = (
        "ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=5", "root@%h",
        "slurm-mig", "files", "serve",
    )  # fmt: skip

    @property
    def includes(self) -> tuple[str, str]:
        """Our part of slurm.conf and of gres.conf, as the Include lines name them.

        slurmctld sends an included file to a configless slurmd only if its name has no slash.
        """
        stem = "slurm-mig-" if self.config == "configless" else "slurm-mig/"
        return f"{stem}nodes.conf", f"{stem}gres.conf"

    @property
    def nodes_have_own(self) -> bool:
        """Does a managed node read files of its own?"""
        return self.config == "per-host" or (self.config, self.publish) == ("configless", "node")


@dataclass(frozen=True)
class RemoteSettings:
    """How the controller runs the node command; `%h` is the node's name."""

    command: Annotated[tuple[str, ...], Rule(_remote_command)] = (
        "ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=5", "root@%h",
        "slurm-mig", "node", "serve",
    )  # fmt: skip
    timeout_s: Deadline = 60.0
    observe_s: Deadline = 20.0
    rest_s: Seconds = 30.0
    fanout: Annotated[int, _between(1, 1024)] = 32


@dataclass(frozen=True)
class NodeSettings:
    """What the node command needs on a GPU node. `%n` in the pid file is the node's name."""

    restart_command: Command = ("systemctl", "restart", "slurmd")
    pid_file: FilePath = "/run/slurm/slurmd.pid"
    run_dir: FilePath = "/run/slurm-mig"
    state_dir: FilePath = "/var/lib/slurm-mig"
    restart_deadline_s: Deadline = 30.0
    caps_dir: FilePath = "/dev/nvidia-caps"
    devices: Annotated[str, _one_of("open", "narrow")] = "open"
    leftover: Annotated[str, _one_of("end", "report")] = "end"
    job_map_dir: MaybePath = ""
    cdi: Annotated[str, _matches(r"(/[!-~]*)?", "should be an absolute path or empty")] = ""
    cdi_devices: Annotated[str, _one_of("outside", "all")] = "outside"
    slurm_conf: str = field(default=SlurmSettings.conf, metadata={"derived": True})
    """The file that slurmd reads: `slurm.conf`, or what slurmctld sent; no key of this section."""
    slurm: SlurmSettings = field(default=SlurmSettings(), metadata={"derived": True})


@dataclass(frozen=True)
class OutsideSettings:
    """What an owner other than Slurm has on each node of a group."""

    owner: Annotated[str, _matches(r"[A-Za-z][\w.-]*", "should be one word")]
    gpus: Annotated[tuple[str | int, ...], Rule(_gpu_names)]
    instances: Profiles = field(default_factory=dict)
    placements: Annotated[tuple[str, ...], Rule(_placements)] = ()


@dataclass(frozen=True)
class GroupSettings:
    """Nodes that share a rule; the first group that has a node counts."""

    nodes: Annotated[str, Rule(_node_set)]
    baseline: Profiles | None = None
    """Instances by profile on each GPU; None: the layout found at enrolment."""
    whole_type: Annotated[str, Rule(_maybe_gres_type)] = ""
    mode_change: Annotated[str, _one_of("never", "resetless", "reset")] = "never"
    slots: bool = True
    """No: no fillers; the node's gpu count changes, when no gpu job is there, by a reconfigure."""
    reshape: bool = True
    """No: these nodes stay as they are; what is free on them still counts."""
    cooldown_s: Seconds | None = None
    """Instead of the policy's."""
    baseline_after_s: Seconds | None = None
    """Instead of the policy's."""
    outside: tuple[OutsideSettings, ...] = ()
    """What of these nodes' GPUs is not Slurm's."""
    min_wait_s: Seconds | None = None
    withhold_s: Seconds | None = None
    fence_wait_s: Seconds | None = None
    windows: Windows | None = None
    free_for: Annotated[str, _one_of("", *FREE_FOR)] = ""
    minimum: Mapping[ProfileName, Instances] = field(default_factory=dict)
    """Instances that the group keeps, all its nodes together."""
    maximum: Mapping[ProfileName, Instances] = field(default_factory=dict)
    """Instances that it has at most."""
    max_nodes_in_transition: Annotated[int, _between(0, 1000)] = 0
    max_gpus_in_transition: Annotated[int, _between(0, 10000)] = 0
    exclude_users: tuple[Name, ...] = ()
    exclude_partitions: tuple[Name, ...] = ()
    name: Annotated[str, _matches(r"[\w.-]*", "should be one word")] = ""
    """What commands call it: `@name`. Several groups may share one."""
    repair: Annotated[str, _one_of("", "auto", "report")] = ""
    """Instead of the policy's."""


@dataclass(frozen=True)
class CatalogSettings:
    """Records of nodes that never exist, so that any possible profile queues."""

    nodes: Annotated[int, _between(0, 64)] = 1
    prefix: Annotated[str, _matches(r"[A-Za-z][A-Za-z0-9-]{0,39}", "should be a node name")] = (
        "mig-catalog"
    )


@dataclass(frozen=True)
class SubmitSettings:
    """What the submit plugin does with untyped requests, whole nodes and long names."""

    default_types: Mapping[
        Annotated[str, _matches(r"[^\s,]+", "should be one partition's name")], GresType
    ] = field(default_factory=dict)
    untyped: Annotated[str, _one_of("default", "refuse")] = "default"
    exclusive: Annotated[str, _one_of("explicit", "refuse", "allow")] = "allow"
    long_names: Mapping[
        Annotated[str, _matches(r"[A-Za-z0-9][\w.-]*", "should be the name of a GPU model")],
        Annotated[str, _matches(r"[\w.-]*", "should be one feature, or empty")],
    ] = field(default_factory=dict)


@dataclass(frozen=True)
class WakeSettings:
    """How the submit plugin and slurmctld's hooks have a cycle start at once."""

    file: FilePath = "/run/slurm-mig/ctld/wake"
    min_interval_s: Annotated[float, _between(0, 3600)] = 1.0


@dataclass(frozen=True)
class PolicySettings:
    """When a reshape may happen, in seconds and counts."""

    min_wait_s: Seconds = 0.0
    cooldown_s: Seconds = 30.0
    max_nodes_in_transition: Annotated[int, _between(1, 1000)] = 1
    max_gpus_in_transition: Annotated[int, _between(0, 10000)] = 0
    windows: Windows = ()
    free_for: Annotated[str, _one_of(*FREE_FOR)] = "waiting"
    repair: Annotated[str, _one_of("auto", "report")] = "auto"
    withhold_s: Seconds = 3600.0
    fence_wait_s: Seconds = 0.0
    reservations: tuple[
        Annotated[str, _matches(r"[^\s,]+", "should be a reservation's name")], ...
    ] = ()
    withhold_jobs: Annotated[int, _between(0, 1000)] = 4
    starts_soon_s: Seconds = 0.0
    max_jobs_per_user: Annotated[int, _between(0, 100000)] = 0
    max_jobs_per_account: Annotated[int, _between(0, 100000)] = 0
    exclude_users: tuple[Name, ...] = ()
    exclude_partitions: tuple[Name, ...] = ()
    baseline_after_s: Seconds = 0.0
    settle_s: Annotated[float, _between(0, 3600)] = 10.0
    fence_deadline_s: Deadline = 60.0
    quarantine_after_s: Seconds = 600.0


@dataclass(frozen=True)
class WeightSettings:
    """The objective's numbers, in points (docs/planner.md)."""

    job: Points = 100
    publish: Points = 20
    create: Points = 2
    destroy: Points = 4
    room: Points = 2
    baseline: Points = 1
    mode: Points = 400
    reset: Points = 400


@dataclass(frozen=True)
class PlannerSettings:
    """How the planner decides."""

    time_limit_s: Deadline = 10.0


@dataclass(frozen=True)
class MonitoringSettings:
    """What each cycle leaves for others to read."""

    metrics_file: MaybePath = ""
    report_file: MaybePath = ""
    report_interval_s: Seconds = 30.0
    report_hours: Annotated[float, _above_zero(8784)] = 24.0


@dataclass(frozen=True)
class Settings:
    """The whole file."""

    slurm: SlurmSettings = SlurmSettings()
    state_dir: FilePath = "/var/lib/slurm-mig"
    remote: RemoteSettings = RemoteSettings()
    node: NodeSettings = NodeSettings()
    groups: tuple[GroupSettings, ...] = ()
    catalog: CatalogSettings = CatalogSettings()
    submit: SubmitSettings = SubmitSettings()
    wake: WakeSettings = WakeSettings()
    policy: PolicySettings = PolicySettings()
    planner: PlannerSettings = PlannerSettings()
    weights: WeightSettings = WeightSettings()
    monitoring: MonitoringSettings = MonitoringSettings()


def load(path: Path) -> Settings:
    """The controller's settings. Raises ConfigError listing every fault as `file:line: key: …`."""
    document = _Document.read(path)
    faults = list(document.faults)
    data = _without_unknown(Settings, document.data, (), faults)
    settings = _validated(data, faults)
    _check_managed_dir(data, faults)
    if faults or settings is None:
        raise _bad(document, faults)
    node = _with_slurm(settings.node, settings.slurm)
    return dataclasses.replace(settings, node=node)


def load_node(path: Path) -> NodeSettings:
    """A GPU node's settings, without pydantic: sections `node` and `slurm`; the others' keys are
    the controller's business. Raises ConfigError listing every fault."""
    document = _Document.read(path)
    faults = list(document.faults)
    ours = ("node", "slurm")
    faults += [((key,), _unknown(key, _keys(Settings))) for key in document.data
               if key not in _keys(Settings)]  # fmt: skip
    read = {key: document.data[key] for key in ours if document.data.get(key) is not None}
    data = _without_unknown(Settings, read, (), faults)
    slurm = _by_hand(SlurmSettings, data.get("slurm", {}), ("slurm",), faults)
    values = _by_hand(NodeSettings, data.get("node", {}), ("node",), faults)
    if faults:
        raise _bad(document, faults)
    return _with_slurm(NodeSettings(**values), SlurmSettings(**slurm))


def _with_slurm(node: NodeSettings, slurm: SlurmSettings) -> NodeSettings:
    """What the node section takes from the other one."""
    sent = (slurm.config, slurm.publish) == ("configless", "reconfigure")
    return dataclasses.replace(node, slurm=slurm, slurm_conf=SENT_CONF if sent else slurm.conf)


def _keys(kind: Any) -> list[str]:
    return [f.name for f in dataclasses.fields(kind) if not f.metadata.get("derived")]


def _unknown(key: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    return f"unknown key, did you mean {near[0]}?" if near else "unknown key"


def _without_unknown(kind: Any, data: Mapping[str, Any], at: Place, faults: Faults) -> Any:
    """The data without keys that nobody reads, each a fault, and without those left empty."""
    hints = typing.get_type_hints(kind)
    kept: dict[str, Any] = {}
    for key, value in data.items():
        if key not in _keys(kind):
            faults.append(((*at, key), _unknown(key, _keys(kind))))
        elif value is not None or not _may_be_empty(kind, key):
            kept[key] = _inside(hints[key], value, (*at, key), faults)
    return kept


def _may_be_empty(kind: Any, key: str) -> bool:
    """True for `policy:` with every key commented out, and for what is nothing by default."""
    item = next(f for f in dataclasses.fields(kind) if f.name == key)
    nothing = item.default in ("", (), None) or item.default_factory is not dataclasses.MISSING
    return nothing or dataclasses.is_dataclass(item.default)


def _inside(hint: Any, value: Any, at: Place, faults: Faults) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return _without_unknown(hint, value, at, faults)
    item = next(iter(typing.get_args(hint)), None)
    if (
        typing.get_origin(hint) is tuple
        and dataclasses.is_dataclass(item)
        and isinstance(value, list)
    ):
        return [_inside(item, v, (*at, n), faults) for n, v in enumerate(value)]
    return value


def _validated(data: Mapping[str, Any], faults: Faults) -> Settings | None:
    """Everything checked by pydantic; its faults are added."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(Settings).validate_python(dict(data))
    except ValidationError as error:
        for found in error.errors(include_url=False):
            # "[key]" marks a fault of a mapping's key rather than of its value.
            place = tuple(p for p in found["loc"] if p != "[key]")
            faults.append((place, MESSAGES.get(found["type"]) or found["msg"]))
        return None


MESSAGES = {
    "string_type": NO_TEXT,
    "tuple_type": NO_LIST,
    "dataclass_type": NO_SECTION,
    "mapping_type": NO_SECTION,
    "dict_type": NO_SECTION,
    "float_type": NO_NUMBER,
    "int_type": NO_COUNT,
    "missing": "is missing",
}
"""pydantic's error types in the words that `load_node` uses."""


def _by_hand(kind: Any, data: Any, at: Place, faults: Faults) -> dict[str, Any]:
    """One section's values, checked without pydantic: texts, numbers and lists of texts."""
    if not isinstance(data, dict):
        faults.append((at, NO_SECTION))
        return {}
    hints = typing.get_type_hints(kind, include_extras=True)
    values: dict[str, Any] = {}
    for key, value in data.items():
        wanted, rule = typing.get_args(hints[key])
        found = list(_type_faults(wanted, value, (*at, key)))
        if not found and (fault := rule.check(value)):
            found = [((*at, key), fault)]
        faults += found
        values[key] = tuple(value) if isinstance(value, list) else value
    return values


def _type_faults(wanted: Any, value: Any, at: Place) -> Iterator[tuple[Place, str]]:
    if wanted is str:
        if not isinstance(value, str):
            yield at, NO_TEXT
    elif wanted is float:
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            yield at, NO_NUMBER
    elif not isinstance(value, list):
        yield at, NO_LIST
    else:
        yield from (((*at, n), NO_TEXT) for n, v in enumerate(value) if not isinstance(v, str))


def _check_managed_dir(data: Mapping[str, Any], faults: Faults) -> None:
    """Slurm reads our files through Include lines that are relative to slurm.conf."""
    section = data.get("slurm")
    given = section if isinstance(section, dict) else {}
    conf = given.get("conf", SlurmSettings.conf)
    managed = given.get("managed_dir", SlurmSettings.managed_dir)
    if not isinstance(conf, str) or not isinstance(managed, str):
        return
    wanted = PurePosixPath(conf).parent / "slurm-mig"
    if PurePosixPath(managed) != wanted:
        fault = f"is {managed!r}: should be {wanted}, beside slurm.conf, which includes it"
        faults.append((("slurm", "managed_dir"), fault))


def _bad(document: _Document, faults: Faults) -> ConfigError:
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


class _NotedError(Exception):
    """The value is faulty; its fault is noted."""


class _Document:
    """A YAML file with the line of each key, and the faults of YAML itself."""

    def __init__(self, path: Path, root: yaml.Node | None) -> None:
        self.path = path
        self.faults: Faults = []
        self._lines: dict[Place, int] = {(): 1}
        self._around: list[yaml.Node] = []
        self.data: dict[str, Any] = {}
        try:
            data = None if root is None else self._value(root, ())
        except _NotedError:
            return
        if isinstance(data, dict):
            self.data = data
        elif data is not None:
            self.faults.append(((), NO_SECTION))

    @classmethod
    def read(cls, path: Path) -> _Document:
        trust.refuse_writable(
            "the configuration", path, trust.slurms_own(path.with_name("slurm.conf"))
        )
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

    def _value(self, node: yaml.Node, place: Place) -> Any:
        self._lines.setdefault(place, node.start_mark.line + 1)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, place)
        if node in self._around:
            self.faults.append((place, "contains itself"))
            raise _NotedError
        self._around.append(node)
        try:
            if isinstance(node, yaml.MappingNode):
                return dict(self._items(node, place))
            return list(self._sequence(node, place))
        finally:
            self._around.pop()

    def _scalar(self, node: yaml.ScalarNode, place: Place) -> Any:
        try:
            return yaml.SafeLoader("").construct_object(node)
        except (yaml.YAMLError, ValueError) as error:
            # An unknown tag, or a date such as 2026-13-40, which YAML takes for one.
            reason = error.problem if isinstance(error, yaml.MarkedYAMLError) else error
            self.faults.append((place, f"is no value: {reason}"))
            raise _NotedError from error

    def _sequence(self, node: yaml.Node, place: Place) -> Iterator[Any]:
        for n, item in enumerate(node.value):
            try:
                yield self._value(item, (*place, n))
            except _NotedError:
                continue

    def _items(self, node: yaml.MappingNode, place: Place) -> Iterator[tuple[str, Any]]:
        seen: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self.faults.append((place, f"a key should be one word (line {line})"))
                continue
            key = str(key_node.value)
            where = (*place, key)
            self._lines[where] = line
            if key in seen:
                self.faults.append((where, f"given twice (first at line {seen[key]})"))
            seen.setdefault(key, line)
            try:
                yield key, self._value(value_node, where)
            except _NotedError:
                continue
