"""What is asked: settings, budgets, cells and runs. Everything here is frozen, torch-free and hashed by its content.

A *cell* is the smallest thing that is ever run, stored or resumed: one model on one task under one budget with one seed
and one learning rate (kind `accuracy`), or one timing of the same configuration at one length (kind `cost`). Both
carry the same `configuration_id`, so that accuracy and cost of one configuration can be joined.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import pydantic
from pydantic import ConfigDict, Field

from suite.errors import UsageError, unknown

PROTOCOL_VERSION = 3
"""Raised when training, selection or measurement change so that older results are no longer comparable."""

Device = Literal["cpu", "cuda"]
Precision = Literal["fp32", "bf16"]

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
        for key in values:
            if key not in cls.model_fields:
                raise unknown("setting", key, cls.model_fields, where=f"in {where}")
        try:
            return cls.model_validate_json(json.dumps(dict(values), default=str))
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            message = first["msg"].removeprefix("Value error, ")
            if not key:
                raise UsageError(f"{where}: {message}") from None
            raise UsageError(f"{where}.{key} = {first['input']!r}: {message}") from None


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
    num_seeds: PositiveInt = 1
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
        if self.kind == "cost":
            return f"{self.model.name} · {self.task.name} · cost at {self.length:,} tokens"
        return f"{self.model.name} · {self.task.name} · seed {self.seed} · lr {self.learning_rate:g}"


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
    cells: tuple[Cell, ...]


def canonical_json(value: Any) -> str:
    """The one spelling of a JSON value that is hashed and stored. NaN and infinity are refused (ValueError)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _digest(value: Any) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]
