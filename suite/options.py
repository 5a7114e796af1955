"""The options by which a command is told what to compare, and the request that they come to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from suite.terminal import names, seed_numbers

if TYPE_CHECKING:
    from suite.plan import Request

Experiment = Annotated[Path | None, typer.Argument(help="A TOML experiment file; options go before it.")]
Models = Annotated[str | None, typer.Option(help="Comma-separated names; see `suite list`.")]
Tasks = Annotated[str | None, typer.Option(help="Comma-separated names; see `suite list`.")]
PresetName = Annotated[str | None, typer.Option(help="Size of the tasks: quick, standard, paper.")]
Seeds = Annotated[str | None, typer.Option(help="Comma-separated seeds, for example 0,1,2.")]
Measure = Annotated[str | None, typer.Option(help="accuracy, cost, or both: accuracy,cost.")]
Match = Annotated[
    str | None,
    typer.Option(
        metavar="POLICY[=SIZE]",
        help="Choose widths so that models have the same parameters, state or flops: the first model's, or SIZE.",
    ),
]
DeviceName = Annotated[str | None, typer.Option(help="cpu or cuda; the GPU if there is one.")]
PrecisionName = Annotated[str | None, typer.Option(help="fp32 or bf16; bf16 on a GPU, fp32 on a CPU.")]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="mamba.state_size=8, budget.steps=100, …; repeatable."),
]
Plugins = Annotated[list[Path] | None, typer.Option("--plugin", help="A Python file with models or tasks; repeatable.")]
Jobs = Annotated[int | None, typer.Option(min=1, help="Accuracy cells at a time; one a CPU core, or some on each GPU.")]


def requested(
    experiment: Path | None,
    *,
    models: str | None,
    tasks: str | None,
    preset: str | None,
    seeds: str | None,
    measure: str | None,
    match: str | None,
    device: str | None,
    precision: str | None,
    assignments: list[str] | None,
    plugin: list[Path] | None,
) -> Request:
    """What the experiment file says, and the options where they say otherwise.

    Raises:
        UsageError: the file cannot be read, or a key or a value does not exist or fit.
    """
    from suite.plan import Request, parse_assignments, read_experiment

    fields = read_experiment(experiment) if experiment else {"overrides": {}}
    for section, values in parse_assignments(assignments or []).items():
        fields["overrides"][section] = fields["overrides"].get(section, {}) | values
    given: dict[str, Any] = {
        "models": names(models),
        "tasks": names(tasks),
        "preset": preset,
        "seeds": seed_numbers(seeds),
        "measure": names(measure),
        "match": match,
        "device": device,
        "precision": precision,
        "plugins": [str(path.resolve()) for path in plugin] if plugin else None,
    }
    return Request.parse(fields | {key: value for key, value in given.items() if value is not None}, where="run")
