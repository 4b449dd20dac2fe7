"""A user's program that tries to open files: which does the kernel let this process have?

    opens.py FILE...           prints `{"FILE": "errno name, or empty when allowed", …}`
    opens.py --wait PREFIX     the same for the files that PREFIX.ask.1 names, into PREFIX.answer.1,
                               then 2, 3, …: from a process that is older than the question. Until
                               PREFIX.stop is there

The nodes have no driver behind them: ENXIO means that opening was allowed. `+w` after a name asks
for writing, `+mknod` for a node of one's own with that name's device number. Standard library only:
it is run by the nodes' jobs.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import tempfile
import time

NO_DRIVER = (errno.ENXIO, errno.ENODEV)


def attempt(word: str) -> str:
    """Empty when allowed, else the error's name."""
    path, _, how = word.partition("+")
    try:
        if how == "mknod":
            copy_node(path)
        else:
            os.close(os.open(path, os.O_RDWR if how == "w" else os.O_RDONLY))
    except OSError as error:
        number = error.errno or 0
        return "" if number in NO_DRIVER else errno.errorcode[number]
    return ""


def copy_node(path: str) -> None:
    there = os.stat(path)
    with tempfile.TemporaryDirectory() as folder:
        os.mknod(f"{folder}/mine", there.st_mode, there.st_rdev)


def wait(prefix: str) -> None:
    number = 1
    while not os.path.exists(f"{prefix}.stop"):
        if os.path.exists(f"{prefix}.ask.{number}"):
            with open(f"{prefix}.ask.{number}") as question:
                answer = json.dumps({word: attempt(word) for word in question.read().split()})
            with open(f"{prefix}.new", "w") as out:
                out.write(answer)
            os.rename(f"{prefix}.new", f"{prefix}.answer.{number}")
            number += 1
        time.sleep(0.05)


def main(words: list[str]) -> None:
    if words[0] == "--wait":
        wait(words[1])
    else:
        print(json.dumps({word: attempt(word) for word in words}))


if __name__ == "__main__":
    main(sys.argv[1:])
