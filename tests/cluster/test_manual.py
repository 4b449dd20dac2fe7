"""Every command in the manual's console blocks, on a running cluster, with what the pages state."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.testbed import console
from tests.testbed.cluster import Cluster
from tests.testbed.fresh import PROFILE, fresh
from tests.testbed.product import ManagedCluster
from tests.testbed.serve import MANUALS

DOCS = Path(__file__).parents[2] / "docs"
OTHERS = ("outside.md", "containers.md", "kubernetes.md", "virtual-machines.md")
"""Pages about what is not Slurm's: in this order on a cluster of their own."""

ALONE = ("install.md", *OTHERS)
"""Pages that begin on a cluster that slurm-mig has not touched."""

WORLDS = r"""
set -eu
# An image with one program, and podman's settings for a host without networks and cgroups.
root=/tmp/image
mkdir -p $root/bin $root/run/nvml-sim /tmp/podman
# This node's only, and gone with it.
for folder in /etc/containers /etc/cdi /etc/libvirt; do
    mkdir -p $folder
    mount -t tmpfs tmpfs $folder
done
echo '{"default": [{"type": "insecureAcceptAnything"}]}' >/etc/containers/policy.json
cp /usr/local/bin/fake-cuda $root/bin/train
for lib in $(ldd /usr/local/bin/fake-cuda | grep -o '/[^ ]*'); do cp --parents -L $lib $root/; done
cat >/etc/containers/containers.conf <<'END'
[containers]
cgroups = "disabled"
netns = "none"
seccomp_profile = "unconfined"
volumes = ["/run/nvml-sim:/run/nvml-sim"]
END
cat >/etc/containers/storage.conf <<'END'
[storage]
driver = "vfs"
graphroot = "/tmp/podman/root"
runroot = "/tmp/podman/run"
END
tar -C $root -c . | podman import --quiet - localhost/train
[ -e /dev/nvidiactl ] || mknod -m 666 /dev/nvidiactl c 195 255
# libvirt's test driver has a machine called "test".
echo 'uri_default = "test:///default"' >/etc/libvirt/libvirt.conf
# A kernel that has each GPU in an IOMMU group of its own, and a vGPU type on a virtual function.
mount -t tmpfs tmpfs /sys/kernel/iommu_groups
mount -t tmpfs tmpfs /sys/bus/pci/devices
mkdir -p /run/drivers/nvidia
cd /sys/bus/pci/devices
for pci; do
    group=/sys/kernel/iommu_groups/$pci
    mkdir -p $pci $group/devices ${pci%.*}.4/nvidia
    ln -s $group $pci/iommu_group
    ln -s $PWD/$pci $group/devices/$pci
    ln -s /run/drivers/nvidia $pci/driver
    ln -s $PWD/${pci%.*}.4 $pci/virtfn0
    echo bus >$pci/reset_method
    printf 'ID    : vGPU Name\n701   : NVIDIA A100-3-20C\n' \
        >${pci%.*}.4/nvidia/creatable_vgpu_types
done
"""


RECUT = """\
from slurm_mig.adapters.gpus import NvmlGpus
from slurm_mig.core.model import Placement
gpus = NvmlGpus("/dev/nvidia-caps")
for instance in gpus.gpu(1).instances:
    gpus.destroy(1, instance.gi)
gpus.create(1, Placement(0, 4, "3g.20gb"))
gpus.create(1, Placement(4, 2, "2g.10gb"))
"""
"""What mig-manager or a hand does to a GPU that is its own."""


def pages() -> list[str]:
    """Pages with console blocks: first-reshape first, as the others go on from there."""
    found = [p.name for p in sorted(DOCS.glob("*.md")) if "```console" in p.read_text()]
    return sorted((p for p in found if p not in ALONE), key=lambda p: p != "first-reshape.md")


@pytest.fixture(scope="module")
def managed() -> Iterator[ManagedCluster]:
    """An enrolled cluster whose cycles run, as the timer has them run."""
    with ManagedCluster(nodes=MANUALS) as cluster:
        cluster.enrol()
        cluster.reconcile_every(1)
        yield cluster


@pytest.fixture(scope="module")
def others() -> Iterator[ManagedCluster]:
    """A node with an image, a kernel with IOMMU groups and vGPU types, and a libvirt."""
    with ManagedCluster(nodes=MANUALS) as cluster:
        said = cluster.run("slurm-mig", "inventory", "--json", node="a100-1").stdout
        addresses = [gpu["pci"].lower()[-12:] for gpu in json.loads(said)["gpus"]]
        cluster.write("/run/recut.py", RECUT)
        cluster.run("sh", "-c", WORLDS, "sh", *addresses, node="a100-1")
        yield cluster


def test_the_pages_are_there() -> None:
    assert {"first-reshape.md", "guide.md", "runbook.md"} <= set(pages())


@pytest.mark.parametrize("page", OTHERS)
def test_commands_about_what_is_not_slurms(others: ManagedCluster, page: str) -> None:
    assert len(console.run(others, DOCS / page)) >= 2


@pytest.mark.parametrize("page", pages())
def test_commands_of(managed: ManagedCluster, page: str) -> None:
    assert len(console.run(managed, DOCS / page)) >= 1


def test_installation_and_the_way_back() -> None:
    with Cluster(nodes=MANUALS) as cluster, fresh(cluster):
        before = [cluster.read(f"/etc/slurm/{name}") for name in ("slurm.conf", "gres.conf")]
        console.run(cluster, DOCS / "install.md", PROFILE)
        after = [cluster.read(f"/etc/slurm/{name}") for name in ("slurm.conf", "gres.conf")]
        assert before == after
