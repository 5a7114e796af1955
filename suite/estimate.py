"""What a run will cost, before it starts: cells, steps and tokens by counting, seconds from a moment of each.

Each model is trained on each task as its first cell would be, for a moment, and stopped; what follows is arithmetic.
"""

from __future__ import annotations

import contextlib
import gc
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from suite.cost import MAX_GENERATION_SAMPLES, MAX_STEPPED_CONTEXT
from suite.errors import SuiteError
from suite.evaluation import evaluate
from suite.measure.memory import is_out_of_memory
from suite.measure.time import call_seconds
from suite.progress import Progress
from suite.registry import Registry
from suite.spec import Cell, RunSpec
from suite.trainee import Trainee, parse_plugins
from suite.trial import run_cell

MOMENT_SECONDS = 2.0
"""How long a model is trained on a task after its first steps."""

_COST_ROUNDS = 13
"""Training steps, and inferences, of a cost cell: rehearsal, memory, warm-up and ten timed ones."""

_SPREAD = 1.25
"""What a moment does not see (a slow spell, a process that starts, cells beside) is taken to be within this factor."""

_NUM_SAMPLES = 3
"""Timed calls, at most, of what is not trained."""


@dataclass(frozen=True)
class Seconds:
    """An estimate and the range of it."""

    low: float
    middle: float
    high: float

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(self.low + other.low, self.middle + other.middle, self.high + other.high)

    def times(self, low: float, middle: float, high: float) -> Seconds:
        """Each of the three by a factor of its own."""
        return Seconds(self.low * low, self.middle * middle, self.high * high)

    def __mul__(self, factor: float) -> Seconds:
        return self.times(factor, factor, factor)

    @classmethod
    def of(cls, samples: Sequence[float]) -> Seconds:
        """The median, in a range that holds the samples and is never narrower than a moment can promise."""
        median = statistics.median(samples)
        return cls(min(*samples, median / _SPREAD), median, max(*samples, median * _SPREAD))


NO_SECONDS = Seconds(0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Share:
    """A model's part of a run on one task."""

    model: str
    """Or the row of the published table that is to be reproduced."""
    task: str
    """Or the column of that table, where columns are trained each by itself."""
    training: tuple[Cell, ...]
    timing: tuple[Cell, ...]
    """Its cost cells."""
    tokens_per_step: int
    num_extensions: int
    """Learning rates at most by which its grid may be extended."""

    @property
    def num_cells(self) -> int:
        return len(self.training) + len(self.timing)

    @property
    def num_further_cells(self) -> int:
        """Cells at most that an extended grid would add."""
        return self.num_extensions * len({cell.seed for cell in self.training})

    @property
    def num_steps(self) -> int:
        """Training steps, if no cell stops early and no grid is extended."""
        return sum(cell.budget.steps for cell in self.training if cell.budget is not None)

    @property
    def num_tokens(self) -> int:
        """Tokens trained on."""
        return self.num_steps * self.tokens_per_step


@dataclass(frozen=True)
class Estimate:
    """How long a share takes."""

    cell: Seconds = NO_SECONDS
    """One accuracy cell."""
    timing: Seconds = NO_SECONDS
    """All cost cells, which run one after the other."""
    failure: str | None = None
    """Why there is no estimate."""


def shares(spec: RunSpec, registry: Registry) -> list[Share]:
    """The parts of a run, task by task and in the order of the models; of a table, column by column."""
    places = _places(spec)
    cells: dict[tuple[str, str], list[Cell]] = {place: [] for place in dict.fromkeys(places.values())}
    for cell in spec.cells:
        cells[places[cell.id]].append(cell)
    found = []
    for (task_name, model), of_both in cells.items():
        training = tuple(cell for cell in of_both if cell.kind == "accuracy")
        grid = spec.grids.get(of_both[0].task.name)
        _, task = parse_plugins(of_both[0], registry)
        batch_size = training[0].budget.batch_size if training and training[0].budget is not None else 0
        found.append(
            Share(
                model=model,
                task=task_name,
                training=training,
                timing=tuple(cell for cell in of_both if cell.kind == "cost"),
                tokens_per_step=batch_size * task.length,
                num_extensions=grid.max_extensions if grid is not None and len(grid.learning_rates) > 1 else 0,
            )
        )
    return found


def _places(spec: RunSpec) -> dict[str, tuple[str, str]]:
    """Cell id -> (task, model) or (column, row), in the order of the parts."""
    if spec.reproduction is None:
        in_order = sorted(spec.cells, key=lambda cell: spec.tasks.index(cell.task.name))
        return {cell.id: (cell.task.name, cell.model.name) for cell in in_order}
    rows, columns = spec.reproduction.row_of, spec.reproduction.column_of
    if len(set(columns.values())) == 1:
        # Its columns, if there are several, are tests of one training.
        return {cell: (spec.tasks[0], row) for cell, row in rows.items()}
    names = [comparison.column for comparison in spec.reproduction.comparisons]
    return {cell: (columns[cell], rows[cell]) for cell in sorted(rows, key=lambda cell: names.index(columns[cell]))}


def estimate(share: Share, registry: Registry) -> Estimate:
    """Trains and times the model for a moment, on this machine and with nobody beside. Stores nothing."""
    try:
        return Estimate(
            cell=_accuracy_seconds(share.training[0], registry) if share.training else NO_SECONDS,
            timing=_cost_seconds(share.timing, registry) if share.timing else NO_SECONDS,
        )
    except SuiteError as error:
        return Estimate(failure=str(error))
    except Exception as error:
        # In a run, too, a model that breaks costs its own row and no other.
        first_line = str(error).strip().partition("\n")[0]
        reason = "out of memory" if is_out_of_memory(error) else f"{type(error).__name__}: {first_line}"
        return Estimate(failure=reason)
    finally:
        gc.collect()
        torch.cuda.empty_cache()


def total(parts: Sequence[tuple[Share, Estimate]], num_jobs: int, num_apart: int) -> Seconds:
    """Wall-clock seconds of a whole run, `num_jobs` accuracy cells at a time and cost cells alone.

    The low end has no extended grid, the high end all of them. At the high end only `num_apart` cells at a time, such
    as one on each GPU, gain from running beside each other.
    """
    training = timing = longest = NO_SECONDS
    for share, found in parts:
        num_cells = len(share.training)
        training += found.cell.times(num_cells, num_cells, num_cells + share.num_further_cells)
        timing += found.timing
        longest = max(longest, found.cell, key=lambda seconds: seconds.middle)
    divided = training.times(1 / num_jobs, 1 / num_jobs, 1 / min(num_jobs, num_apart))
    # The last cell cannot be shared out.
    pairs = zip((divided.low, divided.middle, divided.high), (longest.low, longest.middle, longest.high), strict=True)
    return Seconds(*(max(pair) for pair in pairs)) + timing


class _EnoughError(Exception):
    """The moment is over."""


class _Stopwatch:
    """A cell's listener that takes the time between its news and stops it after a moment, or when training is over."""

    def __init__(self, num_steps: int) -> None:
        self._num_steps = num_steps
        self._started = time.perf_counter()
        self._first: tuple[float, float] | None = None
        """When the first news came, with the first calls behind it, and at which step."""
        self._last: tuple[float, float] | None = None
        self._step_seconds: list[float] = []

    def __call__(self, progress: Progress) -> None:
        if progress.fraction is None:
            # A validation lies between this and the next news, which then says nothing of a step.
            self._last = None
            return
        now, step = time.perf_counter(), progress.fraction * self._num_steps
        self._first = self._first or (now, step)
        if self._last is not None and step > self._last[1]:
            self._step_seconds.append((now - self._last[0]) / (step - self._last[1]))
        self._last = now, step
        # Where validations follow each other closely there may never be two news without one between them.
        if progress.fraction >= 1 or now - self._first[0] >= MOMENT_SECONDS * (1 if self._step_seconds else 2):
            raise _EnoughError

    @property
    def step_seconds(self) -> list[float]:
        """Samples of a training step; if there are none, the mean of all so far with what lay between them."""
        if self._step_seconds or self._first is None or self._last is None:
            return self._step_seconds
        begun, num_before = self._first if self._first[1] < self._last[1] else (self._started, 0.0)
        now, step = self._last
        return [(now - begun) / (step - num_before)]


def _accuracy_seconds(cell: Cell, registry: Registry) -> Seconds:
    """Of one accuracy cell, from its first step to its last test."""
    assert cell.budget is not None
    stopwatch = _Stopwatch(cell.budget.steps)
    with contextlib.suppress(_EnoughError):
        run_cell(cell, registry, stopwatch)
    return Seconds.of(stopwatch.step_seconds) * cell.budget.steps + _evaluation_seconds(cell, registry)


def _evaluation_seconds(cell: Cell, registry: Registry) -> Seconds:
    """Of all validations and tests of an accuracy cell."""
    trainee = Trainee(cell, registry)
    budget, length = trainee.budget, trainee.task.length
    # A GPU scores many batches at once; a CPU takes one after the other, and one of them tells enough.
    num_sequences = budget.batch_size * (budget.validation_batches if trainee.device.type == "cuda" else 1)
    validate = partial(evaluate, trainee, "validation", length, num_sequences, hashed=False, listener=lambda news: None)
    num_validations = math.ceil(budget.steps / budget.evaluate_every)
    # A test is taken to cost as much a token as a validation, at whatever length.
    tokens = budget.validation_batches * length * num_validations + budget.test_batches * sum(trainee.task.test_lengths)
    return _timed(validate, trainee.device) * (budget.batch_size * tokens / (num_sequences * length))


def _cost_seconds(cells: Sequence[Cell], registry: Registry) -> Seconds:
    """Of all cost cells of a model on a task, from the shortest."""
    shortest = min(cells, key=lambda cell: cell.length or 0)
    assert shortest.length is not None
    assert shortest.batch_size is not None
    trainee = Trainee(shortest, registry)
    inputs, targets = trainee.batch("train", 0, shortest.batch_size, shortest.length, hashed=False)
    training = _timed(lambda: trainee.training_step(inputs, targets), trainee.device)
    with torch.inference_mode(), trainee.autocast():
        inference = _timed(lambda: trainee.shell(inputs), trainee.device)
        state = trainee.shell.initial_state(shortest.batch_size, _NUM_SAMPLES + 1)
        # A state may be reused for the next one, so each step takes the last state there is.
        states = [state]
        step = _timed(lambda: states.append(trainee.shell.step(inputs[:, 0], states.pop())[1]), trainee.device)
    seconds = NO_SECONDS
    for cell in cells:
        length = cell.length or 0
        seconds += (training + inference) * (_COST_ROUNDS * length / shortest.length)
        if trainee.shell.prefills_in_parallel:
            # A prompt is taken at once, in the time of an inference.
            seconds += inference * (length / shortest.length) + step * min(length, MAX_GENERATION_SAMPLES)
        else:
            seconds += step * min(length, MAX_STEPPED_CONTEXT)
    return seconds


def _timed(call: Callable[[], object], device: torch.device) -> Seconds:
    """Seconds of a call, after a first one that may compile, unless that was so slow that it has to do."""
    first = call_seconds(call, device)
    if first > MOMENT_SECONDS:
        return Seconds.of([first])
    samples = [call_seconds(call, device)]
    while len(samples) < _NUM_SAMPLES and sum(samples) < MOMENT_SECONDS:
        samples.append(call_seconds(call, device))
    return Seconds.of(samples)
