"""A process that runs cells. It reads requests and writes events, a JSON object a line; every way to end is an event.

    runner -> worker   {"cell": …, "attempt": …, "num_threads": …}
    worker -> runner   {"event": "progress", "fraction": …, "note": …} … {"event": "record", "record": …}

What cells print goes to standard error, which the runner keeps: a plugin's `print` cannot break the conversation.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from suite.environment import describe_environment
from suite.errors import Diverged, SuiteError
from suite.lifeline import die_with_the_parent
from suite.measure.memory import is_out_of_memory, stated_bytes
from suite.progress import Progress
from suite.records import Environment, Failure, Measurement, Record
from suite.registry import Registry
from suite.spec import Cell
from suite.trial import run_cell

Send = Callable[[dict[str, Any]], None]


def main() -> None:
    """Runs cells until standard input ends. Arguments: the plugin files."""
    events = _take_over_stdout()
    die_with_the_parent(signal.SIGKILL)
    # Ctrl-C reaches the whole terminal; the runner decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    registry = Registry([Path(path) for path in sys.argv[1:]])

    def send(event: dict[str, Any]) -> None:
        events.write(json.dumps(event, allow_nan=False) + "\n")
        events.flush()

    for line in sys.stdin:
        request = json.loads(line)
        cell = Cell.model_validate_json(json.dumps(request["cell"]))
        record = attempt_cell(cell, request["attempt"], request["num_threads"], registry, send)
        send({"event": "record", "record": record.model_dump(mode="json")})
        if record.measurement is not None:
            _tidy_up(cell)


def attempt_cell(cell: Cell, attempt: str, num_threads: int, registry: Registry, send: Send) -> Record:
    """Runs a cell to a record, whatever it does short of taking the process down."""
    import torch

    started_at, started = datetime.now(UTC), time.perf_counter()
    environment: Environment | None = None
    measurement: Measurement | None = None
    failure: Failure | None = None

    def tell(progress: Progress) -> None:
        send({"event": "progress", "fraction": progress.fraction, "note": progress.note})

    try:
        torch.set_num_threads(num_threads)
        environment = describe_environment(cell.device)
        if cell.device == "cpu":
            _bound_memory()
        measurement = run_cell(cell, registry, tell)
    except Diverged as error:
        failure = Failure(kind="diverged", message=str(error), step=error.step)
    except SuiteError as error:
        failure = Failure(kind="error", message=str(error))
    except Exception as error:
        first_line = str(error).strip().partition("\n")[0]
        failure = Failure(
            kind="out_of_memory" if is_out_of_memory(error) else "error",
            message=f"{type(error).__name__}: {first_line}",
            details="".join(traceback.format_exception(error)[-6:]),
        )
    return Record(
        cell=cell,
        attempt=attempt,
        started_at=started_at.isoformat(timespec="milliseconds"),
        duration_seconds=time.perf_counter() - started,
        environment=environment,
        measurement=measurement,
        failure=failure,
    )


def _tidy_up(cell: Cell) -> None:
    """Leaves the memory to the next cell."""
    import torch

    gc.collect()
    if cell.device == "cuda":
        torch.cuda.empty_cache()


def _take_over_stdout() -> TextIO:
    """Standard output for events alone; whatever else is printed joins standard error."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return events


def _bound_memory() -> None:
    """Makes an allocation that the machine cannot serve fail in this cell, instead of the system killing a process."""
    held_bytes = stated_bytes("/proc/self/status", "VmData")
    available_bytes = stated_bytes("/proc/meminfo", "MemAvailable")
    if held_bytes is None or available_bytes is None:
        return
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = held_bytes + available_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


if __name__ == "__main__":
    main()
