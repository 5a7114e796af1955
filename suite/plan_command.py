"""The command `suite plan`: what a run will come to, said before it starts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from suite.options import (
    Assignments,
    DeviceName,
    Experiment,
    Jobs,
    Match,
    Measure,
    Models,
    Plugins,
    PrecisionName,
    PresetName,
    Seeds,
    Tasks,
    requested,
)
from suite.terminal import console, errors, matching_table

if TYPE_CHECKING:
    from rich.table import Table

    from suite.estimate import Estimate, Share
    from suite.executors.local import LocalExecutor
    from suite.registry import Registry
    from suite.spec import RunSpec


_WIDE = 100
"""Columns of a terminal that hold the whole table in lines of its own."""


def plan(
    experiment: Experiment = None,
    models: Models = None,
    tasks: Tasks = None,
    preset: PresetName = None,
    seeds: Seeds = None,
    measure: Measure = None,
    match: Match = None,
    device: DeviceName = None,
    precision: PrecisionName = None,
    assignments: Assignments = None,
    plugin: Plugins = None,
    jobs: Jobs = None,
    no_measure: Annotated[bool, typer.Option("--no-measure", help="Count alone, and estimate no time.")] = False,
) -> None:
    """Say how many cells, steps, tokens and hours `suite run` with the same arguments will take. Stores nothing."""
    from suite.plan import plan as plan_run
    from suite.registry import Registry

    request = requested(
        experiment,
        models=models,
        tasks=tasks,
        preset=preset,
        seeds=seeds,
        measure=measure,
        match=match,
        device=device,
        precision=precision,
        assignments=assignments,
        plugin=plugin,
    )
    registry = Registry([Path(path) for path in request.plugins])
    show_plan(plan_run(request, registry), registry, jobs, takes_times=not no_measure)


def show_plan(spec: RunSpec, registry: Registry, jobs: int | None, *, takes_times: bool) -> None:
    """Prints what a run comes to; with times, from a moment of each of its parts."""
    from reports.formatting import counted
    from suite.estimate import shares
    from suite.executors.local import local_executor

    first, parts = spec.cells[0], shares(spec, registry)
    executor = local_executor(spec, jobs, silence_seconds=0.0)
    if spec.matching is not None:
        console.print(matching_table(spec), highlight=False)
    estimates = _measured(parts, registry, executor) if takes_times else None
    titles = (
        "Task" if all(part.task in spec.tasks for part in parts) else "Column",
        "Model" if spec.reproduction is None else "Row",
    )
    console.print(_table(parts, estimates, titles), highlight=False)
    lines = [
        f"{counted(len(spec.cells), 'cell')} on {first.device} in {first.precision}, "
        f"{counted(executor.num_jobs, 'accuracy cell')} at a time."
    ]
    if num_further := sum(share.num_further_cells for share in parts):
        lines.append(
            f"Up to {counted(num_further, 'cell')} more where the best learning rate is at the edge of a grid."
        )
    if any(cell.budget is not None and cell.budget.stop_at is not None for cell in spec.cells):
        lines.append("Steps are at most: training stops early at budget.stop_at.")
    if estimates is not None:
        lines.append(_in_all(parts, estimates, executor))
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)


def _measured(parts: list[Share], registry: Registry, executor: LocalExecutor) -> list[Estimate]:
    """An estimate for each part, with as many threads as a cell of the run will have."""
    import torch

    from suite.estimate import estimate

    num_jobs = min(executor.num_jobs, max(1, sum(len(share.training) for share in parts)))
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // num_jobs))
    estimates = []
    with errors.status("") as status:
        for position, share in enumerate(parts, start=1):
            doing = f"[{position}/{len(parts)}] measuring {share.model} on {share.task}"
            if errors.is_terminal:
                status.update(doing)
            else:
                errors.print(doing, highlight=False, markup=False, soft_wrap=True)
            estimates.append(estimate(share, registry))
    return estimates


def _table(parts: list[Share], estimates: list[Estimate] | None, titles: tuple[str, str]) -> Table:
    from rich.table import Table

    from reports.formatting import compact_count, exact_count

    table = Table(title="What will be run", title_justify="left")
    for title in titles:
        table.add_column(title, overflow="fold")
    for title in ("Cells", "Steps", "Tokens", *(() if estimates is None else ("Time", "Range"))):
        table.add_column(title, justify="right", no_wrap=title != "Range" or not _has_failures(estimates))
    for position, share in enumerate(parts):
        row = [
            share.task if position == 0 or parts[position - 1].task != share.task else "",
            share.model,
            exact_count(share.num_cells),
            exact_count(share.num_steps),
            compact_count(share.num_tokens),
        ]
        table.add_row(*row, *(() if estimates is None else _times(share, estimates[position])))
    total = [sum(values) for values in zip(*((s.num_cells, s.num_steps, s.num_tokens) for s in parts), strict=True)]
    table.add_section()
    table.add_row("all", "", exact_count(total[0]), exact_count(total[1]), compact_count(total[2]))
    return table


def _has_failures(estimates: list[Estimate] | None) -> bool:
    """Whether there is a reason in the place of a range, which may be long."""
    return any(found.failure is not None for found in estimates or ())


def _times(share: Share, found: Estimate) -> tuple[str, str]:
    if found.failure is not None:
        return "not measured", found.failure
    num_cells = len(share.training)
    whole = found.cell.times(num_cells, num_cells, num_cells + share.num_further_cells) + found.timing
    # In a narrow terminal names would have to give way to the range.
    dash = " – " if console.width >= _WIDE else " –\n"
    return _about(whole.middle), f"{_about(whole.low)}{dash}{_about(whole.high)}"


def _in_all(parts: list[Share], estimates: list[Estimate], executor: LocalExecutor) -> str:
    from reports.formatting import counted
    from suite.estimate import total

    num_apart = len(executor.gpus) or executor.num_jobs
    seconds = total(list(zip(parts, estimates, strict=True)), executor.num_jobs, num_apart)
    num_failed = sum(found.failure is not None for found in estimates)
    missing = f", without {counted(num_failed, 'row')} that could not be measured" if num_failed else ""
    between = f"{_about(seconds.low)} to {_about(seconds.high)}"
    return f"About {_about(seconds.middle)} in all ({between}){missing}: an estimate, from a moment of each here."


def _about(seconds: float) -> str:
    """No estimate is good to the minute where it takes hours."""
    from reports.formatting import duration

    hours = seconds / 3600
    return duration(seconds) if hours < 1 else f"{hours:.1f} h" if hours < 10 else f"{hours:,.0f} h"
