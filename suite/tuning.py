"""Learning rates beyond the grid: where the best one is at an edge, a better one may lie past it.

Every model starts from the same grid. When all of a model's trials on a task are done and validation selects the least
or the greatest rate, the next one in that direction is tried, by the factor between the last two, and so on until a
rate inside wins or the task's `max_extensions` are used up. Nothing is gained past an edge that is only the first of
equals, that makes no mistakes, or where every seed got as far as training goes (`budget.stop_at`). What is asked next
follows from the records alone, so an interrupted run comes to the same cells.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from suite.records import Accuracy, Record
from suite.selection import best_standing, select
from suite.spec import Cell, Grid, RunSpec, canonical_json

_DIGITS = 3
"""Significant digits of a rate: an extension reads like the grid and is the same on every machine."""


def extended(spec: RunSpec, records: Iterable[Record]) -> RunSpec:
    """The run with every cell that its records ask for beyond the grid; the same run if they ask for none."""
    tried: dict[str, Accuracy | None] = {}
    for record in records:
        accuracy = record.measurement.accuracy if record.measurement is not None else None
        tried[record.cell_id] = accuracy or tried.get(record.cell_id)
    cells = list(spec.cells)
    for trials in _trials(spec.cells):
        grid = spec.grids.get(trials[0].task.name)
        while grid is not None and (rate := _next_rate(trials, grid, tried)) is not None:
            seeds = {cell.seed: cell for cell in trials}.values()
            trials += [cell.model_copy(update={"learning_rate": rate}) for cell in seeds]
        cells += trials
    return spec.model_copy(update={"cells": tuple({cell.id: cell for cell in cells}.values())})


def _trials(cells: Iterable[Cell]) -> list[list[Cell]]:
    """The accuracy cells of each model on each task: all learning rates and seeds."""
    grouped: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.kind == "accuracy":
            configuration = cell.model_dump(mode="json", exclude={"seed", "learning_rate"})
            grouped.setdefault(canonical_json(configuration), []).append(cell)
    return list(grouped.values())


def _next_rate(trials: Sequence[Cell], grid: Grid, tried: Mapping[str, Accuracy | None]) -> float | None:
    """The learning rate to try next; None where all is not done yet, or done for good."""
    rates = sorted({cell.learning_rate for cell in trials if cell.learning_rate is not None})
    num_extensions = len(rates) - len(set(grid.learning_rates))
    if len(rates) < 2 or num_extensions >= grid.max_extensions or any(cell.id not in tried for cell in trials):
        return None
    measured = {rate: _measured(rate, trials, tried) for rate in rates}
    standings = {rate: [best_standing(accuracy) for accuracy in measured[rate]] for rate in rates}
    in_order = dict.fromkeys(cell.learning_rate for cell in trials if cell.learning_rate is not None)
    best = select({rate: standings[rate] for rate in in_order})
    if best is None or best not in (rates[0], rates[-1]):
        return None
    scores = {rate: [score for score, _ in standings[rate]] for rate in rates}
    is_tied = any(sorted(scores[rate]) == sorted(scores[best]) for rate in rates if rate != best)
    # No share is more than 1; bits per byte, turned to make more the better, are below 0.
    is_perfect = min(scores[best]) >= 1
    if is_tied or is_perfect or all(accuracy.stopped_early for accuracy in measured[best]):
        return None
    neighbour = rates[1] if best == rates[0] else rates[-2]
    return float(f"{best * best / neighbour:.{_DIGITS}g}")


def _measured(rate: float, trials: Iterable[Cell], tried: Mapping[str, Accuracy | None]) -> list[Accuracy]:
    """What the seeds came to that did not fail at this rate."""
    found = (tried[cell.id] for cell in trials if cell.learning_rate == rate)
    return [accuracy for accuracy in found if accuracy is not None]
