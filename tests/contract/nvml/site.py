"""A node whose devices go to others than Slurm, for the tests of `export` and of other worlds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from slurm_mig.config import NodeSettings
from slurm_mig.core.exports.chosen import Ask
from slurm_mig.exporting import Exporter
from slurm_mig.gpuverbs import GpuVerbs, Request, Wish
from tests.testbed.nvml_sim import GpuSpec

if TYPE_CHECKING:
    from tests.contract.nvml.conftest import Opened

A100 = "NVIDIA A100-SXM4-40GB"


class Site:
    """A node of two A100, nothing of it Slurm's: a 3g.20gb and two 1g.5gb, and a whole GPU."""

    def __init__(self, opened: Opened, root: Path) -> None:
        self.root = root
        self.gpus = opened(GpuSpec(A100, mig=True), GpuSpec(A100))
        (root / "etc").mkdir(exist_ok=True)
        self.settings = NodeSettings(
            state_dir=str(root / "var"),
            run_dir=str(root / "run"),
            caps_dir=str(root / "dev" / "nvidia-caps"),
            slurm_conf=str(root / "etc" / "slurm.conf"),
            cdi=str(root / "cdi" / "slurm-mig.yaml"),
        )
        self.verbs = GpuVerbs(self.settings, "n1", self.gpus)
        self.apply("gpu0=3g.20gb@4,1g.5gb@0,1g.5gb@1")

    def apply(self, *words: str) -> None:
        self.verbs.answer(Request("apply", wish=Wish(words=words)))

    def export(self, form: str, **asked: Any) -> str:
        sys = self.root / "sys"
        return Exporter(self.settings, "n1", self.gpus, sys).run(Ask(form, **asked)).text


def sysfs(site: Site, index: int, **kinds: bool) -> Path:
    """A GPU's folder in a made-up /sys, in an IOMMU group, bound to nvidia, with resets."""
    address = site.gpus.gpu(index).pci.lower()[4:]
    folder = site.root / "sys" / "bus" / "pci" / "devices" / address
    group = site.root / "sys" / "kernel" / "iommu_groups" / "14"
    for path in (folder, group / "devices", site.root / "sys" / "drivers" / "nvidia"):
        path.mkdir(parents=True)
    (folder / "iommu_group").symlink_to(group)
    (group / "devices" / address).symlink_to(folder)
    (folder / "driver").symlink_to(site.root / "sys" / "drivers" / "nvidia")
    if kinds.get("reset", True):
        (folder / "reset_method").write_text("bus\n")
    return folder
