"""What was seen: a cell, the machine it ran on, and either a measurement or a failure. To and from JSON.

Raw samples are stored and statistics derived later. NaN and infinity are never written: divergence is a `Failure`.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from suite.spec import Cell, Settings

FORMAT_VERSION = 1
"""Version of the record's layout on disk."""


class Environment(Settings):
    """The machine and the software that a record was made with."""

    operating_system: str
    python: str
    cpu: str
    num_cores: int
    num_threads: int
    """Threads that torch and the kernels may use in this cell."""
    memory_bytes: int
    gpu: str | None
    gpu_memory_bytes: int | None
    gpu_driver: str | None
    versions: dict[str, str]
    """Distribution name -> version, of everything that bears on the result."""
    git_commit: str | None
    git_dirty: bool | None


class SliceScore(Settings):
    """A model's score on one part of a test, such as the sequences with eight pairs or the positions up to 64."""

    name: str
    num_sequences: int
    """Sequences that are scored somewhere in this slice."""
    num_scored: int
    """Scored positions."""
    token_accuracy: float
    """Share of scored positions that are right."""
    sequence_accuracy: float
    """Share of these sequences in which every scored position of this slice is right."""


class Evaluation(Settings):
    """A model's score on one split at one length."""

    length: int
    num_sequences: int
    num_scored: int
    """Scored positions."""
    loss: float
    """Mean negative log-likelihood per scored position, in nats."""
    token_accuracy: float
    """Share of scored positions whose most likely token is the target (micro-average)."""
    sequence_accuracy: float
    """Share of sequences in which every scored position is right."""
    bits_per_byte: float | None = None
    """For tasks whose tokens are bytes: loss / ln 2."""
    loss_by_position: list[tuple[int, int, float]] | None = None
    """For text: (first position, last position, mean loss in nats) over buckets that double in size."""
    slices: list[SliceScore] | None = None
    """For a test of a task with slices: those of which something was scored, in the task's order."""


class CurvePoint(Settings):
    """One validation while training."""

    step: int
    tokens: int
    seconds: float
    """Since training began, evaluations included."""
    train_loss: float
    """Mean over the steps since the previous point, in nats."""
    validation: Evaluation


class Accuracy(Settings):
    """What an accuracy cell measured."""

    curve: list[CurvePoint]
    selected_step: int
    """The step whose weights validation selected; the test is of these."""
    steps_run: int
    stopped_early: bool
    test: list[Evaluation]
    """One per test length."""
    untested: dict[str, str] = Field(default_factory=dict)
    """Test lengths without a score -> why."""
    baseline: float
    """The metric of a model that cannot see the sequence."""
    metric: str
    solved_at: float | None = None
    """The metric from which on the task says that it is solved; None if it does not say."""
    train_seconds: float
    """From the first step to the last, validations included, beside whatever other cells ran."""
    steps_not_graphed: str | None = "steps were called"
    """Why training steps were called from Python one by one; None if they were replays of one CUDA graph."""
    data_sha256: str
    """Digest of the training batches up to the first validation, the first validation and all test batches: equal for
    two models of a task, budget and seed that were tested at the same lengths."""


class Timing(Settings):
    """One activity, timed."""

    first_call_seconds: float
    """The cell's first call, with the compilation and autotuning that no earlier cell of its process had paid for."""
    samples_seconds: list[float]
    """Each timed call after the warm-up."""
    tokens_per_call: int
    peak_memory_bytes: int | None
    """Most memory in use during the calls, over what was in use before the model was built; None if not measurable."""


class Cost(Settings):
    """What a cost cell measured."""

    training: Timing
    """Forward, backward and optimizer step."""
    inference: Timing
    """Forward without gradients, all positions at once."""
    generation: Timing
    """One token for each sequence, step by step from a state."""
    generation_context: int
    """Tokens in the state when generation was timed."""
    state_bytes: int
    """The generation state of one sequence after `generation_context` tokens."""


class Measurement(Settings):
    """Everything a finished cell gave."""

    num_parameters: int
    num_non_embedding_parameters: int
    parameter_groups: list[dict[str, Any]]
    """Per optimizer group: weight_decay, learning_rate and the names of its parameters."""
    implementations: dict[str, list[str]]
    """Operation -> the implementations that really ran."""
    accuracy: Accuracy | None = None
    cost: Cost | None = None


class Failure(Settings):
    """Why a cell gave no measurement."""

    kind: Literal["out_of_memory", "diverged", "crashed", "timed_out", "error"]
    message: str
    step: int | None = None
    """The training step at which it happened, where known."""
    details: str | None = None
    """The end of the worker's own output."""


class Record(Settings):
    """One attempt at one cell."""

    format: int = FORMAT_VERSION
    cell: Cell
    attempt: str
    """Unique name of the attempt."""
    started_at: str
    """UTC, ISO 8601."""
    duration_seconds: float
    environment: Environment | None
    """None only if the worker died before it could say."""
    measurement: Measurement | None = None
    failure: Failure | None = None

    @property
    def cell_id(self) -> str:
        return self.cell.id
