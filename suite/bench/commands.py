"""The sub-command `suite bench`: parses, prints, sets the exit code; what is heavy is imported by the command itself.

Exit codes are those of `suite`: 0 done, 1 something failed, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from suite.errors import UsageError

if TYPE_CHECKING:
    from reports.document import Report
    from suite.bench.kernels import Event
    from suite.bench.recording import Recording
    from suite.bench.results import KernelBench

bench = typer.Typer(name="bench", no_args_is_help=True)
console = Console()
progress = Console(stderr=True)

DEFAULT_OUT = Path("results/bench")

_NARROWEST, _USUAL, _WIDEST = 80, 100, 120
"""Columns that tables are set for: those of the terminal within these bounds, or the usual ones in a file."""


class TableFormat(StrEnum):
    """What tables can be written as."""

    text = "text"
    markdown = "markdown"
    csv = "csv"


Tables = Annotated[TableFormat, typer.Option("--format", help="How the tables are written.")]


@bench.callback()
def _bench() -> None:
    """Time kernels and training against their floors and their peers."""


@bench.command()
def training(
    model: Annotated[str, typer.Option(help="One name; see `suite list`.")] = "mamba",
    layers: Annotated[int, typer.Option(min=1, help="Layers of the model.")] = 24,
    width: Annotated[int, typer.Option(min=1, help="Channels of the residual stream.")] = 768,
    vocab_size: Annotated[int, typer.Option(min=1, help="Tokens there are.")] = 50_277,
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences a step.")] = 8,
    length: Annotated[int, typer.Option(min=1, help="Tokens of a sequence.")] = 2048,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; the GPU if there is one.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32 or bf16; bf16 on a GPU, fp32 on a CPU.")] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="MODEL.KEY=VALUE", help="mamba.state_size=8, …; repeatable.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Timed steps, after the warm-up.")] = 30,
    graph: Annotated[bool, typer.Option("--graph", help="Time the step as one CUDA graph too.")] = False,
    peer: Annotated[
        list[str] | None, typer.Option(help="Somebody else's model to time beside: mamba_ssm; repeatable.")
    ] = None,
    plugin: Annotated[list[Path] | None, typer.Option(help="A Python file with models; repeatable.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the file with the raw samples.")] = DEFAULT_OUT,
) -> None:
    """Time whole training steps of a model on random tokens: tokens per second and peak memory."""
    from suite.bench.training import make_folder, measure_training, render, training_request
    from suite.plan import parse_assignments
    from suite.registry import Registry

    registry = Registry(plugin or [])
    request = training_request(
        model,
        registry,
        overrides=parse_assignments(assignments or []),
        num_layers=layers,
        width=width,
        vocab_size=vocab_size,
        batch_size=batch_size,
        length=length,
        precision=precision,
        device=device,
    )
    make_folder(out)
    benchmark = measure_training(request, registry, num_steps=steps, is_graphed=graph, peers=peer or ())
    path = benchmark.save(out)
    console.print(render(benchmark), highlight=False)
    console.print(f"Raw samples: {path}", soft_wrap=True, highlight=False)


@bench.command()
def kernels(
    operations: Annotated[list[str] | None, typer.Argument(help="selective_scan, attention, …; all if none.")] = None,
    implementations: Annotated[
        str | None, typer.Option(help="Comma-separated: cuda,triton,torch,mamba_ssm,…; all that are there.")
    ] = None,
    shapes: Annotated[str | None, typer.Option(help="Comma-separated: B8_L2048_D2048,…")] = None,
    dtypes: Annotated[
        str | None, typer.Option(help="Comma-separated: bfloat16,float32,float16; bfloat16 on a GPU.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto: the GPU if there is one.")] = "auto",
    quick: Annotated[bool, typer.Option("--quick", help="Small shapes and few samples: seconds.")] = False,
    by_length: Annotated[
        bool, typer.Option("--errors", help="Not times but errors against float64, by length.")
    ] = False,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the random inputs; another one in every run.")] = None,
    official: Annotated[
        str, typer.Option(help="Recorded times of peers that are not installed: a JSON file, or built-in.")
    ] = "built-in",
    out: Annotated[Path, typer.Option(help="Folder for the file with the raw samples.")] = DEFAULT_OUT,
    format: Tables = TableFormat.text,
) -> None:
    """Check kernels against float64, then time them against their floors and their peers."""
    import secrets

    from suite.bench import kernels as engine
    from suite.bench.recorded import BUILT_IN
    from suite.bench.recording import Recording
    from suite.bench.request import Request, plan
    from suite.bench.tables import build_report

    request = Request(
        operations=operations or (),
        implementations=_listed(implementations),
        shapes=_listed(shapes),
        dtypes=_listed(dtypes),
        device=device,
        is_quick=quick,
        wants_errors=by_length,
    )
    seed = secrets.randbits(31) if seed is None else seed
    planned = plan(request, seed)
    recording = Recording(
        out,
        kind="kernel_errors" if by_length else "kernels",
        command=shlex.join(["suite", *sys.argv[1:]]),
        seed=seed,
        official=official,
    )
    progress.print(f"Seed {seed}; on {planned.device.type}.", highlight=False)
    events = engine.check_all(planned) if by_length else engine.run(planned)
    interrupted = _follow(events, recording)
    if recording.bench is None:
        raise typer.Exit(130)
    _print(build_report(recording.bench, has_environment=False), format)
    if official != BUILT_IN and recording.bench.anchors is None:
        progress.print(f"The times in {official} are of another device and were left out.", highlight=False)
    progress.print(f"Raw samples: {recording.path}", soft_wrap=True, highlight=False)
    if interrupted:
        progress.print("Interrupted: what had finished is shown and stored.", highlight=False)
        raise typer.Exit(130)
    if recording.bench.num_failed:
        progress.print("[red]Something is wrong or broke; the tables say what.[/]", highlight=False)
        raise typer.Exit(1)


@bench.command()
def show(
    files: Annotated[list[Path], typer.Argument(help="Files that `suite bench` wrote, or folders of them.")],
    format: Tables = TableFormat.text,
) -> None:
    """Print the tables of stored benchmarks again."""
    from suite.bench.results import kind_of, load
    from suite.bench.tables import build_report

    for path in _files(files):
        if kind_of(path) == "training":
            _show_training(path, format)
        else:
            _print(build_report(load(path)), format)


@bench.command()
def compare(
    a: Annotated[Path, typer.Argument(help="A file that `suite bench kernels` wrote, or a folder with one.")],
    b: Annotated[Path, typer.Argument(help="Another one.")],
    format: Tables = TableFormat.text,
) -> None:
    """Set two stored benchmarks side by side: what became faster or slower, and whether it is more than noise."""
    from suite.bench.comparison import build_comparison

    _print(build_comparison(_only(a), _only(b)), format)


def _follow(events: Iterable[Event], recording: Recording) -> bool:
    """Stores what is seen and says how far it is; True if the user interrupted."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from suite.bench.kernels import Doing
    from suite.bench.results import Device
    from suite.bench.tables import headline

    bar = Progress(
        BarColumn(bar_width=24),
        TextColumn("{task.description}", markup=False),
        TimeElapsedColumn(),
        console=progress,
        disable=not progress.is_terminal,
        transient=True,
    )
    try:
        with bar:
            task = bar.add_task("", total=1.0)
            for event in events:
                if isinstance(event, Doing):
                    bar.update(task, description=event.what, completed=event.fraction)
                elif isinstance(event, Device):
                    recording.begin(event)
                else:
                    recording.add(event)
                    said = headline(event)
                    if said is not None:
                        progress.print(said, highlight=False, markup=False, soft_wrap=True)
    except KeyboardInterrupt:
        return True
    recording.finish()
    return False


def _print(report: Report, format: TableFormat) -> None:
    from reports import render
    from reports.plain_text import render_text

    if format is TableFormat.text:
        width = min(max(console.width, _NARROWEST), _WIDEST) if console.is_terminal else _USUAL
        text = render_text(report, width=width)
    else:
        text = render(report, format.value)
    sys.stdout.write(text)


def _show_training(path: Path, format: TableFormat) -> None:
    import json

    from suite.bench.training import TrainingBenchmark, render
    from suite.store import read_checked

    if format is not TableFormat.text:
        raise UsageError(f"{path} is of `suite bench training`, which is shown as text only")
    console.print(render(TrainingBenchmark.model_validate_json(json.dumps(read_checked(path)))), highlight=False)


def _only(path: Path) -> KernelBench:
    from suite.bench.results import load

    files = _files([path])
    if len(files) != 1:
        raise UsageError(f"{path} holds {len(files)} benchmarks; name one of its files")
    return load(files[0])


def _files(paths: Iterable[Path]) -> list[Path]:
    """The files themselves, and those in the folders."""
    found: list[Path] = []
    for path in paths:
        inside = sorted(path.glob("*.json")) if path.is_dir() else [path]
        if not inside:
            raise UsageError(f"{path} holds no benchmarks; `suite bench kernels --out` makes one")
        found += inside
    return found


def _listed(text: str | None) -> list[str]:
    return [] if text is None else [name.strip() for name in text.split(",") if name.strip()]
