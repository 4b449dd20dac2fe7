"""The site's slurm.conf and gres.conf: read as Slurm reads them, edited line by line, undone.

Called by enrolment, `check` and the reconciler on the host that holds the files. Must never change
a line that does not name a node in our care, nor a file that it cannot parse.
"""

from __future__ import annotations

from slurm_mig.adapters.slurmfiles.backups import Backup
from slurm_mig.adapters.slurmfiles.backups import find as find_backups
from slurm_mig.adapters.slurmfiles.files import (
    GRES_INCLUDE,
    NODES_INCLUDE,
    FileEdit,
    SiteFile,
    SlurmFiles,
)
from slurm_mig.adapters.slurmfiles.lines import Line, Pair, parse
from slurm_mig.adapters.slurmfiles.site import GresLine, NodeDefinition, Partition

__all__ = [
    "GRES_INCLUDE",
    "NODES_INCLUDE",
    "Backup",
    "FileEdit",
    "GresLine",
    "Line",
    "NodeDefinition",
    "Pair",
    "Partition",
    "SiteFile",
    "SlurmFiles",
    "find_backups",
    "parse",
]
