"""The one configuration file: YAML in, frozen settings out, every fault of a bad file at once.

`load` is the controller's (pydantic, imported there and nowhere else); `load_node` reads the two
sections that a GPU node needs, with PyYAML alone. Both go by the same classes and the same rules,
so they cannot disagree on what is right. etc/slurm-mig.yaml documents every key.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from slurm_mig.configfile import (
    NO_COUNT,
    NO_LIST,
    NO_NUMBER,
    NO_SECTION,
    NO_TEXT,
    Document,
    Faults,
    Place,
    bad,
)
from slurm_mig.configrules import (
    FREE_FOR,
    Command,
    Deadline,
    FilePath,
    GresType,
    Instances,
    MaybePath,
    Name,
    Points,
    ProfileName,
    Profiles,
    Rule,
    Seconds,
    Windows,
    above_zero,
    are_gpus,
    are_hosts,
    are_placements,
    between,
    is_gres_type_or_empty,
    is_node_set,
    is_remote_command,
    matches,
    one_of,
)

DEFAULT_PATH = "/etc/slurm/slurm-mig.yaml"
SENT_CONF = "/run/slurm/conf/slurm.conf"
"""Where a slurmd without files of its own puts what slurmctld sent (a link to its spool)."""


@dataclass(frozen=True)
class SlurmSettings:
    """Where Slurm's files are, and how what we write reaches the daemons."""

    conf: FilePath = "/etc/slurm/slurm.conf"
    gres_conf: FilePath = "/etc/slurm/gres.conf"
    managed_dir: FilePath = "/etc/slurm/slurm-mig"
    config: Annotated[str, one_of("shared", "per-host", "configless")] = "shared"
    publish: Annotated[str, one_of("node", "reconfigure")] = "node"
    reconfigure_interval_s: Seconds = 60.0
    controllers: Annotated[tuple[str, ...], Rule(are_hosts)] = ()
    """Hosts of a slurmctld that have copies of their own; the one that this runs on is left out."""
    controller_command: Annotated[tuple[str, ...], Rule(is_remote_command)] = (
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

    command: Annotated[tuple[str, ...], Rule(is_remote_command)] = (
        "ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=5", "root@%h",
        "slurm-mig", "node", "serve",
    )  # fmt: skip
    timeout_s: Deadline = 60.0
    observe_s: Deadline = 20.0
    rest_s: Seconds = 30.0
    fanout: Annotated[int, between(1, 1024)] = 32


@dataclass(frozen=True)
class NodeSettings:
    """What the node command needs on a GPU node. In the pid file `%n` is the node's name, `%h` the
    host's."""

    restart_command: Command = ("systemctl", "restart", "slurmd")
    pid_file: FilePath = "/run/slurmd.pid"
    run_dir: FilePath = "/run/slurm-mig"
    state_dir: FilePath = "/var/lib/slurm-mig"
    restart_deadline_s: Deadline = 30.0
    caps_dir: FilePath = "/dev/nvidia-caps"
    devices: Annotated[str, one_of("open", "narrow")] = "open"
    leftover: Annotated[str, one_of("end", "report")] = "end"
    job_map_dir: MaybePath = ""
    cdi: Annotated[str, matches(r"(/[!-~]*)?", "should be an absolute path or empty")] = ""
    cdi_devices: Annotated[str, one_of("outside", "all")] = "outside"
    slurm_conf: str = field(default=SlurmSettings.conf, metadata={"derived": True})
    """The file that slurmd reads: `slurm.conf`, or what slurmctld sent; no key of this section."""
    slurm: SlurmSettings = field(default=SlurmSettings(), metadata={"derived": True})


@dataclass(frozen=True)
class OutsideSettings:
    """What an owner other than Slurm has on each node of a group."""

    owner: Annotated[str, matches(r"[A-Za-z][\w.-]*", "should be one word")]
    gpus: Annotated[tuple[str | int, ...], Rule(are_gpus)]
    instances: Profiles = field(default_factory=dict)
    placements: Annotated[tuple[str, ...], Rule(are_placements)] = ()


@dataclass(frozen=True)
class GroupSettings:
    """Nodes that share a rule; the first group that has a node counts."""

    nodes: Annotated[str, Rule(is_node_set)]
    baseline: Profiles | None = None
    """Instances by profile on each GPU; None: the layout found at enrolment."""
    whole_type: Annotated[str, Rule(is_gres_type_or_empty)] = ""
    mode_change: Annotated[str, one_of("never", "resetless", "reset")] = "never"
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
    free_for: Annotated[str, one_of("", *FREE_FOR)] = ""
    starts_soon_s: Seconds | None = None
    minimum: Mapping[ProfileName, Instances] = field(default_factory=dict)
    """Instances that the group keeps, all its nodes together."""
    maximum: Mapping[ProfileName, Instances] = field(default_factory=dict)
    """Instances that it has at most."""
    max_nodes_in_transition: Annotated[int, between(0, 1000)] = 0
    max_gpus_in_transition: Annotated[int, between(0, 10000)] = 0
    max_jobs_per_user: Annotated[int, between(0, 100000)] = 0
    max_jobs_per_account: Annotated[int, between(0, 100000)] = 0
    exclude_users: tuple[Name, ...] = ()
    exclude_partitions: tuple[Name, ...] = ()
    name: Annotated[str, matches(r"[\w.-]*", "should be one word")] = ""
    """What commands call it: `@name`. Several groups may share one."""
    repair: Annotated[str, one_of("", "auto", "report")] = ""
    """Instead of the policy's."""


@dataclass(frozen=True)
class CatalogSettings:
    """Records of nodes that never exist, so that any possible profile queues."""

    nodes: Annotated[int, between(0, 64)] = 1
    prefix: Annotated[str, matches(r"[A-Za-z][A-Za-z0-9-]{0,39}", "should be a node name")] = (
        "mig-catalog"
    )


@dataclass(frozen=True)
class SubmitSettings:
    """What the submit plugin does with untyped requests, whole nodes and long names."""

    default_types: Mapping[
        Annotated[str, matches(r"[^\s,]+", "should be one partition's name")], GresType
    ] = field(default_factory=dict)
    untyped: Annotated[str, one_of("default", "refuse")] = "default"
    exclusive: Annotated[str, one_of("explicit", "refuse", "allow")] = "allow"
    long_names: Mapping[
        Annotated[str, matches(r"[A-Za-z0-9][\w.-]*", "should be the name of a GPU model")],
        Annotated[str, matches(r"[\w.-]*", "should be one feature, or empty")],
    ] = field(default_factory=dict)


@dataclass(frozen=True)
class WakeSettings:
    """How the submit plugin and slurmctld's hooks have a cycle start at once."""

    file: FilePath = "/run/slurm-mig/ctld/wake"
    min_interval_s: Annotated[float, between(0, 3600)] = 1.0


@dataclass(frozen=True)
class PolicySettings:
    """When a reshape may happen, in seconds and counts."""

    min_wait_s: Seconds = 0.0
    cooldown_s: Seconds = 30.0
    max_nodes_in_transition: Annotated[int, between(1, 1000)] = 1
    max_gpus_in_transition: Annotated[int, between(0, 10000)] = 0
    windows: Windows = ()
    free_for: Annotated[str, one_of(*FREE_FOR)] = "waiting"
    repair: Annotated[str, one_of("auto", "report")] = "auto"
    withhold_s: Seconds = 3600.0
    fence_wait_s: Seconds = 0.0
    reservations: tuple[
        Annotated[str, matches(r"[^\s,]+", "should be a reservation's name")], ...
    ] = ()
    withhold_jobs: Annotated[int, between(0, 1000)] = 4
    starts_soon_s: Seconds = 0.0
    max_jobs_per_user: Annotated[int, between(0, 100000)] = 0
    max_jobs_per_account: Annotated[int, between(0, 100000)] = 0
    exclude_users: tuple[Name, ...] = ()
    exclude_partitions: tuple[Name, ...] = ()
    baseline_after_s: Seconds = 0.0
    settle_s: Annotated[float, between(0, 3600)] = 10.0
    fence_deadline_s: Deadline = 60.0
    quarantine_after_s: Seconds = 600.0


@dataclass(frozen=True)
class WeightSettings:
    """The objective's numbers, in points (docs/planner.md)."""

    job: Points = 100
    publish: Points = 20
    twice: Points = 10
    create: Points = 2
    destroy: Points = 4
    room: Points = 2
    baseline: Points = 1
    mode: Points = 400
    reset: Points = 400
    withhold: Points = 1


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
    report_hours: Annotated[float, above_zero(8784)] = 24.0


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
    document = Document.read(path)
    faults = list(document.faults)
    data = _without_unknown(Settings, document.data, (), faults)
    settings = _validated(data, faults)
    _check_managed_dir(data, faults)
    if faults or settings is None:
        raise bad(document, faults)
    node = _with_slurm(settings.node, settings.slurm)
    return dataclasses.replace(settings, node=node)


def load_node(path: Path) -> NodeSettings:
    """A GPU node's settings, without pydantic: sections `node` and `slurm`; the others' keys are
    the controller's business. Raises ConfigError listing every fault."""
    document = Document.read(path)
    faults = list(document.faults)
    ours = ("node", "slurm")
    faults += [((key,), _unknown(key, _keys(Settings))) for key in document.data
               if key not in _keys(Settings)]  # fmt: skip
    read = {key: document.data[key] for key in ours if document.data.get(key) is not None}
    data = _without_unknown(Settings, read, (), faults)
    slurm = _by_hand(SlurmSettings, data.get("slurm", {}), ("slurm",), faults)
    values = _by_hand(NodeSettings, data.get("node", {}), ("node",), faults)
    if faults:
        raise bad(document, faults)
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
