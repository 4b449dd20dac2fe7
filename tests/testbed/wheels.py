"""Wheels of what is installed in the root filesystem, so that pip can install it again without a
registry: `python -m tests.testbed.wheels FOLDER` writes them.

What lies outside site-packages (man pages, examples) is not in them; programs are made anew by pip.
"""

from __future__ import annotations

import base64
import configparser
import hashlib
import sys
import zipfile
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement

SETUP = Path(__file__).parents[2] / "setup.cfg"
TOOLS = ("setuptools", "wheel", "cython", "packaging")
"""What builds slurm-mig and pyslurm."""
NOT_SHIPPED = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")


def wanted() -> set[str]:
    """What slurm-mig's controller needs, and what that needs."""
    setup = configparser.ConfigParser()
    setup.read(SETUP)
    lines = (
        f"{setup['options']['install_requires']}\n{setup['options.extras_require']['controller']}"
    )
    open_ = [*TOOLS, *(line for line in lines.splitlines() if line and not line.startswith("#"))]
    found: set[str] = set()
    while open_:
        requirement = Requirement(open_.pop())
        marker = requirement.marker
        if requirement.name in found or (marker and not marker.evaluate({"extra": ""})):
            continue
        found.add(requirement.name)
        open_ += distribution(requirement.name).requires or []
    return found


def members(of: Distribution) -> Iterator[tuple[str, bytes]]:
    """The files of an installed package, by their names in a wheel."""
    for file in of.files or ():
        inside = not file.as_posix().startswith("..") and "__pycache__" not in file.parts
        if inside and file.name not in NOT_SHIPPED:
            yield file.as_posix(), Path(str(of.locate_file(file))).read_bytes()


def pack(of: Distribution, folder: Path) -> Path:
    """Write the wheel of an installed package."""
    files = dict(members(of))
    info = next(name for name in files if name.endswith(".dist-info/METADATA")).split("/")[0]
    tag = next(line[5:] for line in (of.read_text("WHEEL") or "").splitlines()
               if line.startswith("Tag: "))  # fmt: skip
    record = "".join(f"{name},sha256={_digest(data)},{len(data)}\n" for name, data in files.items())
    target = folder / f"{info.removesuffix('.dist-info')}-{tag}.whl"
    with zipfile.ZipFile(target, "w") as wheel:
        for name, data in files.items():
            wheel.writestr(name, data)
        wheel.writestr(f"{info}/RECORD", f"{record}{info}/RECORD,,\n")
    return target


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name in wanted():
        pack(distribution(name), folder)


if __name__ == "__main__":
    main()
