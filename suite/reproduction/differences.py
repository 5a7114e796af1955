"""In what a run departs from the published protocol, found by comparing its cells with those of the paper's size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from suite.reproduction.experiment import Experiment
from suite.spec import Cell, Difference, canonical_json


@dataclass(frozen=True)
class Training:
    """The cells that answer one entry of the table, for all learning rates and seeds."""

    cells: tuple[Cell, ...]
    test_length: int | None

    @property
    def is_tested(self) -> bool:
        """Whether the budget reaches a test of this length."""
        longest = self.cells[0].budget.longest_test if self.cells[0].budget is not None else None
        return self.test_length is None or longest is None or self.test_length <= longest


Trainings = dict[tuple[str, str], Training]
"""By the label of the row and the name of the column."""

_TEST_LENGTHS = "test_lengths"
"""Tests change nothing about the training; the columns say which there are."""

_NOT_OF_THE_TRAINING = frozenset(
    f"budget.{name}" for name in ("evaluate_every", "validation_batches", "test_batches", "longest_test")
)

_MANY = 3
"""Values that are still named one by one."""


def is_reduced(here: Training, published: Training) -> bool:
    """Whether task, model or training differ in more than what is tried, validated and tested."""
    return not _changes(here, published).keys() <= _NOT_OF_THE_TRAINING


def differences(experiment: Experiment, here: Trainings, published: Trainings) -> tuple[Difference, ...]:
    """Every setting that is not as published, over all rows and columns, by the name under which it can be set."""
    changes: dict[str, list[tuple[Any, Any]]] = {}
    for place, training in here.items():
        for key, change in _changes(training, published[place]).items():
            changes.setdefault(key, []).append(change)
    found = [
        _left_out("rows", experiment.labels, [row for row, _ in here]),
        _left_out("columns", experiment.columns, [column for _, column in here]),
        *(_difference(key, pairs) for key, pairs in changes.items()),
        _other_sweep("learning rates", published, here, lambda cell: cell.learning_rate, _span),
        _other_sweep("seeds", published, here, lambda cell: cell.seed, lambda seeds: str(len(seeds))),
    ]
    return tuple(difference for difference in found if difference is not None)


def _changes(here: Training, published: Training) -> dict[str, tuple[Any, Any]]:
    """Setting -> (as published, here), where they differ."""
    before, now = _settings(published.cells[0]), _settings(here.cells[0])
    return {key: (before.get(key), value) for key, value in now.items() if before.get(key) != value}


def _settings(cell: Cell) -> dict[str, Any]:
    sections: dict[str, Mapping[str, Any]] = {
        cell.task.name: {key: value for key, value in cell.task.settings.items() if key != _TEST_LENGTHS},
        cell.model.name: cell.model.settings,
        "shell": cell.shell.model_dump(mode="json"),
        "budget": cell.budget.model_dump(mode="json") if cell.budget is not None else {},
    }
    return {f"{section}.{key}": value for section, settings in sections.items() for key, value in settings.items()}


def _left_out(what: str, published: Sequence[str], here: Iterable[str]) -> Difference | None:
    present = set(here)
    missing = [name for name in published if name not in present]
    if not missing:
        return None
    return Difference(setting=what, published=str(len(published)), here=f"{len(present)}, without {_span(missing)}")


def _difference(setting: str, pairs: Sequence[tuple[Any, Any]]) -> Difference:
    before, now = ([pair[side] for pair in pairs] for side in (0, 1))
    return Difference(setting=setting, published=_span(before), here=_span(now), factor=_factor(pairs))


def _other_sweep(
    what: str,
    published: Trainings,
    here: Trainings,
    of_cell: Callable[[Cell], Any],
    write: Callable[[list[Any]], str],
) -> Difference | None:
    before, now = (
        write(sorted({of_cell(cell) for place in here for cell in trainings[place].cells}))
        for trainings in (published, here)
    )
    return Difference(setting=what, published=before, here=now) if before != now else None


def _span(values: Iterable[Any]) -> str:
    """The values, or the first and the last of many."""
    distinct = list(dict.fromkeys(value if _is_number(value) else _in_words(value) for value in values))
    if all(_is_number(value) for value in distinct):
        distinct.sort()
    shown = [f"{value:,}" if _is_number(value) else value for value in distinct]
    return ", ".join(shown) if len(shown) <= _MANY else f"{shown[0]} … {shown[-1]}"


def _in_words(value: Any) -> str:
    if value is None:
        return "none"
    return value if isinstance(value, str) else canonical_json(value)


def _factor(pairs: Iterable[tuple[Any, Any]]) -> str:
    """How many times smaller or larger a number has become: "÷ 32", "÷ 117 to ÷ 585"."""
    pairs = list(pairs)
    if not all(_is_number(value) and value > 0 for pair in pairs for value in pair):
        return ""
    ratios = sorted({before / now for before, now in pairs})
    ends = ratios if len(ratios) == 1 else [ratios[0], ratios[-1]]
    return " to ".join(f"÷ {_three_digits(ratio)}" if ratio >= 1 else f"× {_three_digits(1 / ratio)}" for ratio in ends)


def _three_digits(ratio: float) -> str:
    return f"{float(f'{ratio:.3g}'):,.0f}" if ratio >= 1000 else f"{ratio:.3g}"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
