"""The command `suite reproduce`; what is heavy is imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from suite.options import DeviceName, Plugins, PrecisionName, Seeds
from suite.terminal import carry_out, console, names, seed_numbers

DEFAULT_OUT = Path("results") / "reproduce"


def reproduce(
    experiment: Annotated[
        str | None, typer.Argument(metavar="NAME", help="As in --list, or the path of a .toml file of your own.")
    ] = None,
    list_them: Annotated[bool, typer.Option("--list", help="Show the tables that can be reproduced.")] = False,
    preset: Annotated[str, typer.Option(help="quick, standard, or paper: as published.")] = "quick",
    rows: Annotated[str | None, typer.Option(help="Comma-separated rows of the table; all if not given.")] = None,
    seeds: Seeds = None,
    device: DeviceName = None,
    precision: PrecisionName = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="budget.steps=100, …; for every row; repeatable."),
    ] = None,
    plugin: Plugins = None,
    out: Annotated[Path | None, typer.Option(help=f"Results folder; {DEFAULT_OUT}/NAME/PRESET if not given.")] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Cells at a time; one a CPU core, or some on each GPU.")
    ] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds of silence after which a cell is given up.")] = 600.0,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run failed cells again.")] = False,
    open_report: Annotated[bool, typer.Option("--open", help="Open the report in a browser at the end.")] = False,
    plan_alone: Annotated[
        bool, typer.Option("--plan", help="Say how many cells, steps, tokens and hours it takes, and store nothing.")
    ] = False,
) -> None:
    """Run a published table under its published protocol: paper, ours, verdict."""
    if experiment is None or list_them:
        _list()
        return
    from suite.plan import parse_assignments
    from suite.plan_command import show_plan
    from suite.registry import Registry
    from suite.reproduction.experiment import load_experiment
    from suite.reproduction.planning import ReproductionRequest, plan_reproduction

    given = {
        "experiment": experiment,
        "preset": preset,
        "rows": names(rows),
        "seeds": seed_numbers(seeds),
        "device": device,
        "precision": precision,
        "plugins": [str(path.resolve()) for path in plugin or ()],
        "overrides": parse_assignments(assignments or []),
    }
    request = ReproductionRequest.parse(given, where="reproduce")
    registry = Registry(plugin or [])
    spec = plan_reproduction(load_experiment(experiment), request, registry)
    if plan_alone:
        show_plan(spec, registry, jobs, takes_times=True)
        return
    name = Path(experiment).stem if experiment.endswith(".toml") else experiment
    folder = out or DEFAULT_OUT / name / preset
    carry_out(spec, folder, num_jobs=jobs, timeout=timeout, retry_failed=retry_failed, opens_report=open_report)


def _list() -> None:
    from rich.table import Table

    from suite.reproduction.experiment import experiment_names, load_experiment

    table = Table("Name", "What it shows", "Rows", "Presets", title="Published tables", title_justify="left")
    for name in experiment_names():
        experiment = load_experiment(name)
        table.add_row(
            name,
            f"{experiment.title}\n[dim]{experiment.source}[/]",
            str(len(experiment.rows)),
            "\n".join(experiment.sizes),
        )
    console.print(table)
    console.print("suite reproduce NAME --preset quick", highlight=False)
