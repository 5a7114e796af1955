"""A planned run at the terminal, as every command that runs cells carries it out: announced, shown, published."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import webbrowser
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from suite.errors import StoreError, UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from reports.document import Report
    from suite.executors.local import LocalExecutor
    from suite.records import Record
    from suite.spec import Cell, RunSpec
    from suite.store import Store

console = Console()
errors = Console(stderr=True)

_MAIN_SECTIONS = ("summary", "accuracy", "throughput", "memory", "failures")
"""What the terminal shows at the end of a run; the page and `suite report` show all."""

_NARROWEST = 40
"""Columns below which a table is not folded any further."""

_OF_A_REPRODUCTION = ("reproduction", "failures")


def carry_out(
    spec: RunSpec, out: Path, *, num_jobs: int | None, timeout: float, retry_failed: bool, opens_report: bool
) -> None:
    """Runs the cells that `out` lacks, and those that their records ask for, and publishes the report.

    Raises:
        StoreError: the folder cannot be written or continued.
        typer.Exit: 1 if a cell failed, 130 if the user interrupted.
    """
    from reports.formatting import counted
    from suite.executors.local import local_executor
    from suite.runner import missing_cells
    from suite.store import Store
    from suite.tuning import extended

    store = Store(out)
    with store.writing():
        records = store.records()
        _refuse_other_protocols(records, out)
        spec = extended(spec, records)
        missing = missing_cells(spec, records, retry_failed=retry_failed)
        _announce(spec, len(missing), out)
        executor = local_executor(spec, num_jobs, timeout)
        _announce_replaced(store, spec)
        store.write_spec(spec)
        interrupted = _run_cells(spec, missing, store, executor)
        while not interrupted:
            records = store.records()
            spec = extended(spec, records)
            # What failed once more has a record, and is not tried for ever.
            missing = missing_cells(spec, records, retry_failed=False)
            if not missing:
                break
            _announce_extension(missing)
            store.write_spec(spec)
            interrupted = _run_cells(spec, missing, store, executor)
    records = of_spec(store.records(), spec)
    if records:
        page = _publish(records, spec, out)
        if opens_report:
            open_page(page)
    if interrupted:
        num_left = len(missing_cells(spec, records, retry_failed=retry_failed))
        errors.print(
            f"Interrupted. What finished is safe in {out}; {num_left} of {counted(len(spec.cells), 'cell')} left. "
            f"Go on with:\n  {_this_command()}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
        raise typer.Exit(130)
    num_failed = len(missing_cells(spec, records, retry_failed=True))
    if num_failed:
        errors.print(
            f"{counted(num_failed, 'cell')} failed; the report says why. --retry-failed runs them again.",
            highlight=False,
        )
        raise typer.Exit(1)


def of_spec(records: list[Record], spec: RunSpec) -> list[Record]:
    """The records of the cells that a run asked for."""
    wanted = {cell.id for cell in spec.cells}
    return [record for record in records if record.cell_id in wanted]


def matching_table(spec: RunSpec) -> Table:
    """The width that each model got on each task, and how well it fits."""
    from rich.table import Table

    from reports.formatting import exact_count
    from suite.spec import MATCHED_UNITS

    assert spec.matching is not None
    unit = MATCHED_UNITS[spec.matching.policy]
    table = Table("Task", "Model", title=f"Matched by {unit}", title_justify="left")
    for title in ("Width", unit.capitalize(), "Target", "Off by"):
        table.add_column(title, justify="right")
    for size in spec.matched:
        table.add_row(
            size.task,
            size.model,
            exact_count(size.width),
            exact_count(size.size),
            exact_count(size.target),
            f"{size.residual:+.2%}",
        )
    return table


def print_text(report: Report) -> None:
    """Prints it as wide as the terminal is; what is no terminal gets the same width everywhere."""
    from reports.plain_text import render_text

    print(render_text(report, width=max(console.width, _NARROWEST)) if console.is_terminal else render_text(report))


def write_file(path: Path, content: str) -> None:
    """Raises StoreError if it cannot be written."""
    try:
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise StoreError(f"The report cannot be written to {path}: {error.strerror}. Choose another --out") from error


def open_page(page: Path) -> None:
    """Opens it in a browser, or says that there is none."""
    # Without a display, webbrowser would start a text browser and block the terminal.
    has_display = sys.platform == "darwin" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if not (has_display and webbrowser.open(page.resolve().as_uri())):
        errors.print("No browser can be started here; open the page by hand.", highlight=False)


def names(text: str | None) -> list[str] | None:
    """What stands between the commas of an option."""
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def seed_numbers(text: str | None) -> list[int] | None:
    """The seeds of `--seeds`. Raises UsageError if they are no whole numbers."""
    if text is None:
        return None
    try:
        return [int(seed) for seed in text.split(",")]
    except ValueError:
        raise UsageError(f"--seeds {text}: expected whole numbers between commas, for example 0,1,2") from None


def _refuse_other_protocols(records: list[Record], out: Path) -> None:
    from suite.spec import PROTOCOL_VERSION

    others = sorted({record.cell.protocol for record in records} - {PROTOCOL_VERSION})
    if others:
        raise StoreError(
            f"{out} holds results of protocol version {', '.join(map(str, others))}; this version of the suite "
            f"measures by version {PROTOCOL_VERSION}, and the two do not compare. Choose another --out"
        )


def _run_cells(spec: RunSpec, cells: list[Cell], store: Store, executor: LocalExecutor) -> bool:
    """Runs the cells under a display; True if the user interrupted."""
    from suite.display import display_for
    from suite.runner import run as run_cells

    events = run_cells(cells, store, executor)
    try:
        with _terminated_like_ctrl_c(), contextlib.closing(events), display_for(console, cells, spec.titles) as display:
            for event in events:
                display.show(event)
    except KeyboardInterrupt:
        return True
    return False


@contextlib.contextmanager
def _terminated_like_ctrl_c() -> Iterator[None]:
    """SIGTERM ends a run as cleanly as Ctrl-C does."""
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _publish(records: list[Record], spec: RunSpec, out: Path) -> Path:
    """Writes the page, prints its main tables and says where it lies."""
    from reports import build_report, render

    whole = build_report(records, spec)
    page = (out / "report.html").resolve()
    write_file(page, render(whole, "html"))
    print()
    print_text(whole.only(*(_MAIN_SECTIONS if spec.reproduction is None else _OF_A_REPRODUCTION)))
    console.print(f"Report: {page}", soft_wrap=True, highlight=False)
    return page


def _announce(spec: RunSpec, num_missing: int, out: Path) -> None:
    from reports.formatting import counted

    first = spec.cells[0]
    num_done = len(spec.cells) - num_missing
    done = f", {num_done} already done" if num_done else ""
    console.print(
        f"{_what_it_is(spec)}, preset {spec.preset}, "
        f"on {first.device} in {first.precision}: {counted(len(spec.cells), 'cell')}{done}. Results: {out}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    if spec.matching is not None:
        console.print(matching_table(spec), highlight=False)


def _what_it_is(spec: RunSpec) -> str:
    from reports.formatting import counted

    if spec.reproduction is not None:
        return spec.reproduction.title
    return f"{counted(len(spec.models), 'model')} × {counted(len(spec.tasks), 'task')}"


def _announce_replaced(store: Store, spec: RunSpec) -> None:
    """Says so where the folder was another run's, whose report this one's takes the place of."""
    before = None
    with contextlib.suppress(StoreError):  # A damaged description is written anew.
        before = store.spec()
    if before is None or {cell.id for cell in before.cells} & {cell.id for cell in spec.cells}:
        return
    console.print(
        f"{store.folder} held another run: {_what_it_is(before)}, preset {before.preset}. Its records stay, and its "
        "own command shows them again; the report is now this run's.",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _announce_extension(cells: list[Cell]) -> None:
    from reports.formatting import counted, learning_rate, listed

    rates = sorted({(cell.model.name, cell.task.name, cell.learning_rate or 0.0) for cell in cells})
    tried = listed([f"{model} on {task} at {learning_rate(rate)}" for model, task, rate in rates])
    console.print(
        f"The best learning rate is at the edge of the grid; {counted(len(cells), 'cell')} more: {tried}.",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _this_command() -> str:
    return shlex.join(["suite", *sys.argv[1:]])
