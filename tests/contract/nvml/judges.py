"""The real judges of what `slurm-mig export` writes. Each raises AssertionError with its own words.

CDI's JSON schema comes with Debian's package of the CDI library, Kubernetes' OpenAPI schemas of
many releases with the package kubernetes-validate; libvirt and docker-compose read it themselves.
"""

from __future__ import annotations

import json
import os
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import referencing
import referencing.jsonschema
from kubernetes_validate.utils import all_versions

CDI_SCHEMA = Path("/usr/share/gocode/src/tags.cncf.io/container-device-interface/schema")
QUALIFIED = r"^([a-z0-9.-]+/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$"
LABELS = {
    "type": "object",
    "propertyNames": {"pattern": QUALIFIED},
    "additionalProperties": {
        "type": "string",
        "pattern": r"^([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?$",
    },
}
"""Kubernetes' rule for labels: in its reference, not in its schemas."""

DOMAIN = """\
<domain type='kvm'><name>vm</name><memory>1048576</memory><os><type>hvm</type></os>
<devices>{}</devices></domain>
"""


def ran(*words: str, **options: Any) -> str:
    done = subprocess.run(words, check=False, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return str(done.stdout)


@cache
def _cdi() -> jsonschema.Draft7Validator:
    schema, definitions = (
        json.loads((CDI_SCHEMA / name).read_text()) for name in ("schema.json", "defs.json")
    )
    resource = referencing.Resource.from_contents(
        definitions, default_specification=referencing.jsonschema.DRAFT7
    )
    known: referencing.Registry[Any] = referencing.Registry()
    for name in ("defs.json", "file:///defs.json"):
        known = known.with_resource(name, resource)
    return jsonschema.Draft7Validator(schema, registry=known)


def cdi(spec: Any) -> None:
    """CDI's own schema."""
    faults = [error.message for error in _cdi().iter_errors(spec)]
    assert not faults, faults


def kubernetes(document: dict[str, Any]) -> None:
    """Kubernetes' own schema of the object, of every release; unknown fields are refused."""
    for version in all_versions():
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            raise AssertionError(f"Kubernetes {version}: {error.message}") from error
    jsonschema.validate(document["metadata"].get("labels", {}), LABELS)


def compose(file: Path) -> dict[str, Any]:
    """What docker-compose reads in a file."""
    read = ran("docker-compose", "-f", str(file), "config", "--format", "json",
               env={**os.environ, "HOME": str(file.parent)})  # fmt: skip
    found: dict[str, Any] = json.loads(read)
    return found


def libvirt(devices: str, folder: Path) -> None:
    """libvirt's validator takes these devices in a domain."""
    file = folder / "domain.xml"
    file.write_text(DOMAIN.format(devices))
    ran("virt-xml-validate", str(file), "domain")
