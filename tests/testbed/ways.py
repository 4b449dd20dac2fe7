"""The ways of holding Slurm's configuration (docs/configuration-ways.md), as clusters are made."""

from __future__ import annotations

from typing import Any

from tests.testbed.product import in_way

NODE, OTHER = "a100-1", "mixed-1"
"""The node that is enrolled, and one that stays the site's own."""

AT_ONCE = "reconfigure_interval_s: 0"

WAYS: dict[str, dict[str, Any]] = {
    "shared, node": {"configuration": in_way("shared", "node")},
    "shared, reconfigure": {"configuration": in_way("shared", "reconfigure", AT_ONCE)},
    "per-host, node": {
        "configuration": in_way("per-host", "node"),
        "own_files": (NODE, OTHER),
    },
    "per-host, reconfigure": {
        "configuration": in_way("per-host", "reconfigure", AT_ONCE),
        "own_files": (NODE, OTHER),
    },
    "configless, reconfigure": {
        "configuration": in_way("configless", "reconfigure", AT_ONCE),
        "configless": (NODE, OTHER),
    },
    "configless, node": {
        "configuration": in_way("configless", "node"),
        "own_files": (NODE,),
        "configless": (OTHER,),
    },
}
