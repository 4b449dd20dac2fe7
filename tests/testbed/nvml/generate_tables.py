"""Writes tables.h, the GPU models that the simulated NVML knows, from slurm_mig/data.

    generate_tables.py mig-profiles.json tables.h

Models whose data are not complete are left out; one GPU without MIG is added.
"""

import json
import sys
from typing import Any


def text(value: str) -> str:
    return json.dumps(value)


def profile_row(profile: dict[str, Any]) -> str:
    places = profile["placements"]
    numbers = [
        profile["enum_value"], profile["id"], profile["slices"], profile["max"],
        profile["sm"] or 0, profile["ce"] or 0, profile["dec"] or 0, profile["enc"] or 0,
        profile["jpeg"] or 0, profile["ofa"] or 0, profile["memory_mb"],
        int(profile["default_ci_profile_id"] == 7), len(places),
    ]  # fmt: skip
    pairs = ", ".join(f"{{{start}, {size}}}" for start, size in places)
    return f"\t\t{{ {text(profile['name'])}, {', '.join(map(str, numbers))}, {{ {pairs} }} }},"


def model_rows(model: dict[str, Any], name: str, device_id: str) -> list[str]:
    head = ", ".join(
        str(v)
        for v in (
            text(name), int(device_id, 16), model["memory_mb"], text(model["arch"]),
            model["compute_slices"], model["memory_slices"],
            int(model["mig_mode_change_needs_reset"]), len(model["profiles"]),
        )
    )  # fmt: skip
    return [f"\t{{ {head}, {{", *map(profile_row, model["profiles"]), "\t} },"]


def main(source: str, target: str) -> None:
    with open(source, encoding="utf-8") as data:
        models = json.load(data)
    rows = []
    for model in models:
        if model["complete"]:
            names = [(model["gpu"], model["pci_device_id"]), *model["variants"]]
            for name, device_id in names:
                rows += model_rows(model, name, device_id or "0x0")
    rows.append('\t{ "NVIDIA L40S", 0x26B9, 46068, "ada", 0, 0, 0, 0, { { 0 } } },')
    with open(target, "w", encoding="utf-8") as out:
        out.write("/* Made by generate_tables.py from slurm_mig/data/mig-profiles.json. */\n")
        out.write("static const struct model models[] = {\n" + "\n".join(rows) + "\n};\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
