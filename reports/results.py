"""What records come to: attempts settled, learning rates selected, accuracy and cost joined.

    Outcome         one cell with all attempts at it: measured, failed or not run
    Trial           one learning rate of one model on one task, an outcome for each seed
    AccuracyEntry   one model on one task: its trials, and the one that validation selected
    CostEntry       one model under one cost setting: an outcome for each length
    Results         everything, with models and tasks named apart and in a fixed order

The learning rate is selected on validation alone; the test is only read for the one that was selected.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from reports import formatting
from reports.formatting import is_finite
from suite.records import Accuracy, Cost, CurvePoint, Evaluation, Failure, Measurement, Record, SliceScore
from suite.selection import Standing, best_standing, select
from suite.spec import Cell, RunSpec

SOLVED_AT = 0.95
"""The share from which on a task is solved that does not say so itself."""

_FAR = 0.25
"""Gap between the seeds that solved a task and the others from which on their mean describes none of them."""

Status = Literal["measured", "failed", "not_run"]


@dataclass(frozen=True)
class Metric:
    """A score by which a task is judged."""

    name: str
    title: str
    higher_is_better: bool
    write: formatting.Format
    write_range: Callable[[float, float], str]
    write_difference: formatting.Format
    solved_at: float | None
    """Where a task is solved that does not say it itself; None: nowhere."""

    @property
    def is_share(self) -> bool:
        """Whether it lies between 0 and 1."""
        return self.higher_is_better

    def of(self, evaluation: Evaluation) -> float | None:
        """The score; None where the evaluation has none or it is not a finite number."""
        value: float | None = getattr(evaluation, self.name)
        return value if is_finite(value) else None

    def rank(self, value: float) -> float:
        """Larger is better."""
        return value if self.higher_is_better else -value

    def best(self, values: Iterable[float]) -> float | None:
        """The best of them; None if there are none."""
        return max(values, key=self.rank, default=None)


def _percent_range(low: float, high: float) -> str:
    return f"{formatting.percentage(low)}–{formatting.percentage(high)}"


def _decimal_range(low: float, high: float) -> str:
    return f"{formatting.decimal(low)}–{formatting.decimal(high)}"


def _points(difference: float | None) -> str:
    return formatting.ABSENT if difference is None else f"{100 * difference:+.1f} points"


def _signed(difference: float | None) -> str:
    return formatting.ABSENT if difference is None else f"{difference:+.3f}"


METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("token_accuracy", "token accuracy", True, formatting.percent, _percent_range, _points, SOLVED_AT),
        Metric("sequence_accuracy", "sequence accuracy", True, formatting.percent, _percent_range, _points, SOLVED_AT),
        Metric("bits_per_byte", "bits per byte", False, formatting.decimal, _decimal_range, _signed, None),
    )
}


@dataclass(frozen=True)
class Outcome:
    """One cell and every attempt at it, oldest first."""

    cell: Cell
    attempts: tuple[Record, ...]

    @cached_property
    def record(self) -> Record | None:
        """The attempt that counts: the latest measurement, else the latest failure, else None."""
        measured = [record for record in self.attempts if _is_measured(record)]
        return next(reversed(measured or self.attempts), None)

    @property
    def status(self) -> Status:
        if self.record is None:
            return "not_run"
        return "measured" if _is_measured(self.record) else "failed"

    @property
    def measurement(self) -> Measurement | None:
        return self.record.measurement if self.record is not None and self.status == "measured" else None

    @property
    def accuracy(self) -> Accuracy | None:
        return self.measurement.accuracy if self.measurement is not None else None

    @property
    def cost(self) -> Cost | None:
        return self.measurement.cost if self.measurement is not None else None

    @property
    def failure(self) -> Failure | None:
        """Why there is no measurement; None if there is one or none was tried."""
        if self.record is None or self.status == "measured":
            return None
        return self.record.failure or Failure(kind="error", message="the record holds no measurement of its cell")


@dataclass(frozen=True)
class ModelVariant:
    """A model with its settings, precision and device: one row of a table, one colour of a chart."""

    label: str
    """Its name, with whatever sets it apart from others of that name."""
    name: str
    index: int
    """Position among all models."""


@dataclass(frozen=True)
class TaskVariant:
    """A task with its settings and budget: one column of a table."""

    label: str
    name: str
    index: int
    metric: Metric | None
    """None if no cell of this task was measured."""
    baseline: float | None
    """The metric of a model that cannot see the sequence."""
    solved_at: float | None
    """The metric from which on a seed has solved it; None: nothing counts as that."""

    def is_solved(self, score: float) -> bool:
        """Whether a score counts as having solved the task."""
        if self.metric is None or self.solved_at is None:
            return False
        return self.metric.rank(score) >= self.metric.rank(self.solved_at)

    def num_solved(self, scores: Iterable[float]) -> int:
        """Scores, of a seed each, that count as having solved the task."""
        return sum(map(self.is_solved, scores))

    def is_split_by(self, scores: Iterable[float]) -> bool:
        """Whether some seeds solved the task and the others are far from it, so that their mean describes none."""
        by_outcome: dict[bool, list[float]] = {True: [], False: []}
        for score in scores:
            by_outcome[self.is_solved(score)].append(score)
        if self.metric is None or not self.metric.is_share or not all(by_outcome.values()):
            return False
        return min(by_outcome[True]) - max(by_outcome[False]) > _FAR


@dataclass(frozen=True)
class CostSetting:
    """What cost cells share whose lengths belong on one axis."""

    label: str
    task_name: str
    batch_size: int
    index: int


@dataclass(frozen=True)
class Trial:
    """One learning rate of one model on one task; an outcome for each seed, in order of the seeds."""

    learning_rate: float
    outcomes: tuple[Outcome, ...]
    metric: Metric | None
    place: int = 0
    """Of its first cell among those of the run: in a tie, what was asked for first counts."""

    @cached_property
    def measured(self) -> list[tuple[int, Accuracy]]:
        """(seed, accuracy) of every seed with a finite validation and test score."""
        if self.metric is None:
            return []
        found = ((outcome.cell.seed or 0, outcome.accuracy) for outcome in self.outcomes)
        return [
            (seed, accuracy)
            for seed, accuracy in found
            if accuracy is not None and _best_validation(accuracy, self.metric) is not None
        ]

    @cached_property
    def validation_scores(self) -> list[float]:
        """The best validation of each measured seed."""
        if self.metric is None:
            return []
        scores = (_best_validation(accuracy, self.metric) for _, accuracy in self.measured)
        return [score for score in scores if score is not None]

    @cached_property
    def standings(self) -> list[Standing]:
        """The same validations, as they compare."""
        return [best_standing(accuracy) for _, accuracy in self.measured]

    @property
    def num_failed(self) -> int:
        return sum(outcome.status == "failed" for outcome in self.outcomes)

    @property
    def num_diverged(self) -> int:
        """Seeds whose training left the finite numbers, which is an outcome of the model and not of the machine."""
        failures = (outcome.failure for outcome in self.outcomes)
        return sum(failure is not None and failure.kind == "diverged" for failure in failures)

    @property
    def num_not_run(self) -> int:
        return sum(outcome.status == "not_run" for outcome in self.outcomes)


@dataclass(frozen=True)
class AccuracyEntry:
    """One model on one task, over learning rates and seeds."""

    model: ModelVariant
    task: TaskVariant
    configuration_id: str
    trials: tuple[Trial, ...]
    """By rising learning rate."""

    @cached_property
    def selected(self) -> Trial | None:
        """The learning rate that validation selects (`suite.selection`); None if nothing was measured."""
        in_order = sorted(self.trials, key=lambda trial: trial.place)
        rate = select({trial.learning_rate: trial.standings for trial in in_order})
        return next((trial for trial in self.trials if trial.learning_rate == rate), None)

    @property
    def is_at_edge_of_grid(self) -> bool:
        """Whether a learning rate beyond the three or more that were tried might have been better."""
        tried = [trial.learning_rate for trial in self.trials]
        return self.selected is not None and len(tried) > 2 and self.selected.learning_rate in (tried[0], tried[-1])

    @property
    def failures(self) -> list[Failure]:
        outcomes = [outcome for trial in self.trials for outcome in trial.outcomes]
        return [outcome.failure for outcome in outcomes if outcome.failure is not None]

    @cached_property
    def trained_length(self) -> int | None:
        """Tokens of the sequences that were trained and validated on."""
        return next((accuracy.curve[0].validation.length for _, accuracy in self._measured if accuracy.curve), None)

    @cached_property
    def test_lengths(self) -> list[int]:
        """The lengths at which a seed has a score."""
        return sorted({evaluation.length for _, accuracy in self._measured for evaluation in accuracy.test})

    @property
    def untested(self) -> dict[int, str]:
        """Length -> why a seed has no score there."""
        return {int(length): reason for _, accuracy in self._measured for length, reason in accuracy.untested.items()}

    @property
    def reported_length(self) -> int | None:
        """The test length shown first: the trained one where it was tested, else the shortest."""
        lengths = self.test_lengths
        return self.trained_length if self.trained_length in lengths else next(iter(lengths), None)

    def test_scores(self, length: int | None) -> dict[int, float]:
        """Seed -> test score at `length`, of the selected learning rate."""
        metric = self.task.metric
        if metric is None:
            return {}
        scores = {
            seed: metric.of(evaluation)
            for seed, accuracy in self._measured
            for evaluation in accuracy.test
            if evaluation.length == length
        }
        return {seed: score for seed, score in scores.items() if score is not None}

    @cached_property
    def reported_scores(self) -> dict[int, float]:
        """Seed -> test score at the reported length."""
        return self.test_scores(self.reported_length)

    @property
    def whole_sequence_scores(self) -> list[float]:
        """The share of test sequences without a mistake at the reported length, of each seed; none for text."""
        if self.task.metric is None or not self.task.metric.is_share:
            return []
        return [
            evaluation.sequence_accuracy
            for _, accuracy in self._measured
            for evaluation in accuracy.test
            if evaluation.length == self.reported_length
        ]

    @property
    def num_solved(self) -> int:
        """Seeds that solved the task, by their reported test scores."""
        return self.task.num_solved(self.reported_scores.values())

    @property
    def num_seeds(self) -> int:
        """Seeds that have a reported score or diverged: all that could have solved the task."""
        return self.num_seeds_at(self.reported_length)

    def num_seeds_at(self, length: int | None) -> int:
        """The same at a test length."""
        num_diverged = self.selected.num_diverged if self.selected is not None else 0
        return len(self.test_scores(length)) + num_diverged

    @property
    def is_split(self) -> bool:
        """Whether the reported scores are better counted than averaged."""
        return self.task.is_split_by(self.reported_scores.values())

    @property
    def mean(self) -> float | None:
        """Mean over seeds of the reported test scores."""
        scores = self.reported_scores
        return statistics.fmean(scores.values()) if scores else None

    def slice_scores(self, length: int) -> dict[str, list[SliceScore]]:
        """Slice -> its scores at `length`, one for each seed of the selected learning rate that has any."""
        scores: dict[str, list[SliceScore]] = {}
        for _, accuracy in self._measured:
            for evaluation in accuracy.test:
                for score in evaluation.slices or [] if evaluation.length == length else []:
                    scores.setdefault(score.name, []).append(score)
        return scores

    def curves(self) -> dict[int, list[tuple[int, float]]]:
        """Seed -> (step, validation score) of the selected learning rate."""
        metric = self.task.metric
        if metric is None:
            return {}
        return {seed: list(_scored(accuracy.curve, metric)) for seed, accuracy in self._measured}

    def solved(self) -> dict[int, CurvePoint]:
        """Seed -> the first validation that solved the task, of the seeds that got there at the selected rate."""
        metric = self.task.metric
        if metric is None:
            return {}
        firsts = {
            seed: next((point for point in accuracy.curve if self._is_solved_by(point, metric)), None)
            for seed, accuracy in self._measured
        }
        return {seed: point for seed, point in firsts.items() if point is not None}

    def _is_solved_by(self, point: CurvePoint, metric: Metric) -> bool:
        score = metric.of(point.validation)
        return score is not None and self.task.is_solved(score)

    @property
    def _measured(self) -> list[tuple[int, Accuracy]]:
        return self.selected.measured if self.selected is not None else []


@dataclass(frozen=True)
class CostEntry:
    """One model under one cost setting."""

    model: ModelVariant
    setting: CostSetting
    configuration_id: str
    outcomes: Mapping[int, Outcome]
    """Length in tokens -> outcome, by rising length."""

    def cost(self, length: int) -> Cost | None:
        return self.outcomes[length].cost if length in self.outcomes else None


@dataclass(frozen=True)
class Results:
    """All that a set of records comes to."""

    outcomes: tuple[Outcome, ...]
    models: tuple[ModelVariant, ...]
    tasks: tuple[TaskVariant, ...]
    cost_settings: tuple[CostSetting, ...]
    accuracy: tuple[AccuracyEntry, ...]
    costs: tuple[CostEntry, ...]
    spec: RunSpec | None
    model_of: Mapping[str, ModelVariant]
    """Cell id -> the row that it belongs to."""
    task_label_of: Mapping[str, str]
    """Cell id -> its task, named apart."""

    @property
    def records(self) -> list[Record]:
        """The attempt that counts of every cell that was tried."""
        return [outcome.record for outcome in self.outcomes if outcome.record is not None]

    def with_status(self, status: Status) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.status == status]

    def accuracy_of(self, model: ModelVariant, task: TaskVariant) -> AccuracyEntry | None:
        return next((entry for entry in self.accuracy if entry.model == model and entry.task == task), None)

    def accuracy_on(self, task: TaskVariant) -> list[AccuracyEntry]:
        """In order of the models."""
        return [entry for entry in self.accuracy if entry.task == task]

    def costs_under(self, setting: CostSetting) -> list[CostEntry]:
        """In order of the models."""
        return [entry for entry in self.costs if entry.setting == setting]

    def cost_lengths(self, setting: CostSetting) -> list[int]:
        return sorted({length for entry in self.costs_under(setting) for length in entry.outcomes})

    def reference_length(self, setting: CostSetting) -> int | None:
        """The longest of the lengths at which most models were measured; None if none was."""
        entries = self.costs_under(setting)
        counts = {
            length: sum(entry.cost(length) is not None for entry in entries) for length in self.cost_lengths(setting)
        }
        if not any(counts.values()):
            return None
        return max(counts, key=lambda length: (counts[length], length))

    def joined(self, entry: AccuracyEntry) -> list[CostEntry]:
        """The costs of the very same configuration."""
        return [cost for cost in self.costs if cost.configuration_id == entry.configuration_id]


def _is_measured(record: Record) -> bool:
    if record.measurement is None:
        return False
    return getattr(record.measurement, record.cell.kind) is not None


def _best_validation(accuracy: Accuracy, metric: Metric) -> float | None:
    return metric.best(score for _, score in _scored(accuracy.curve, metric))


def _scored(curve: Sequence[CurvePoint], metric: Metric) -> Iterator[tuple[int, float]]:
    for point in curve:
        score = metric.of(point.validation)
        if score is not None:
            yield point.step, score
