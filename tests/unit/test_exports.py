"""What exports choose, refuse and say; the judges of CDI and of Kubernetes's manifests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from slurm_mig.core import ownership
from slurm_mig.core.exports import containers, kubernetes, libvirt
from slurm_mig.core.exports.chosen import Ask, Device, choose, devices, one_gpu
from slurm_mig.core.exports.containers import Driver
from slurm_mig.core.exports.libvirt import PciDevice, VgpuType
from slurm_mig.core.model import ComputeInstance, Gpu
from slurm_mig.core.ownership import Outside
from slurm_mig.errors import BusyError, Exit, SlurmMigError, UsageError
from tests.unit.builders import A100, at, gpu, ones

ATTRIBUTES = kubernetes.Attributes(4864, 14, 1, 1, {"copy": 1, "decoder": 0})


def computing(board: Gpu) -> Gpu:
    """With the compute instances that a driver would tell."""
    found = []
    for n, i in enumerate(board.instances):
        slices = int(i.placement.profile[0])
        uuid = f"MIG-{board.index}-{n}"
        one = ComputeInstance(0, i.placement.profile, slices, uuid, i.gi_minor + 1, i.pids)
        found.append(replace(i, computes=(one,), gi=n, uuid=uuid))
    return replace(board, instances=tuple(found), mig_capable=True)


def there() -> list[Device]:
    """GPU 0: four 1g.5gb that are Slurm's, a 3g.20gb that is containers'; GPU 1 is whole."""
    gpus = (
        computing(gpu(A100, 0, *ones(4), at("3g.20gb", 4))),
        replace(gpu(A100, 1), mig=False, instances=(), pids=(77,)),
    )
    outside = [Outside("containers", 0, (at("3g.20gb", 4),)), Outside("k8s", 1)]
    marked = ownership.stamped(gpus, outside)
    slurms = {i.uuid for i in marked[0].instances if not i.owner}
    return devices(marked, slurms)


@pytest.mark.parametrize(
    ("ask", "names"),
    [
        (Ask(), ["3g.20gb", A100]),
        (Ask(gpus=(0,)), ["3g.20gb"]),
        (Ask(profiles=("3g.20gb",)), ["3g.20gb"]),
        (Ask(owner="k8s"), [A100]),
        (Ask(free=True, count=1), ["3g.20gb"]),
        (Ask(uuids=("GPU-1",)), [A100]),
    ],
)
def test_what_is_chosen(ask: Ask, names: list[str]) -> None:
    assert [d.name for d in choose(there(), ask)] == names


@pytest.mark.parametrize(
    ("ask", "kind", "reason"),
    [
        (
            Ask(profiles=("7g.40gb",)),
            UsageError,
            "nothing here is 7g.40gb; there is 1g.5gb@0 of GPU",
        ),
        (Ask(profiles=("1g.5gb",)), SlurmMigError, "1g.5gb@0 of GPU 0 is Slurm's: what is started"),
        (Ask(owner="nobody"), UsageError, "nothing here is nobody's"),
        (Ask(free=True, count=2), BusyError, "1 of free outside Slurm can be had, 2 are wanted"),
        (Ask(gpus=(1,), free=True), BusyError, "0 of GPU 1, free outside Slurm can be had"),
    ],
)
def test_what_is_refused(ask: Ask, kind: type[SlurmMigError], reason: str) -> None:
    with pytest.raises(kind) as caught:
        choose(there(), ask)
    assert reason in str(caught.value)


def test_a_jobs_own_devices_may_be_had() -> None:
    mine = there()[0].uuid
    assert [d.uuid for d in choose(there(), Ask(job=7), {mine})] == [mine]


def test_run_lines() -> None:
    chosen = choose(there(), Ask(profiles=("3g.20gb",)))
    uuid = chosen[0].uuid
    assert containers.docker(chosen, "cuda") == (
        f"""docker run --rm --gpus '"device={uuid}"' cuda nvidia-smi -L\n"""
    )
    assert containers.podman(chosen, "a b") == (
        f"podman run --rm --device nvidia.com/mig={uuid} 'a b' nvidia-smi -L\n"
    )


def test_a_cdi_specification() -> None:
    driver = Driver(("/dev/nvidiactl",), ("/usr/lib/libcuda.so.1",), "/usr/bin/nvidia-cdi-hook")
    chosen = choose(there(), Ask(gpus=(0,)))
    spec = containers.cdi(chosen, driver)
    assert not containers.cdi_faults(spec)
    (device,) = spec["devices"]
    paths = [node["path"] for node in device["containerEdits"]["deviceNodes"]]
    gi, ci = chosen[0].files[1:]
    assert paths == ["/dev/nvidia0", gi, ci]
    assert int(ci.rpartition("cap")[2]) == int(gi.rpartition("cap")[2]) + 1
    (hook,) = spec["containerEdits"]["hooks"]
    assert hook["args"] == ["nvidia-cdi-hook", "update-ldcache", "--folder", "/usr/lib"]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"kind": "nvidia"}, "kind is not vendor/class"),
        ({"cdiVersion": "5"}, "cdiVersion is no version"),
        ({"devices": []}, "there is no device"),
        ({"more": 1}, "unknown field more"),
        ({"containerEdits": {"deviceNodes": [{"path": "dev/x"}]}}, "without absolute path"),
        (
            {"containerEdits": {"hooks": [{"hookName": "later", "path": "/x"}]}},
            "'later' is no hook",
        ),
        ({"containerEdits": {"env": ["X"]}}, "'X' is no variable"),
        ({"containerEdits": {"mounts": [{"hostPath": "/x"}]}}, "a mount without both paths"),
        ({"containerEdits": {"files": []}}, "unknown field files"),
        (
            {"devices": [{"name": "a", "containerEdits": {"env": ["A=1"]}}] * 2},
            "'a' is there twice",
        ),
        ({"devices": [{"name": "/", "containerEdits": {"env": ["A=1"]}}]}, "'/' is no device name"),
    ],
)
def test_the_judge_of_cdi_finds_faults(change: dict[str, Any], fault: str) -> None:
    spec = containers.cdi(choose(there(), Ask(gpus=(0,))), Driver())
    assert any(fault in found for found in containers.cdi_faults({**spec, **change}))


def uniform() -> list[Device]:
    return devices((computing(gpu(A100, 0, *ones())),), set())


def test_the_strategy_is_single_only_where_all_is_alike() -> None:
    assert kubernetes.strategy(uniform()) == ("single", "every device is a 1g.5gb")
    assert kubernetes.strategy(uniform(), "mixed")[0] == "mixed"
    mixed = devices((computing(gpu(A100, 0, at("3g.20gb", 4), *ones(2))),), set())
    assert kubernetes.strategy(mixed)[0] == "mixed"
    with pytest.raises(UsageError, match=r"cannot be single: .* kinds: 1g.5gb, 3g.20gb"):
        kubernetes.strategy(mixed, "single")
    beside = there()[-2:]
    assert kubernetes.strategy(beside) == ("mixed", "GPU 1 has MIG off beside MIG instances")
    assert kubernetes.strategy(beside[1:])[0] == "none"
    with pytest.raises(UsageError, match="cannot be none"):
        kubernetes.strategy(beside, "none")


def test_resource_names() -> None:
    device = uniform()[0]
    assert kubernetes.resource(device, "single") == "nvidia.com/gpu"
    assert kubernetes.resource(device, "mixed") == "nvidia.com/mig-1g.5gb"
    special = replace(device, name="1g.5gb+me")
    assert kubernetes.resource(special, "mixed") == "nvidia.com/mig-1g.5gb.me"


def test_labels_as_they_will_be() -> None:
    all_of = uniform()
    single = kubernetes.discovery(all_of, "single", {all_of[0].uuid: ATTRIBUTES})
    assert single["nvidia.com/gpu.product"] == "A100-SXM4-40GB-MIG-1g.5gb"
    assert single["nvidia.com/gpu.count"] == "7"
    assert single["nvidia.com/gpu.memory"] == "4864"
    assert single["nvidia.com/gpu.multiprocessors"] == "14"
    mixed = kubernetes.discovery(there()[-2:], "mixed", {})
    assert mixed["nvidia.com/mig-3g.20gb.count"] == "1"
    assert mixed["nvidia.com/gpu.count"] == "1"
    assert all(isinstance(value, str) for value in mixed.values())


PCI = PciDevice("0000:07:00.0", "14", (), "nvidia", resettable=True)


def levels(pci: PciDevice) -> list[str]:
    return [f.level for f in libvirt.passthrough_findings(pci)]


def test_what_keeps_a_gpu_from_being_passed_through() -> None:
    assert "error" not in levels(PCI)
    assert levels(replace(PCI, iommu_group="")).count("error") == 1
    assert levels(replace(PCI, resettable=False)).count("error") == 1
    assert levels(replace(PCI, neighbours=("0000:07:00.1 snd_hda_intel",))).count("error") == 1
    assert "error" not in levels(replace(PCI, neighbours=("0000:07:00.1 vfio-pci",)))


@pytest.mark.parametrize(
    ("ask", "kind", "reason"),
    [
        (Ask(gpus=(0,), profiles=("1g.5gb",)), UsageError, "a MIG instance is no PCI device"),
        (Ask(), UsageError, "name the one GPU"),
        (Ask(gpus=(9,)), UsageError, "there is no GPU 9"),
        (Ask(gpus=(0,)), SlurmMigError, "GPU 0 has devices that are Slurm's"),
        (Ask(gpus=(1,)), BusyError, "GPU 1 is used by process 77"),
    ],
)
def test_what_is_not_passed_through(ask: Ask, kind: type[SlurmMigError], reason: str) -> None:
    gpus = [d.gpu for d in there()]
    with pytest.raises(kind) as caught:
        one_gpu(list(dict.fromkeys(gpus)), ask, {0: True})
    assert reason in str(caught.value)
    assert caught.value.exit_code in (Exit.USAGE, Exit.REFUSED, Exit.BUSY)


def test_the_vgpu_type_of_an_instance() -> None:
    device = next(d for d in there() if d.name == "3g.20gb")
    types = [
        VgpuType("0000:07:00.4", "nvidia-699", "GRID A100-1-5C", mediated=True),
        VgpuType("0000:07:00.4", "nvidia-701", "GRID A100-3-20C", mediated=True),
        VgpuType("0000:07:00.4", "nvidia-474", "GRID A100-20C", mediated=True),
    ]
    assert libvirt.type_for(device, types).id == "nvidia-701"
    with pytest.raises(SlurmMigError, match=r"no vGPU type for a 3g.20gb now; it offers GRID"):
        libvirt.type_for(device, [types[0], types[2]])
    assert libvirt.mdev_uuid(device) == libvirt.mdev_uuid(device)
