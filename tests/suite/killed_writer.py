"""python -m tests.suite.killed_writer FOLDER: writers of results, each killed at another call.

The first is killed before the first call that touches a file, the next before the second, and so on until one lives.
Each writes to a folder of its own, called by its number, and gets a line of what is printed: the number, and the seeds
of the records that it knew were stored.
"""

from __future__ import annotations

import io
import itertools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from suite.store import Store
from tests.suite.builders import cell, record, run_spec

RECORDS = [record(cell(seed), attempt=f"a{seed}") for seed in range(2)]
SPECS = [run_spec(cell(0)), run_spec(cell(0), cell(1))]
"""What is asked, first and then, as when a grid is extended."""


def write(folder: Path) -> None:
    """A short life of a store."""
    store = Store(folder)
    with store.writing():
        for spec, each in zip(SPECS, RECORDS, strict=True):
            store.write_spec(spec)
            store.add(each)
            os.write(1, f" {each.cell.seed}".encode())


def _killed_at_call(number: int) -> Callable[[FrameType, str, object], None]:
    """A profiler that ends the process before it makes that call, of all that touch a file."""
    calls = itertools.count(1)

    def touches_a_file(function: object) -> bool:
        module, owner = getattr(function, "__module__", None), getattr(function, "__self__", None)
        return module in {"posix", "fcntl", "_io"} or isinstance(owner, io.IOBase)

    def profile(frame: FrameType, event: str, argument: object) -> None:
        if event == "c_call" and touches_a_file(argument) and next(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    return profile


def main() -> None:
    for number in itertools.count(1):
        os.write(1, f"{number}:".encode())
        writer = os.fork()
        if not writer:
            sys.setprofile(_killed_at_call(number))
            write(Path(sys.argv[1]) / str(number))
            os._exit(0)
        _, status = os.waitpid(writer, 0)
        os.write(1, b"\n")
        if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
            sys.exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
