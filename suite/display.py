"""What a run looks like while it goes on: bars in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from suite.executors.local import Advanced, Ended, Event, PutOff, Started
from suite.records import Record
from suite.spec import Cell


class Display(Protocol):
    """Shows the events of a run; a context manager."""

    def show(self, event: Event) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def display_for(console: Console, cells: Sequence[Cell], titles: Mapping[str, str]) -> Display:
    """Bars if the console is a terminal, plain lines if not; `titles` has a line for each cell, by its id."""
    return (_Bars if console.is_terminal else _Lines)(console, len(cells), titles)


class _Lines:
    """One line for each cell that ends."""

    def __init__(self, console: Console, num_cells: int, titles: Mapping[str, str]) -> None:
        self._console = console
        self._num_cells = num_cells
        self._titles = titles
        self._num_done = 0
        self._started = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        return

    def show(self, event: Event) -> None:
        if not isinstance(event, Ended):
            return
        self._num_done += 1
        seconds_left = (time.monotonic() - self._started) / self._num_done * (self._num_cells - self._num_done)
        left = f" · about {_duration(seconds_left)} left" if self._num_done < self._num_cells else ""
        line = (
            f"[{self._num_done}/{self._num_cells}] {self._titles[event.record.cell_id]}: {_outcome(event.record)}{left}"
        )
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)


class _Bars:
    """A bar for the run and one for each cell at work."""

    def __init__(self, console: Console, num_cells: int, titles: Mapping[str, str]) -> None:
        self._progress = Progress(
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[note]}", style="dim", markup=False),
            TimeElapsedColumn(),
            _TimeLeft(),
            console=console,
        )
        self._whole = self._progress.add_task(f"{num_cells} cells", total=num_cells, note="", is_whole=True)
        self._titles = titles
        self._num_ended = 0
        self._bars: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for bar in self._bars.values():
            self._progress.remove_task(bar)
        self._progress.stop()

    def show(self, event: Event) -> None:
        match event:
            case Started(cell):
                title = self._titles[cell.id]
                self._bars[cell.id] = self._progress.add_task(title, total=1.0, note="starting", is_whole=False)
            case Advanced(cell, fraction, note):
                self._progress.update(self._bars[cell.id], completed=fraction)
                if note is not None:
                    self._progress.update(self._bars[cell.id], note=note)
            case PutOff(cell):
                self._progress.remove_task(self._bars.pop(cell.id))
            case Ended(record):
                self._progress.remove_task(self._bars.pop(record.cell_id))
                self._num_ended += 1
                said = f"{self._titles[record.cell_id]}: {_outcome(record)}"
                line = Text(f"✓ {said}") if record.failure is None else Text(f"✗ {said}", style="red")
                self._progress.console.print(line)
        at_work = sum(task.completed for task in self._progress.tasks if not task.fields["is_whole"])
        self._progress.update(self._whole, completed=self._num_ended + at_work, note=f"{self._num_ended} done")


class _TimeLeft(ProgressColumn):
    """Time left for the whole run, at the pace so far."""

    def render(self, task: Task) -> Text:
        if not task.fields["is_whole"] or not task.elapsed or task.completed < 0.5 or task.total is None:
            return Text("")
        seconds_left = task.elapsed / task.completed * (task.total - task.completed)
        return Text(f"about {_duration(seconds_left)} left", style="cyan")


def _outcome(record: Record) -> str:
    """A cell's result in a few words."""
    if record.failure is not None:
        return f"{record.failure.kind.replace('_', ' ')}: {record.failure.message}"
    measurement = record.measurement
    assert measurement is not None
    seconds = f"{record.duration_seconds:.1f} s"
    if measurement.accuracy is not None:
        accuracy = measurement.accuracy
        if not accuracy.test:
            return f"trained, but no test length could be scored ({seconds})"
        value = getattr(accuracy.test[0], accuracy.metric)
        shown = f"{value:.3f} bits per byte" if accuracy.metric == "bits_per_byte" else f"{value:.1%}"
        return f"{shown} after {accuracy.steps_run} steps ({seconds})"
    assert measurement.cost is not None
    training = measurement.cost.training
    median = sorted(training.samples_seconds)[len(training.samples_seconds) // 2]
    return f"{training.tokens_per_call / median:,.0f} training tokens/s ({seconds})"


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds))).removeprefix("0:")
