"""Cells in worker processes on this machine. A worker serves cell after cell until one takes it down.

Accuracy cells share the machine, `num_jobs` at a time, spread over its GPUs. What fails where others work on the same
GPU may be their fault: it runs again alone. Cost cells run alone: one worker, all threads, nobody beside.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

from suite.executors.gpus import can_be_shared, multi_process_service, visible_gpus
from suite.records import Failure, Record
from suite.spec import Cell, RunSpec

_READ_BYTES = 1 << 16

_DETAIL_BYTES = 4000
"""How much of a dead worker's output a record keeps."""


@dataclass(frozen=True)
class Started:
    """A worker took the cell."""

    cell: Cell


@dataclass(frozen=True)
class Advanced:
    """The cell says how far it is."""

    cell: Cell
    fraction: float | None
    note: str | None


@dataclass(frozen=True)
class Ended:
    """The cell has its record, measurement or failure."""

    record: Record


@dataclass(frozen=True)
class PutOff:
    """The cell failed beside others, which may be why, and will run again without them."""

    cell: Cell


Event = Started | Advanced | Ended | PutOff

_JOBS_A_GPU = 8
"""Accuracy cells that share a GPU: on an H100, small ones train 2.4 times as fast in all as one after the other."""

_PATIENCE = {"GOMP_SPINCOUNT": "1000"}
"""How often a thread of torch's looks for the others before it sleeps, unless the user says.

By its own 300,000 it holds a core that the others wait for: beside two busy processes on two cores, a cell took 64
times as long as alone, and 1.6 times as long with this.
"""

_OWN_FAULTS = ("diverged", "timed_out")
"""Kinds of failure that others on the same GPU do not cause."""


@dataclass
class LocalExecutor:
    """Runs cells on this machine."""

    num_jobs: int
    """Accuracy cells at a time."""
    silence_seconds: float
    """A worker that says nothing for longer is taken to hang; its cell fails as `timed_out`."""
    plugins: tuple[str, ...] = ()
    gpus: tuple[str, ...] = ()
    """What CUDA_VISIBLE_DEVICES calls those that cells are spread over; none for cells on the CPU."""
    _workers: list[_Worker] = field(default_factory=list)

    def execute(self, cells: Sequence[Cell]) -> Iterator[Event]:
        """Runs every cell once; events come as they happen. Closing the iterator ends the workers."""
        shared = deque(cell for cell in cells if cell.kind == "accuracy")
        alone = deque(cell for cell in cells if cell.kind == "cost")
        num_jobs = min(self.num_jobs, max(1, len(shared)))
        try:
            if 0 < len(self.gpus) < num_jobs:
                put_off: deque[Cell] = deque()
                yield from self._drain_side_by_side(shared, num_jobs, put_off)
                shared, num_jobs = put_off, len(self.gpus)
            yield from self._drain(shared, num_jobs)
            # On a machine with several GPUs, all costs are those of the first.
            self._stop(keep=0 if self.gpus else 1)
            yield from self._drain(alone, 1)
        finally:
            self._stop(keep=0)

    def _drain_side_by_side(self, cells: deque[Cell], num_jobs: int, put_off: deque[Cell]) -> Iterator[Event]:
        """Runs cells several to a GPU; those that may have failed for it are left in `put_off`."""
        with multi_process_service() as joined:
            try:
                for event in self._drain(cells, num_jobs, joined):
                    if isinstance(event, Ended) and _may_be_the_fault_of_others(event.record):
                        put_off.append(event.record.cell)
                        yield PutOff(event.record.cell)
                    else:
                        yield event
            finally:
                self._stop(keep=0)

    def _drain(
        self, cells: deque[Cell], num_jobs: int, environment: Mapping[str, str] = MappingProxyType({})
    ) -> Iterator[Event]:
        num_threads = max(1, _num_cores() // num_jobs)
        while cells or any(worker.cell for worker in self._workers):
            for worker in [worker for worker in self._workers if not worker.alive]:
                self._workers.remove(worker)
            num_busy = sum(worker.cell is not None for worker in self._workers)
            while len(self._workers) < min(num_jobs, num_busy + len(cells)):
                self._workers.append(_Worker(self.plugins, self._emptiest_gpu(), environment))
            for worker in self._workers:
                if worker.cell is None and cells:
                    cell = cells.popleft()
                    worker.give(cell, num_threads)
                    yield Started(cell)
            yield from self._listen()

    def _listen(self) -> Iterator[Event]:
        """What the busy workers say within a moment; a dead or silent one gives its cell's failure."""
        busy = [worker for worker in self._workers if worker.cell]
        with selectors.DefaultSelector() as selector:
            for worker in busy:
                selector.register(worker.output, selectors.EVENT_READ, worker)
            ready = [key.data for key, _ in selector.select(timeout=0.25)]
        for worker in busy:
            if worker in ready:
                yield from worker.read()
            elif time.monotonic() - worker.last_heard > self.silence_seconds:
                yield worker.give_up(
                    "timed_out", f"no sign of life for {self.silence_seconds:g} s. --timeout allows more"
                )

    def _emptiest_gpu(self) -> str | None:
        """The one with the fewest workers."""
        taken = [worker.gpu for worker in self._workers]
        return min(self.gpus, key=taken.count, default=None)

    def _stop(self, keep: int) -> None:
        while len(self._workers) > keep:
            self._workers.pop().kill()


def local_executor(spec: RunSpec, num_jobs: int | None, silence_seconds: float) -> LocalExecutor:
    """What runs the cells of `spec` here; if not told, one accuracy cell a CPU core, or a few on each GPU."""
    gpus = visible_gpus() if spec.cells[0].device == "cuda" else ()
    if num_jobs is None:
        num_jobs = _num_cores()
        if gpus:
            num_jobs = min(num_jobs, len(gpus) * (_JOBS_A_GPU if can_be_shared() else 1))
    return LocalExecutor(num_jobs, silence_seconds, spec.plugins, gpus)


class _Worker:
    """A `suite.worker` process and the cell it is busy with."""

    def __init__(self, plugins: Sequence[str], gpu: str | None, environment: Mapping[str, str]) -> None:
        self.gpu = gpu
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the worker)
        # A session of its own keeps the terminal's Ctrl-C away; the runner ends it in its own way.
        self._process = subprocess.Popen(
            # -P: a `models/` folder in the user's working directory must not stand in for the suite's own.
            [sys.executable, "-P", "-m", "suite.worker", *plugins],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            # A buffer of our own could hold the end of a message that `select` never announces.
            bufsize=0,
            start_new_session=True,
            env=_worker_environment() | dict(environment) | ({} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}),
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input: IO[bytes] = self._process.stdin
        self.output: IO[bytes] = self._process.stdout
        os.set_blocking(self.output.fileno(), False)
        self._unread = b""
        self.cell: Cell | None = None
        self.alive = True
        self.last_heard = time.monotonic()

    def give(self, cell: Cell, num_threads: int) -> None:
        self.cell, self._attempt = cell, uuid.uuid4().hex[:12]
        self._started_at, self._started = datetime.now(UTC), time.monotonic()
        self.last_heard = self._started
        request = {"cell": cell.model_dump(mode="json"), "attempt": self._attempt, "num_threads": num_threads}
        try:
            self._input.write(json.dumps(request).encode() + b"\n")
            self._input.flush()
        except BrokenPipeError:
            # It died before it could listen; the end of its output says so when it is read.
            return

    def read(self) -> Iterator[Event]:
        """The events that have arrived; the end of the output is a crash."""
        chunk = self.output.read(_READ_BYTES)
        if chunk == b"":
            yield self.give_up("crashed", self._how_it_ended())
            return
        self.last_heard = time.monotonic()
        *lines, self._unread = (self._unread + (chunk or b"")).split(b"\n")
        for line in lines:
            yield self._event(json.loads(line))

    def give_up(self, kind: Any, message: str) -> Ended:
        """Ends the process; its cell has failed."""
        assert self.cell is not None
        details = self._last_words()
        self.kill()
        record = Record(
            cell=self.cell,
            attempt=self._attempt,
            started_at=self._started_at.isoformat(timespec="milliseconds"),
            duration_seconds=time.monotonic() - self._started,
            environment=None,
            failure=Failure(kind=kind, message=message, details=details),
        )
        self.cell = None
        return Ended(record)

    def kill(self) -> None:
        if not self.alive:
            return
        self.alive = False
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        with contextlib.suppress(BrokenPipeError):
            self._input.close()
        self.output.close()
        self._log.close()

    def _event(self, message: dict[str, Any]) -> Event:
        assert self.cell is not None
        cell = self.cell
        if message["event"] == "progress":
            return Advanced(cell, message["fraction"], message["note"])
        record = Record.model_validate_json(json.dumps(message["record"]))
        self.cell = None
        if record.failure is not None:
            # Memory may be torn or still held after a failure; the next cell gets a fresh process.
            self.kill()
        return Ended(record)

    def _last_words(self) -> str | None:
        """The end of what the process printed."""
        self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - _DETAIL_BYTES))
        return self._log.read().decode(errors="replace").strip() or None

    def _how_it_ended(self) -> str:
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "the worker closed its output without a result"
        if code == -signal.SIGKILL:
            return "the worker was killed (SIGKILL): most likely the system ran out of memory"
        if code < 0:
            return f"the worker died of {signal.Signals(-code).name}"
        return f"the worker exited with code {code} without a result"


def _num_cores() -> int:
    return len(os.sched_getaffinity(0))


def _may_be_the_fault_of_others(record: Record) -> bool:
    return record.failure is not None and record.failure.kind not in _OWN_FAULTS


def _worker_environment() -> dict[str, str]:
    home = str(Path(__file__).resolve().parent.parent.parent)
    paths = [home, *filter(None, [os.environ.get("PYTHONPATH")])]
    patience = {} if "OMP_WAIT_POLICY" in os.environ else _PATIENCE
    return patience | os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
