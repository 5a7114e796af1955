"""The command `suite`: parses, prints, sets the exit code; what is heavy is imported by the command that needs it.

Exit codes: 0 done, 1 done but some cell failed or a contract is broken, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import webbrowser
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from suite.bench.commands import bench
from suite.errors import StoreError, SuiteError, UsageError

if TYPE_CHECKING:
    from suite.executors.local import LocalExecutor
    from suite.records import Record
    from suite.registry import Entry
    from suite.spec import Cell, RunSpec
    from suite.store import Store

app = typer.Typer(
    name="suite",
    help="Which sequence model for my task, my lengths and my GPU? Accuracy and cost of the same configuration.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(bench)
console = Console()
errors = Console(stderr=True)

DEFAULT_OUT = Path("results")

_MAIN_SECTIONS = ("summary", "accuracy", "throughput", "memory", "failures")
"""What the terminal shows at the end of a run; the page and `suite report` show all."""


class Format(StrEnum):
    """What a report can be written as."""

    text = "text"
    markdown = "markdown"
    csv = "csv"
    latex = "latex"
    html = "html"


Plugins = Annotated[list[Path] | None, typer.Option("--plugin", help="A Python file with models or tasks; repeatable.")]
ResultsFolder = Annotated[Path, typer.Argument(help="A results folder, as --out of `suite run` made it.")]


@app.command()
def run(
    experiment: Annotated[Path | None, typer.Argument(help="A TOML experiment file; options go before it.")] = None,
    models: Annotated[str | None, typer.Option(help="Comma-separated names; see `suite list`.")] = None,
    tasks: Annotated[str | None, typer.Option(help="Comma-separated names; see `suite list`.")] = None,
    preset: Annotated[str | None, typer.Option(help="Size of the tasks: quick, standard, paper.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Comma-separated seeds, for example 0,1,2.")] = None,
    measure: Annotated[str | None, typer.Option(help="accuracy, cost, or both: accuracy,cost.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; the GPU if there is one.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32 or bf16; bf16 on a GPU, fp32 on a CPU.")] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="mamba.state_size=8, budget.steps=100, …; repeatable."),
    ] = None,
    plugin: Plugins = None,
    out: Annotated[Path, typer.Option(help="Results folder; the same command goes on where it stopped.")] = DEFAULT_OUT,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Accuracy cells at a time; one a CPU core, or some on each GPU.")
    ] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds of silence after which a cell is given up.")] = 600.0,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run failed cells again.")] = False,
    open_report: Annotated[bool, typer.Option("--open", help="Open the report in a browser at the end.")] = False,
) -> None:
    """Run models on tasks, measure accuracy and cost, and write a report."""
    from reports.formatting import counted
    from suite.executors.local import local_executor
    from suite.plan import Request, parse_assignments, plan, read_experiment
    from suite.registry import Registry
    from suite.runner import missing_cells
    from suite.store import Store

    fields = read_experiment(experiment) if experiment else {"overrides": {}}
    for section, values in parse_assignments(assignments or []).items():
        fields["overrides"][section] = fields["overrides"].get(section, {}) | values
    given = {
        "models": _names(models),
        "tasks": _names(tasks),
        "preset": preset,
        "seeds": _seeds(seeds),
        "measure": _names(measure),
        "device": device,
        "precision": precision,
        "plugins": [str(path.resolve()) for path in plugin] if plugin else None,
    }
    fields |= {key: value for key, value in given.items() if value is not None}
    request = Request.parse(fields, where="run")
    spec = plan(request, Registry([Path(path) for path in request.plugins]))
    store = Store(out)
    with store.writing():
        missing = missing_cells(spec, store.records(), retry_failed=retry_failed)
        _announce(spec, len(missing), out)
        store.write_spec(spec)
        interrupted = _run_cells(missing, store, local_executor(spec, jobs, timeout))
    records = _of_spec(store.records(), spec)
    if records:
        page = _publish(records, spec, out)
        if open_report:
            _open(page)
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


@app.command("list")
def list_plugins(plugin: Plugins = None) -> None:
    """Show models, tasks, presets, and what this machine can run with which implementation."""
    from rich.table import Table

    from models.composition import part_rows
    from suite.inspection import implementation_rows
    from suite.registry import Registry

    registry = Registry(plugin or [])
    models = Table("Model", "What it is", title="Models")
    for name in [*registry.model_names(), *registry.adapter_names()]:
        models.add_row(name, registry.model(name).summary() + _from_elsewhere(registry.entry("model", name)))
    parts = Table("Block:mixer", "What it is", title="Models by composition: any block:mixer, such as h3:s4d")
    for name, what in part_rows():
        parts.add_row(name, what)
    tasks = Table("Task", "What it is", "Presets", "Scored by", title="Tasks")
    for name in registry.task_names():
        task = registry.task(name)
        what = task.summary() + _from_elsewhere(registry.entry("task", name))
        tasks.add_row(name, what, "\n".join(task.presets), task.metric.replace("_", " "))
    kernels = Table(
        "Operation", "Device", "auto takes", "Also there", "Not there", title="Kernels", title_justify="left"
    )
    for row in implementation_rows():
        kernels.add_row(*row)
    for table in (models, parts, tasks, kernels):
        table.title_justify = "left"
        console.print(table)


def _from_elsewhere(entry: Entry) -> str:
    """Where a plugin comes from that is not built in."""
    return "" if entry.is_built_in else f" [dim](from {escape(entry.origin)})[/]"


@app.command()
def report(
    folder: ResultsFolder = DEFAULT_OUT,
    format: Annotated[Format, typer.Option(help="What to write.")] = Format.text,
    out: Annotated[Path | None, typer.Option(help="File to write; standard output if not given.")] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="All records of the folder, not only the last run's.")
    ] = False,
    open_report: Annotated[bool, typer.Option("--open", help="Open the HTML page in a browser.")] = False,
) -> None:
    """Write a results folder as text, Markdown, CSV, LaTeX or one HTML page."""
    from reports import build_report, render

    records, spec = _read(folder, everything)
    wanted = Format.html if open_report else format
    if wanted is Format.html and out is None:
        out = folder / "report.html"
    content = render(build_report(records, spec), wanted.value)
    if out is None:
        print(content)
        return
    _write_file(out, content)
    console.print(f"Report: {out}", soft_wrap=True, highlight=False)
    if open_report:
        _open(out)


@app.command()
def compare(
    a: ResultsFolder,
    b: ResultsFolder,
    format: Annotated[Format, typer.Option(help="What to write.")] = Format.text,
) -> None:
    """Set two results folders side by side: what changed, and whether it is more than noise."""
    from reports import compare as compare_records
    from reports import render

    sides = [_read(folder, everything=True)[0] for folder in (a, b)]
    for folder, records in zip((a, b), sides, strict=True):
        if not records:
            raise UsageError(f"{folder} holds no records yet; there is nothing to compare")
    print(render(compare_records(*sides), format.value))


@app.command()
def check(
    plugin: Annotated[Path, typer.Argument(help="A Python file with models or tasks.")],
) -> None:
    """Run the contract tests on every model and task of a plugin file."""
    from reports.formatting import counted
    from suite.inspection import check_plugin

    num_broken = 0
    for claim, violation in check_plugin(plugin):
        mark = "[green]✓[/]" if violation is None else "[red]✗[/]"
        said = claim if violation is None else f"{claim}\n    {violation}"
        console.print(f"{mark} {escape(said)}", highlight=False, soft_wrap=True)
        num_broken += violation is not None
    if num_broken:
        errors.print(f"{counted(num_broken, 'promise')} broken.", highlight=False)
        raise typer.Exit(1)
    console.print("Every promise is kept.")


@app.command()
def doctor() -> None:
    """Show the machine, the GPU, the versions and which optional packages are missing."""
    from rich.table import Table

    from suite.inspection import examine_machine

    table = Table("What", "Found", title="This machine", title_justify="left")
    for what, found in examine_machine():
        table.add_row(what, found)
    console.print(table)


def main() -> None:
    """Entry point: deliberate errors become one message and exit code 2."""
    try:
        app(standalone_mode=True)
    except SuiteError as error:
        errors.print(f"Error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        errors.print("Interrupted before anything was run.", highlight=False)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output (head, less) has gone; there is nobody left to tell.
        sys.stderr.close()
        sys.exit(1)


def _run_cells(cells: list[Cell], store: Store, executor: LocalExecutor) -> bool:
    """Runs the cells under a display; True if the user interrupted."""
    from suite.display import display_for
    from suite.runner import run as run_cells

    events = run_cells(cells, store, executor)
    try:
        with _terminated_like_ctrl_c(), contextlib.closing(events), display_for(console, cells) as display:
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


def _announce(spec: RunSpec, num_missing: int, out: Path) -> None:
    from reports.formatting import counted

    first = spec.cells[0]
    num_done = len(spec.cells) - num_missing
    done = f", {num_done} already done" if num_done else ""
    console.print(
        f"{counted(len(spec.models), 'model')} × {counted(len(spec.tasks), 'task')}, preset {spec.preset}, "
        f"on {first.device} in {first.precision}: {counted(len(spec.cells), 'cell')}{done}. Results: {out}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _read(folder: Path, everything: bool) -> tuple[list[Record], RunSpec | None]:
    from suite.store import Store

    store = Store(folder)
    records, spec = store.records(), store.spec()
    if everything or spec is None:
        return records, None
    return _of_spec(records, spec), spec


def _of_spec(records: list[Record], spec: RunSpec) -> list[Record]:
    wanted = {cell.id for cell in spec.cells}
    return [record for record in records if record.cell_id in wanted]


def _publish(records: list[Record], spec: RunSpec, out: Path) -> Path:
    """Writes the page, prints its main tables and says where it lies."""
    from reports import build_report, render

    whole = build_report(records, spec)
    page = (out / "report.html").resolve()
    _write_file(page, render(whole, "html"))
    print()
    print(render(whole.only(*_MAIN_SECTIONS), "text"))
    console.print(f"Report: {page}", soft_wrap=True, highlight=False)
    return page


def _write_file(path: Path, content: str) -> None:
    try:
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise StoreError(f"The report cannot be written to {path}: {error.strerror}. Choose another --out") from error


def _open(page: Path) -> None:
    # Without a display, webbrowser would start a text browser and block the terminal.
    has_display = sys.platform == "darwin" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if not (has_display and webbrowser.open(page.resolve().as_uri())):
        errors.print("No browser can be started here; open the page by hand.", highlight=False)


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def _seeds(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(seed) for seed in text.split(",")]
    except ValueError:
        raise UsageError(f"--seeds {text}: expected whole numbers between commas, for example 0,1,2") from None


def _this_command() -> str:
    return shlex.join(["suite", *sys.argv[1:]])


if __name__ == "__main__":
    main()
