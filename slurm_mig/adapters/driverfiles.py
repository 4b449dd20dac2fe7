"""What of the driver a container needs besides device nodes: libraries, programs, the CDI hook.

By the linker's cache and PATH; read only.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess

from slurm_mig.core.exports.containers import Driver

LIBRARIES = re.compile(
    r"\s(lib(?:cuda|cudadebugger|nvidia-ml|nvidia-ptxjitcompiler|nvidia-nvvm|nvidia-opencl"
    r"|nvidia-gpucomp|nvidia-pkcs11|nvidia-cfg)\.so\.\S+) \([^)]*x86-64[^)]*\) => (\S+)"
)
PROGRAMS = ("nvidia-smi", "nvidia-debugdump", "nvidia-cuda-mps-control", "nvidia-cuda-mps-server")
HOOKS = ("nvidia-cdi-hook", "nvidia-ctk")
TIMEOUT_S = 10.0


def driver_files() -> Driver:
    """The control nodes that are there, and the driver's files."""
    control = tuple(file for file in Driver().control if os.path.exists(file))
    programs = tuple(path for name in PROGRAMS if (path := shutil.which(name)))
    hook = shutil.which(HOOKS[0]) or ""
    return Driver(control, (*_libraries(), *programs), hook)


def _libraries() -> tuple[str, ...]:
    try:
        done = subprocess.run(
            ["ldconfig", "-p"], check=False, capture_output=True, text=True,
            stdin=subprocess.DEVNULL, timeout=TIMEOUT_S,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ()
    found = {match[1]: match[2] for match in LIBRARIES.finditer(done.stdout)}
    return tuple(sorted(found.values()))
