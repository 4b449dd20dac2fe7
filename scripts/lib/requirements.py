"""Writes the requirements of setup.cfg's base, controller, dev and bench sets, without pyslurm.

    requirements.py SETUP_CFG OUTPUT

pyslurm is built by scripts/build-pyslurm; pip must not look for it.
"""

import configparser
import sys

parser = configparser.ConfigParser()
parser.read(sys.argv[1])
wanted = [
    parser["options"]["install_requires"],
    parser["options.extras_require"]["controller"],
    parser["options.extras_require"]["dev"],
    parser["options.extras_require"]["bench"],
]
names = [line.strip() for text in wanted for line in text.splitlines() if line.strip()]
with open(sys.argv[2], "w", encoding="utf-8") as output:
    output.writelines(f"{n}\n" for n in names if not n.startswith(("pyslurm", "#")))
