"""The command `suite`: parses, prints, sets the exit code; what is heavy is imported by the command that needs it.

Exit codes: 0 done, 1 done but some cell failed or a contract is broken, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from suite.bench.commands import bench
from suite.errors import SuiteError, UsageError
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
from suite.plan_command import plan
from suite.reproduction.commands import reproduce
from suite.terminal import carry_out, console, errors, of_spec, open_page, print_text, write_file

if TYPE_CHECKING:
    from reports.document import Report
    from suite.records import Record
    from suite.registry import Entry
    from suite.spec import RunSpec

app = typer.Typer(
    name="suite",
    help="Which sequence model for my task, my lengths and my GPU? Accuracy and cost of the same configuration.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(bench)

DEFAULT_OUT = Path("results")


class Format(StrEnum):
    """What a report can be written as."""

    text = "text"
    markdown = "markdown"
    csv = "csv"
    latex = "latex"
    html = "html"


ResultsFolder = Annotated[Path, typer.Argument(help="A results folder, as --out of `suite run` made it.")]


@app.command()
def run(
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
    out: Annotated[Path, typer.Option(help="Results folder; the same command goes on where it stopped.")] = DEFAULT_OUT,
    jobs: Jobs = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds of silence after which a cell is given up.")] = 600.0,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run failed cells again.")] = False,
    open_report: Annotated[bool, typer.Option("--open", help="Open the report in a browser at the end.")] = False,
) -> None:
    """Run models on tasks, measure accuracy and cost, and write a report."""
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
    spec = plan_run(request, Registry([Path(path) for path in request.plugins]))
    carry_out(spec, out, num_jobs=jobs, timeout=timeout, retry_failed=retry_failed, opens_report=open_report)


app.command()(plan)
app.command()(reproduce)


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
    whole = build_report(records, spec)
    if out is None:
        _print(whole, wanted)
        return
    write_file(out, render(whole, wanted.value))
    console.print(f"Report: {out}", soft_wrap=True, highlight=False)
    if open_report:
        open_page(out)


@app.command()
def compare(
    a: ResultsFolder,
    b: ResultsFolder,
    format: Annotated[Format, typer.Option(help="What to write.")] = Format.text,
) -> None:
    """Set two results folders side by side: what changed, and whether it is more than noise."""
    from reports import compare as compare_records

    sides = [_read(folder, everything=True)[0] for folder in (a, b)]
    for folder, records in zip((a, b), sides, strict=True):
        if not records:
            raise UsageError(f"{folder} holds no records yet; there is nothing to compare")
    _print(compare_records(*sides), format)


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


def _print(report: Report, format: Format) -> None:
    from reports import render

    if format is Format.text:
        print_text(report)
    else:
        print(render(report, format.value))


def _read(folder: Path, everything: bool) -> tuple[list[Record], RunSpec | None]:
    from suite.store import Store

    store = Store(folder)
    records, spec = store.records(), store.spec()
    if everything or spec is None:
        return records, None
    return of_spec(records, spec), spec


if __name__ == "__main__":
    main()
