"""The slot map: which MIG device stands at which GRES index, in a form that a shell can read.

Written on the node at each publish, read by the hooks on every job's path:

    # slurm-mig slots v1
    constrained yes
    0 1g.5gb MIG-… /dev/nvidia0,/dev/nvidia-caps/nvidia-cap66,/dev/nvidia-caps/nvidia-cap67
    7 off - /dev/nvidia-caps/nvidia-cap20
"""

from __future__ import annotations

from slurm_mig.core.model import Slots

HEADER = "# slurm-mig slots v1"


def slot_map(slots: Slots, *, constrained: bool) -> str:
    """The map's text. `constrained`: jobs see only their own devices (ConstrainDevices)."""
    lines = [HEADER, f"constrained {'yes' if constrained else 'no'}"]
    for index, device in enumerate(slots):
        lines.append(f"{index} {device.type} {device.uuid or '-'} {','.join(device.files)}")
    return "\n".join(lines) + "\n"
