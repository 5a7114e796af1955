"""Synthetic records: small ones with one thing to say each, and a realistic set of a whole run."""

from __future__ import annotations

import hashlib
import itertools
import math
import random
from collections.abc import Iterable, Sequence
from typing import Any

from suite.records import Accuracy, Cost, CurvePoint, Environment, Evaluation, Failure, Measurement, Record, Timing
from suite.spec import Budget, Cell, Choice, RunSpec, ShellSettings

_attempts = itertools.count()

ENVIRONMENT = Environment(
    operating_system="Linux 6.1 (x86_64)",
    python="3.12.7",
    cpu="AMD EPYC 9654",
    num_cores=16,
    num_threads=8,
    memory_bytes=128 * 2**30,
    gpu="NVIDIA H100 80GB HBM3",
    gpu_memory_bytes=80 * 2**30,
    gpu_driver="580.65",
    versions={"torch": "2.11.0+cu130", "numpy": "2.4.6", "triton": "3.6.0", "seqsuite": "0.1.0"},
    git_commit="3f9c1d2e8a7b6c5d4e3f2a1b0c9d8e7f6a5b4c3d",
    git_dirty=False,
)


def _choice(plugin: str | Choice) -> Choice:
    return plugin if isinstance(plugin, Choice) else Choice(name=plugin)


def accuracy_cell(
    model: str | Choice = "mamba",
    task: str | Choice = "copying",
    *,
    seed: int = 0,
    learning_rate: float = 1e-3,
    budget: Budget | None = None,
    **changes: Any,
) -> Cell:
    """An accuracy cell; `changes` replace fields of the cell."""
    cell = Cell(
        kind="accuracy",
        model=_choice(model),
        task=_choice(task),
        shell=ShellSettings(),
        precision="fp32",
        device="cuda",
        budget=budget or Budget(),
        seed=seed,
        learning_rate=learning_rate,
    )
    return cell.model_copy(update=changes)


def cost_cell(
    model: str | Choice = "mamba",
    task: str | Choice = "copying",
    *,
    length: int = 256,
    batch_size: int = 8,
    **changes: Any,
) -> Cell:
    """A cost cell; `changes` replace fields of the cell."""
    cell = Cell(
        kind="cost",
        model=_choice(model),
        task=_choice(task),
        shell=ShellSettings(),
        precision="fp32",
        device="cuda",
        length=length,
        batch_size=batch_size,
    )
    return cell.model_copy(update=changes)


def record(
    cell: Cell,
    outcome: Accuracy | Cost | Failure,
    *,
    started_at: str = "2026-11-20T10:00:00+00:00",
    environment: Environment | None = ENVIRONMENT,
    implementations: dict[str, list[str]] | None = None,
    num_parameters: int = 74_000,
) -> Record:
    """One attempt at a cell, with what came of it."""
    measurement = None
    if not isinstance(outcome, Failure):
        measurement = Measurement(
            num_parameters=num_parameters,
            num_non_embedding_parameters=num_parameters - 2_048,
            parameter_groups=[
                {"weight_decay": 0.1, "learning_rate": 1e-3, "names": ["layers.0.in_proj.weight"]},
                {"weight_decay": 0.0, "learning_rate": 1e-3, "names": ["layers.0.A_log", "layers.0.D"]},
            ],
            implementations=implementations if implementations is not None else {"selective_scan": ["triton"]},
            accuracy=outcome if isinstance(outcome, Accuracy) else None,
            cost=outcome if isinstance(outcome, Cost) else None,
        )
    return Record(
        cell=cell,
        attempt=f"attempt-{next(_attempts):06d}",
        started_at=started_at,
        duration_seconds=12.5,
        environment=environment,
        measurement=measurement,
        failure=outcome if isinstance(outcome, Failure) else None,
    )


def evaluation(score: float, *, length: int = 256, metric: str = "token_accuracy", **changes: Any) -> Evaluation:
    """A score at one length."""
    is_text = metric == "bits_per_byte"
    values: dict[str, Any] = {
        "length": length,
        "num_sequences": 256,
        "num_scored": 4096,
        "loss": score * math.log(2) if is_text else 2.7 * (1 - score),
        "token_accuracy": 0.4 if is_text else score,
        "sequence_accuracy": 0.0 if is_text else score**4,
        "bits_per_byte": score if is_text else None,
    }
    return Evaluation(**values | changes)


def accuracy(
    test: float,
    *,
    validation: float | Sequence[float] | None = None,
    by_length: dict[int, float] | None = None,
    metric: str = "token_accuracy",
    length: int = 256,
    baseline: float = 0.07,
    data: str = "the same data",
    untested: dict[str, str] | None = None,
    **changes: Any,
) -> Accuracy:
    """What an accuracy cell measured: a test score, and the validation scores that led there."""
    scores = [test if validation is None else validation] if not isinstance(validation, Sequence) else validation
    curve = [
        CurvePoint(
            step=50 * position,
            tokens=50 * position * 32 * length,
            seconds=1.5 * position,
            train_loss=1.0 / position,
            validation=evaluation(float(score), length=length, metric=metric),
        )
        for position, score in enumerate(scores, start=1)
    ]
    tested = [evaluation(score, length=at, metric=metric) for at, score in (by_length or {length: test}).items()]
    values: dict[str, Any] = {
        "curve": curve,
        "selected_step": curve[-1].step if curve else 0,
        "steps_run": curve[-1].step if curve else 0,
        "stopped_early": False,
        "test": tested,
        "untested": untested or {},
        "baseline": baseline,
        "metric": metric,
        "train_seconds": 63.0,
        "data_sha256": hashlib.sha256(data.encode()).hexdigest(),
    }
    return Accuracy(**values | changes)


def timing(seconds: float, tokens: int, *, peak: int | None = 2**20, samples: Sequence[float] | None = None) -> Timing:
    """Twenty timed calls around `seconds`, or the samples given."""
    spread = [seconds * (1 + 0.01 * math.sin(7 * position)) for position in range(20)]
    return Timing(
        first_call_seconds=40 * seconds,
        samples_seconds=list(samples) if samples is not None else spread,
        tokens_per_call=tokens,
        peak_memory_bytes=peak,
    )


def cost(
    seconds: float = 0.01,
    *,
    length: int = 256,
    batch_size: int = 8,
    peak: int | None = 2**20,
    state_bytes: int = 4096,
    generation_context: int | None = None,
    **changes: Any,
) -> Cost:
    """What a cost cell measured; inference takes a third of a training step, a generated token a hundredth."""
    values: dict[str, Any] = {
        "training": timing(seconds, length * batch_size, peak=peak),
        "inference": timing(seconds / 3, length * batch_size, peak=peak // 4 if peak is not None else None),
        "generation": timing(seconds / 100, batch_size, peak=peak // 8 if peak is not None else None),
        "generation_context": generation_context or min(length, 1024),
        "state_bytes": state_bytes,
    }
    return Cost(**values | changes)


def out_of_memory(message: str = "CUDA out of memory. Tried to allocate 32.00 GiB") -> Failure:
    """A cell that did not fit."""
    return Failure(kind="out_of_memory", message=message, details="Traceback (most recent call last):\n  …\n" + message)


def diverged(step: int = 120) -> Failure:
    """A cell whose loss left the finite numbers."""
    return Failure(kind="diverged", message=f"the loss became nan at step {step}", step=step)


def run_spec(cells: Iterable[Cell], *, preset: str = "quick") -> RunSpec:
    """The run that asked for these cells."""
    asked = tuple(cells)
    return RunSpec(
        models=tuple(dict.fromkeys(cell.model.name for cell in asked)),
        tasks=tuple(dict.fromkeys(cell.task.name for cell in asked)),
        preset=preset,
        cells=asked,
    )


_FINAL = {
    "selective_copying": {"mamba": 0.998, "s4": 0.56, "transformer": 0.93, "lstm": 0.36, "gru": 0.41},
    "induction_heads": {"mamba": 1.0, "s4": 0.24, "transformer": 1.0, "lstm": 0.62, "gru": 0.71},
    "long_range_lm": {"mamba": 1.71, "s4": 1.93, "transformer": 1.68, "lstm": 1.86, "gru": 1.84},
}
_EXTRAPOLATION = {"mamba": 0.01, "s4": 0.3, "transformer": 1.1, "lstm": 0.35, "gru": 0.3}
_SPEED = {"mamba": 2.1e6, "s4": 1.4e6, "transformer": 2.6e6, "lstm": 0.22e6, "gru": 0.31e6}
_PARAMETERS = {"mamba": 74_112, "s4": 61_440, "transformer": 99_328, "lstm": 66_560, "gru": 49_920}
_RAN = {
    "mamba": {"selective_scan": ["cuda"], "causal_conv1d": ["triton"]},
    "s4": {"long_conv": ["fft"], "ssm_kernel": ["triton"]},
    "transformer": {"attention": ["flash"]},
    "lstm": {"lstm": ["cudnn"]},
    "gru": {"gru": ["cudnn"]},
}
_LENGTHS = {"selective_copying": 256, "induction_heads": 256, "long_range_lm": 1024}
_LEARNING_RATES = (1e-3, 3e-3)
_COST_LENGTHS = (1024, 4096, 16384)


def realistic_run() -> tuple[list[Record], RunSpec]:
    """Five models, three tasks, two seeds, two learning rates, cost at three lengths; one out of memory, one diverged.

    Two cells that were asked for have not been run, and one succeeded at its second attempt.
    """
    draw = random.Random(20_261_120)
    records: list[Record] = []
    cells: list[Cell] = []
    for task, finals in _FINAL.items():
        length = _LENGTHS[task]
        metric = "bits_per_byte" if task == "long_range_lm" else "token_accuracy"
        chosen_task = Choice(
            name=task, settings={"length": length, "vocab_size": 256 if metric != "token_accuracy" else 16}
        )
        shared: dict[str, Any] = {"task": chosen_task, "precision": "bf16"}
        for model in finals:
            shared["model"] = Choice(name=model, settings={"state_size": 16} if model in ("mamba", "s4") else {})
            for rate, seed in itertools.product(_LEARNING_RATES, (0, 1)):
                cell = accuracy_cell(seed=seed, learning_rate=rate, budget=Budget(steps=1000), **shared)
                cells.append(cell)
                if model == "gru" and task == "long_range_lm" and rate == 3e-3:
                    continue
                outcome: Accuracy | Failure = _realistic_accuracy(draw, model, task, metric, length, rate, seed)
                if model == "lstm" and task == "selective_copying" and rate == 3e-3 and seed == 1:
                    outcome = diverged(437)
                if model == "s4" and task == "induction_heads" and rate == 1e-3 and seed == 0:
                    crash = Failure(kind="crashed", message="the worker was killed by signal 9")
                    records.append(record(cell, crash, started_at="2026-11-20T09:00:00+00:00"))
                records.append(_realistic_record(cell, outcome, model))
            for cost_length in _COST_LENGTHS:
                cell = cost_cell(length=cost_length, **shared)
                cells.append(cell)
                if model == "transformer" and cost_length == 16384 and task == "long_range_lm":
                    records.append(_realistic_record(cell, out_of_memory(), model))
                else:
                    records.append(_realistic_record(cell, _realistic_cost(draw, model, cost_length), model))
    return records, run_spec(cells)


def _realistic_record(cell: Cell, outcome: Accuracy | Cost | Failure, model: str) -> Record:
    minute = next(_attempts) % 60
    return record(
        cell,
        outcome,
        started_at=f"2026-11-20T1{minute % 3}:{minute:02d}:00+00:00",
        implementations=_RAN[model],
        num_parameters=_PARAMETERS[model],
    )


def _realistic_accuracy(
    draw: random.Random, model: str, task: str, metric: str, length: int, rate: float, seed: int
) -> Accuracy:
    final = _FINAL[task][model]
    is_text = metric == "bits_per_byte"
    worse = 0.0 if (rate == 3e-3) == (model in ("mamba", "lstm")) else 0.12
    final = final * (1 + worse) if is_text else max(0.07, final * (1 - worse))
    final += draw.gauss(0, 0.008 if is_text else 0.012) * (1 if 0.1 < final < 0.99 else 0.05)
    final = final if is_text else min(1.0, final)
    start = 4.6 if is_text else 0.07
    turn = 120 + 380 * draw.random()
    steps = range(50, 1001, 50)
    scores = [start + (final - start) / (1 + math.exp(-(step - turn) / 60)) for step in steps]
    scores = [score + draw.gauss(0, 0.004) for score in scores[:-1]] + [final]
    scores = scores if is_text else [min(1.0, max(0.0, score)) for score in scores]
    lengths = [length] if is_text else [2**power for power in range(6, 14)]
    decay = _EXTRAPOLATION[model]
    by_length = {
        at: final if at <= length else 0.07 + max(0.0, final - 0.07) * math.exp(-decay * math.log2(at / length))
        for at in lengths
    }
    untested: dict[str, str] = {}
    if model == "transformer" and not is_text:
        by_length.pop(8192)
        untested["8192"] = "out of memory"
    measured = accuracy(
        final,
        validation=scores,
        by_length=by_length,
        metric=metric,
        length=length,
        baseline=4.8 if is_text else 1 / 14,
        data=f"{task} {seed}",
        untested=untested,
        train_seconds=60 + 30 * draw.random(),
    )
    if not is_text:
        return measured
    edges = [0, *(2**power for power in range(length.bit_length()))]
    buckets = [
        (low, high - 1, final * math.log(2) + 2.2 / (1 + low) ** 0.55 + draw.gauss(0, 0.01))
        for low, high in itertools.pairwise(sorted(set(edges)))
    ]
    test = measured.test[0].model_copy(update={"loss_by_position": buckets})
    return measured.model_copy(update={"test": [test]})


def _realistic_cost(draw: random.Random, model: str, length: int) -> Cost:
    speed = _SPEED[model] * (1.0 if model != "transformer" else 1 / (1 + length / 6000))
    seconds = 8 * length / speed
    context = min(length, 1024)
    state = {"mamba": 2 * 128 * (16 + 3) * 4, "s4": 2 * 64 * 32 * 8, "lstm": 1024, "gru": 512}.get(model)
    peak = int(length * 8 * (4096 if model != "transformer" else 4096 + length))

    def timed(median: float, tokens: int, peak_bytes: int) -> Timing:
        samples = [median * (1 + abs(draw.gauss(0, 0.02))) for _ in range(20)]
        return timing(median, tokens, peak=peak_bytes, samples=samples)

    return Cost(
        training=timed(seconds, 8 * length, peak),
        inference=timed(seconds / 3.2, 8 * length, peak // 5),
        generation=timed(2e-4 if model != "transformer" else 2.6e-4 + 1e-7 * context, 8, peak // 40),
        generation_context=context,
        state_bytes=state if state is not None else 2 * 2 * 64 * 2 * context,
    )
