"""What is asked: settings, budgets, cells and runs. Everything here is frozen, torch-free and hashed by its content.

A *cell* is the smallest thing that is ever run, stored or resumed: one model on one task under one budget with one seed
and one learning rate (kind `accuracy`), or one timing of the same configuration at one length (kind `cost`). Both
carry the same `configuration_id`, so that accuracy and cost of one configuration can be joined.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Self, get_args

import pydantic
from pydantic import ConfigDict, Field
from pydantic_core import ErrorDetails

from suite.errors import UsageError, unknown

PROTOCOL_VERSION = 5
"""Raised when training, selection or measurement change so that older results are no longer comparable."""

Device = Literal["cpu", "cuda"]
Precision = Literal["fp32", "bf16"]
MatchingPolicy = Literal["parameters", "state", "flops"]

MATCHED_UNITS: Mapping[MatchingPolicy, str] = {
    "parameters": "non-embedding parameters",
    "state": "bytes of state a sequence",
    "flops": "operations a token",
}
"""What each policy counts."""

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Settings(pydantic.BaseModel):
    """Base of every configuration: frozen, strict about types, and closed to unknown keys."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        validate_default=True,
    )

    @classmethod
    def parse(cls, values: Mapping[str, Any], *, where: str) -> Self:
        """Builds the settings from plain values.

        Raises:
            UsageError: an unknown key (with the nearest known one), a wrong type or a value out of range; `where` says
                whose settings these are.
        """
        try:
            return cls.model_validate_json(json.dumps(dict(values), default=str))
        except pydantic.ValidationError as error:
            # An unknown key is often why the rest does not fit.
            first = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
            key = ".".join(map(str, first["loc"]))
            if first["type"] == "extra_forbidden":
                *place, last = first["loc"]
                inside = ".".join([where, *map(str, place)])
                raise unknown("setting", str(last), _fields_at(cls, place), where=f"in {inside}") from None
            if first["type"] == "missing":
                raise UsageError(f"{where}.{key} is missing, and there is no default") from None
            message = _in_words(first)
            if not key:
                raise UsageError(f"{where}: {message}") from None
            raise UsageError(f"{where}.{key} = {first['input']!r}: {message}") from None


def _in_words(error: ErrorDetails) -> str:
    """What was wanted, in a user's words where pydantic's are a programmer's."""
    match error["type"]:
        case "tuple_type":
            return f"expected a list, for example [{json.dumps(error['input'], default=str)}]"
        case "too_short":
            return f"expected at least {error['ctx']['min_length']} of them"
    return error["msg"].removeprefix("Value error, ")


def _fields_at(settings: type[pydantic.BaseModel], place: Iterable[int | str]) -> set[str]:
    """The settings that there are at a place within others; in a union, those of all its members."""
    there = [settings]
    for part in place:
        inside = [model for outer in there if part in outer.model_fields for model in _models_of(outer, part)]
        there = inside or there
    return {name for model in there for name in model.model_fields}


def _models_of(outer: type[pydantic.BaseModel], field: int | str) -> list[type[pydantic.BaseModel]]:
    """The settings that the annotation of a field speaks of."""
    found, seen = [], [outer.model_fields[str(field)].annotation]
    for annotation in seen:
        if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
            found.append(annotation)
        seen += get_args(annotation)
    return found


class ShellSettings(Settings):
    """The part that every model shares: embedding, pre-norm residual layers, final norm, head."""

    width: PositiveInt = 64
    """Channels of the residual stream, D in the papers."""
    num_layers: PositiveInt = 2


class Budget(Settings):
    """What every model may spend on a task, the same for all of them."""

    steps: PositiveInt = 400
    """Optimizer steps at most."""
    batch_size: PositiveInt = 32
    weight_decay: NonNegativeFloat = 0.0
    warmup_steps: NonNegativeInt = 0
    """Steps over which the learning rate rises linearly."""
    schedule: Literal["constant", "cosine"] = "constant"
    """What follows the warm-up; cosine falls to a tenth of the peak."""
    gradient_clip: PositiveFloat = 1.0
    """Largest global norm of the gradient."""
    evaluate_every: PositiveInt = 50
    """Steps between two validations."""
    validation_batches: PositiveInt = 4
    test_batches: PositiveInt = 8
    longest_test: PositiveInt | None = None
    """Tokens of the longest test; where the task has longer ones, they are left out. All of them if not given."""
    stop_at: PositiveFloat | None = None
    """Training ends early once the validation metric reaches this value, by the same rule for every model."""


class Preset(Settings):
    """One size of a task: its settings, the shell around every model, and the budget."""

    settings: dict[str, Any] = Field(default_factory=dict)
    """Settings of the task that differ from their defaults."""
    shell: ShellSettings = ShellSettings()
    budget: Budget = Budget()
    learning_rates: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (3e-3,)
    """The grid that every model is tuned over; validation selects."""
    max_extensions: NonNegativeInt = 0
    """Rates that are tried beyond the grid, one after the other, for a model whose best rate is at an edge of it."""
    num_seeds: PositiveInt = 1
    match_tolerance: Annotated[float, Field(gt=0, lt=1)] = 0.02
    """How far a matched model may be from the size that it is matched to, as a share of it."""
    cost_lengths: tuple[PositiveInt, ...] = ()
    """Lengths in tokens at which the cost is measured; the task's training length if empty."""
    cost_batch_size: PositiveInt = 8


class Choice(Settings):
    """A plugin by name, with all of its settings, defaults included."""

    name: str
    version: PositiveInt = 1
    """The plugin's own version: raised by its author when its results are no longer comparable."""
    settings: dict[str, Any] = Field(default_factory=dict)
    source_sha256: str | None = None
    """Digest of the file, for a plugin that comes from a single file."""


class Cell(Settings):
    """One thing to run."""

    kind: Literal["accuracy", "cost"]
    model: Choice
    task: Choice
    shell: ShellSettings
    precision: Precision
    device: Device
    budget: Budget | None = None
    """Accuracy cells only."""
    seed: Seed | None = None
    """Accuracy cells only."""
    learning_rate: PositiveFloat | None = None
    """Accuracy cells only."""
    length: PositiveInt | None = None
    """Cost cells only: tokens in a sequence."""
    batch_size: PositiveInt | None = None
    """Cost cells only."""
    protocol: int = PROTOCOL_VERSION

    @property
    def id(self) -> str:
        """16 hex digits that stand for the whole content of the cell."""
        return _digest(self.model_dump(mode="json"))

    @property
    def configuration_id(self) -> str:
        """What an accuracy cell and a cost cell of the same configuration share."""
        return _digest(self.model_dump(mode="json", include={"model", "task", "shell", "precision", "device"}))

    @property
    def title(self) -> str:
        """One line for people."""
        return self.titled(self.model.name)

    def titled(self, model: str) -> str:
        """One line for people who call the model so."""
        if self.kind == "cost":
            return f"{model} · {self.task.name} · cost at {self.length:,} tokens"
        return f"{model} · {self.task.name} · seed {self.seed} · lr {self.learning_rate:g}"


Published = Annotated[float, Field(ge=0, le=100)] | Literal["solves", "does not solve", "out of memory", "not reported"]
"""What a paper says of a score: a number in percent, or in words what it shows without one."""


class Tolerance(Settings):
    """How far from the published number a result may lie, in points of a percent."""

    solved: PositiveFloat = 3.0
    """Below a number of at least 95; above it, anything is as good."""
    partial: PositiveFloat = 10.0
    """On either side of a number between chance and 95."""
    chance: PositiveFloat = 10.0
    """From chance, for a number that lies as near to it."""


class Comparison(Settings):
    """One published number and the cells that answer it."""

    row: str
    column: str
    published: Published
    cells: tuple[str, ...]
    """Ids of the accuracy cells of all learning rates and seeds; none where this run does not try."""
    test_length: PositiveInt | None = None
    """Tokens of the test that answers it; the trained length if not given."""
    is_reduced: bool = False
    """Whether the task, the model or its training is not of the published size."""


class Ordering(Settings):
    """A row that is published to do better than another, in some columns."""

    better: str
    worse: str
    columns: tuple[str, ...]


class Difference(Settings):
    """A setting in which a run departs from the published protocol."""

    setting: str
    published: str
    here: str
    factor: str = ""
    """How much smaller or larger, where it is a number."""


class Reproduction(Settings):
    """The published table that a run stands beside; it holds all that a verdict needs."""

    experiment: str
    """As the command calls it: the name of an experiment, or the path of its file."""
    title: str
    source: str
    claim: str
    """What the paper concludes from the table."""
    choices: tuple[str, ...] = ()
    """What the paper leaves open or does otherwise, and what was chosen."""
    columns_title: str
    tolerance: Tolerance
    comparisons: tuple[Comparison, ...]
    orderings: tuple[Ordering, ...] = ()
    differences: tuple[Difference, ...] = ()

    @property
    def row_of(self) -> dict[str, str]:
        """Cell id -> the row that it answers for, in the order of the table."""
        return {cell: comparison.row for comparison in self.comparisons for cell in comparison.cells}

    @property
    def column_of(self) -> dict[str, str]:
        """Cell id -> the first column that it answers for."""
        return {cell: comparison.column for comparison in reversed(self.comparisons) for cell in comparison.cells}


class Matching(Settings):
    """A rule by which widths are chosen, so that models of one size are compared."""

    policy: MatchingPolicy
    target: PositiveFloat | None = None
    """The size that every model is brought to; the first model's at the width of the preset if not given."""

    @classmethod
    def of(cls, text: str) -> Self:
        """`parameters` or `parameters=1_000_000`.

        Raises:
            UsageError: there is no such policy, or the target is not a number above zero.
        """
        policy, equals, number = text.partition("=")
        if policy not in MATCHED_UNITS:
            raise unknown("matching policy", policy, MATCHED_UNITS)
        try:
            target = float(number) if equals else None
        except ValueError:
            target = math.nan
        if target is not None and not 0 < target < math.inf:
            raise UsageError(f"match = '{text}': expected a number above zero, for example {policy}=1_000_000")
        return cls.parse({"policy": policy, "target": target}, where="match")

    def __str__(self) -> str:
        """As the command line takes it."""
        return self.policy if self.target is None else f"{self.policy}={self.target:.15g}"


class MatchedSize(Settings):
    """The width that was chosen for a model on a task, and how well it fits."""

    model: str
    task: str
    width: PositiveInt
    size: NonNegativeFloat
    """What the policy counts, at this width."""
    target: PositiveFloat

    @property
    def residual(self) -> float:
        """How far the size is from the target, as a share of it."""
        return self.size / self.target - 1


class Grid(Settings):
    """The learning rates that a task's models are tuned over, before any extension, and how far they may extend it."""

    learning_rates: tuple[PositiveFloat, ...]
    max_extensions: NonNegativeInt


class RunSpec(Settings):
    """A whole run: what was asked, and the cells it comes to."""

    models: tuple[str, ...]
    tasks: tuple[str, ...]
    preset: str
    measure: tuple[Literal["accuracy", "cost"], ...] = ("accuracy", "cost")
    plugins: tuple[str, ...] = ()
    """Files given with --plugin."""
    overrides: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Settings given with --set or in an experiment file, by section."""
    matching: Matching | None = None
    """None: every model has the shell of the preset."""
    matched: tuple[MatchedSize, ...] = ()
    """What the matching came to, for every model on every task."""
    grids: dict[str, Grid] = Field(default_factory=dict)
    """Task -> the learning rates that all of its models start from."""
    cells: tuple[Cell, ...]
    reproduction: Reproduction | None = None
    """The published table that is to be reproduced, if one is."""

    @property
    def titles(self) -> dict[str, str]:
        """Cell id -> one line for people; a row of a published table is called as it is there."""
        rows = self.reproduction.row_of if self.reproduction is not None else {}
        return {cell.id: cell.titled(rows.get(cell.id, cell.model.name)) for cell in self.cells}


def canonical_json(value: Any) -> str:
    """The one spelling of a JSON value that is hashed and stored. NaN and infinity are refused (ValueError)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _digest(value: Any) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]
