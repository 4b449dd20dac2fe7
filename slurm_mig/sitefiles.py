"""What is asked of the site's slurm.conf and gres.conf, and what slurm-mig cannot live beside.

Asked before a node is enrolled, and in every cycle of the nodes in our care.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

from slurm_mig.errors import ConfigError


class SiteFiles(Protocol):
    """The site's slurm.conf and gres.conf (adapters/slurmfiles.py)."""

    def load(self) -> None: ...
    def node(self, name: str) -> Any: ...
    def gres_lines(self, node: str) -> Sequence[Any]: ...
    def autodetect(self, node: str) -> str | None: ...
    def partitions_of(self, node: str) -> Sequence[str]: ...
    def value(self, key: str) -> str | None: ...
    def stray(self, enrolled: Collection[str]) -> str: ...
    def manage(
        self,
        enrolled: Sequence[str],
        catalog: Sequence[str] = (),
        catalog_partitions: Mapping[str, Sequence[str]] | None = None,
    ) -> Sequence[Any]: ...


def refuse_unsupported(site: SiteFiles, name: str) -> None:
    """Raises ConfigError for what slurm-mig cannot live beside (each with its reason)."""
    if fault := _of_the_cluster(site) or _of_the_node(site, name):
        raise ConfigError(f"{fault}; nothing was changed")


def unsupported(site: SiteFiles, names: Collection[str]) -> dict[str, str]:
    """The same, of nodes in our care, where it appeared after they were enrolled: by node."""
    everywhere = _of_the_cluster(site)
    stray = site.stray(names)
    found = {name: everywhere or stray or _of_the_node(site, name) for name in names}
    return {name: fault for name, fault in found.items() if fault}


def _of_the_cluster(site: SiteFiles) -> str:
    select = (site.value("SelectType") or "select/cons_tres").lower()
    if select != "select/cons_tres":
        return f"SelectType={select}: MIG types need select/cons_tres"
    types = {t.strip().lower() for t in (site.value("GresTypes") or "").split(",")}
    if "gpu" not in types:
        return "GresTypes in slurm.conf lacks gpu"
    for sharing in sorted(types & {"mps", "shard"}):
        return f"GresTypes has {sharing}: fillers would carry {sharing}s too"
    return ""


def _of_the_node(site: SiteFiles, name: str) -> str:
    cores = site.node(name).get("RestrictedCoresPerGPU")
    if cores and cores != "0":
        return (
            f"{name} has RestrictedCoresPerGPU={cores}: cores would be kept for fillers too, and "
            "for an instance as many as for a whole GPU"
        )
    return ""


def refuse_other_way(site: SiteFiles, config: str) -> None:
    """Raises ConfigError where slurm.conf and our `slurm.config` say different things."""
    parameters = (site.value("SlurmctldParameters") or "").lower().split(",")
    configless = "enable_configless" in [p.strip() for p in parameters]
    if configless == (config == "configless"):
        return
    if configless:
        raise ConfigError(
            "SlurmctldParameters has enable_configless: a slurmd or sackd without files gets no "
            f"included file whose name has a slash, as ours have with `config: {config}`; "
            "nothing was changed",
            hint="Set `config: configless` in the configuration here and on the nodes.",
        )
    raise ConfigError(
        "`config: configless`, and SlurmctldParameters in slurm.conf lacks enable_configless; "
        "nothing was changed"
    )
