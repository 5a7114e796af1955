"""From what the user asked to a RunSpec: names, presets and settings, and the cells they come to."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field

from suite.errors import DeviceError, SuiteError, UsageError, unknown
from suite.plugin import Model, Task, keyed_generator
from suite.registry import SHARED_SECTIONS, Registry
from suite.spec import (
    Cell,
    Choice,
    Device,
    Grid,
    MatchedSize,
    Matching,
    Precision,
    Preset,
    RunSpec,
    Seed,
    Settings,
)

DEFAULT_MODELS = ("mamba", "s4", "transformer", "lstm", "gru")
DEFAULT_TASKS = ("selective_copying", "induction_heads", "long_range_lm")

Plugin = TypeVar("Plugin", Model, Task)

_PRESET_SECTION = "preset"
"""Section of the settings that belong to no plugin: learning_rates, cost_lengths, …"""


class Request(Settings):
    """What a user asks for, on the command line or in an experiment file."""

    models: tuple[str, ...] = DEFAULT_MODELS
    tasks: tuple[str, ...] = DEFAULT_TASKS
    preset: str = "quick"
    seeds: tuple[Seed, ...] | None = None
    """None takes 0, 1, …, as many as the preset says."""
    device: Device | None = None
    """None takes the GPU if there is one."""
    precision: Precision | None = None
    """None takes bf16 on a GPU and fp32 on a CPU."""
    measure: tuple[Literal["accuracy", "cost"], ...] = ("accuracy", "cost")
    """What is measured: training and testing, or seconds and bytes, or both."""
    match: str | None = None
    """What the widths of the models are matched by: parameters, state or flops, or one with a target, state=8192. None
    gives every model the width of the preset."""
    plugins: tuple[str, ...] = ()
    """Files that hold models or tasks."""
    overrides: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Section -> settings that differ; a section is a model, a task, `shell`, `budget` or `preset`."""


def read_toml(path: Path) -> dict[str, Any]:
    """The content of an experiment file.

    Raises:
        UsageError: it cannot be read or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"The experiment file {path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"The experiment file {path} is not valid TOML: {error}") from error


def read_experiment(path: Path) -> dict[str, Any]:
    """The fields of a Request that a TOML experiment file gives; its tables are the overrides.

    Raises:
        UsageError: the file cannot be read, is not TOML or has an unknown key.
    """
    content = read_toml(path)
    if {"paper", "rows"} <= content.keys():
        raise UsageError(f"{path} holds a published table. Run it with `suite reproduce {path}`")
    fields = {key: value for key, value in content.items() if not isinstance(value, dict)}
    known = set(Request.model_fields) - {"overrides"}
    for key in fields:
        if key not in known:
            raise unknown("key", key, known, where=f"in {path}")
    if isinstance(plugins := fields.get("plugins"), list) and all(isinstance(plugin, str) for plugin in plugins):
        # A file names its plugins from where it stands, so that it can be run from anywhere.
        fields["plugins"] = [str(path.parent / plugin) for plugin in plugins]
    overrides = {key: value for key, value in content.items() if isinstance(value, dict)}
    return fields | {"overrides": overrides}


def parse_assignments(assignments: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`["mamba.state_size=8"]` to `{"mamba": {"state_size": 8}}`; a value that is not TOML is a string.

    Raises:
        UsageError: an assignment is not of the form section.key=value.
    """
    overrides: dict[str, dict[str, Any]] = {}
    for assignment in assignments:
        target, equals, text = assignment.partition("=")
        section, dot, key = target.strip().rpartition(".")
        if not (equals and dot and section and key):
            raise UsageError(f"--set {assignment}: expected section.key=value, for example mamba.state_size=8")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text.strip()
        overrides.setdefault(section, {})[key] = value
    return overrides


def plan(request: Request, registry: Registry) -> RunSpec:
    """All cells of a request: accuracy for every learning rate and seed, cost at every length.

    Raises:
        SuiteError: a name, preset, setting or device does not exist or does not fit, or a task has no such sequences.
    """
    for kind, names in (("models", request.models), ("tasks", request.tasks)):
        if not names:
            raise UsageError(f"No {kind} were given. `suite list` shows what there is")
    # Every name is checked before the first plugin, and torch with it, is imported.
    for name in request.models:
        registry.entry("model", name)
    for name in request.tasks:
        registry.entry("task", name)
    matching = Matching.of(request.match) if request.match is not None else None
    models = {name: registry.model(name) for name in dict.fromkeys(request.models)}
    tasks = {name: registry.task(name) for name in dict.fromkeys(request.tasks)}
    _refuse_unknown_sections(request.overrides, [*models, *tasks, *SHARED_SECTIONS], registry)
    device = usable_device(request.device)
    precision = request.precision or ("bf16" if device == "cuda" else "fp32")
    configured = {
        name: _configured(model_class, request.overrides.get(name, {})) for name, model_class in models.items()
    }
    cells: list[Cell] = []
    matched: list[MatchedSize] = []
    grids: dict[str, Grid] = {}
    for task_name, task_class in tasks.items():
        preset = _preset(task_class, request)
        task = _configured(task_class, preset.settings | request.overrides.get(task_name, {}))
        task_choice = task.choice(registry.entry("task", task_name).source_sha256)
        _refuse_what_cannot_be_drawn(task, task_choice)
        grids[task_name] = Grid(learning_rates=preset.learning_rates, max_extensions=preset.max_extensions)
        shells = dict.fromkeys(models, preset.shell)
        if matching is not None:
            sizes = _match(matching, configured, task, preset, precision, device)
            shells = {size.model: preset.shell.model_copy(update={"width": size.width}) for size in sizes}
            matched += sizes
        for model_name, model in configured.items():
            configuration = Cell(
                kind="accuracy",
                model=model.choice(registry.entry("model", model_name).source_sha256),
                task=task_choice,
                shell=shells[model_name],
                precision=precision,
                device=device,
            )
            cells += [
                configuration.model_copy(update={"budget": preset.budget, "seed": seed, "learning_rate": learning_rate})
                for seed in (range(preset.num_seeds) if request.seeds is None else request.seeds)
                for learning_rate in preset.learning_rates
            ]
            cells += [
                configuration.model_copy(
                    update={"kind": "cost", "length": length, "batch_size": preset.cost_batch_size}
                )
                for length in preset.cost_lengths or (task.length,)
            ]
    # A seed, rate or length that is named twice is one cell.
    cells = list({cell.id: cell for cell in cells if cell.kind in request.measure}.values())
    if not cells:
        raise UsageError(
            f"There is nothing to run: the preset '{request.preset}' has no "
            f"{' or '.join(request.measure) or 'accuracy or cost'} cells for {', '.join(tasks)}"
        )
    return RunSpec(
        models=tuple(models),
        tasks=tuple(tasks),
        preset=request.preset,
        measure=request.measure,
        plugins=request.plugins,
        overrides=request.overrides,
        matching=matching,
        matched=tuple(matched),
        grids=grids,
        cells=tuple(cells),
    )


def _preset(task: type[Task], request: Request) -> Preset:
    """The task's preset with the request's overrides of shell, budget and sweep."""
    if request.preset not in task.presets:
        raise unknown("preset", request.preset, task.presets, where=f"for the task '{task.name}'")
    preset = task.presets[request.preset]
    sweep = request.overrides.get(_PRESET_SECTION, {})
    for section in ("shell", "budget", "settings"):
        if section in sweep:
            raise UsageError(f"preset.{section} cannot be set as a whole. Set {section}.KEY instead")
    values = preset.model_dump(mode="json") | sweep
    for section in ("shell", "budget"):
        changed = values[section] | request.overrides.get(section, {})
        values[section] = getattr(preset, section).parse(changed, where=section).model_dump(mode="json")
    asked = Preset.parse(values, where=_PRESET_SECTION)
    if asked.budget.stop_at is not None and asked.budget.schedule != "constant":
        raise UsageError(
            f"budget.stop_at = {asked.budget.stop_at:g} would cut the {asked.budget.schedule} schedule short for fast "
            "learners alone. Use budget.schedule=constant, or no stop_at"
        )
    return asked


def _configured(plugin: type[Plugin], values: Mapping[str, Any]) -> Plugin:
    return plugin(plugin.Options.parse(values, where=plugin.name))


def _refuse_what_cannot_be_drawn(task: Task, choice: Choice) -> None:
    """Draws one sequence to train on: some sizes turn out to be impossible only then, and a corpus to be missing."""
    try:
        task.sample(keyed_generator(choice, 0, "train", 0), split="train", batch_size=1, length=task.length)
    except SuiteError:
        raise
    except Exception:
        # A task that breaks is its author's to mend: in a run it costs its own cells, with the trace in their records.
        return


def _match(
    matching: Matching,
    models: Mapping[str, Model],
    task: Task,
    preset: Preset,
    precision: Precision,
    device: Device,
) -> list[MatchedSize]:
    from suite.matching import Candidate, match

    candidates = [Candidate(model, task, preset.shell, precision, device) for model in models.values()]
    return match(candidates, matching, preset.match_tolerance)


def _refuse_unknown_sections(overrides: Mapping[str, Any], known: Sequence[str], registry: Registry) -> None:
    models = (*registry.model_names(), *registry.composition_names(), *registry.adapter_names())
    for section in overrides:
        if section in known:
            continue
        if section in (*models, *registry.task_names()):
            raise UsageError(f"'{section}' has settings but is not in this run. Add it, or leave its settings out")
        raise unknown("section", section, known)


def usable_device(asked: Device | None) -> Device:
    """The device that was asked for; if none was, the GPU if there is one.

    Raises:
        DeviceError: it is not there.
    """
    import torch

    if asked == "cuda" and not torch.cuda.is_available():
        raise DeviceError(
            "A GPU was asked for (--device cuda), but torch finds none. "
            "`suite doctor` says why; --device cpu runs without"
        )
    return asked or ("cuda" if torch.cuda.is_available() else "cpu")
