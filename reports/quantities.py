"""What is read off a cost measurement: throughput, latency, memory; each with its unit, direction and interval."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from reports import formatting
from reports.formatting import Format
from reports.statistics import Interval, TimingSummary, summarize_timing
from suite.records import Cost, Timing

Activity = Literal["training", "inference", "generation"]


@dataclass(frozen=True)
class Estimate:
    """A value and, where its samples carry one, the interval around it."""

    value: float
    interval: Interval | None = None


@dataclass(frozen=True)
class Quantity:
    """One number that a cost measurement gives."""

    name: str
    title: str
    unit: str
    higher_is_better: bool
    write: Format
    read: Callable[[Cost, int], Estimate | None]
    """From the cost and its batch size; None where it was not measured."""
    is_of_generation: bool = False
    """Whether it was taken after `Cost.generation_context` tokens, not after the whole length."""


def timing_of(cost: Cost, activity: Activity) -> Timing:
    """The timing of one activity."""
    return {"training": cost.training, "inference": cost.inference, "generation": cost.generation}[activity]


def tokens_per_second(timing: Timing) -> Estimate | None:
    """Tokens of the whole batch over the median seconds of a call; None without positive, finite samples."""
    seconds = _summary(timing)
    if seconds is None:
        return None
    interval = seconds.interval
    if interval is not None:
        slowest, fastest = timing.tokens_per_call / interval.high, timing.tokens_per_call / interval.low
        interval = Interval(slowest, fastest, interval.method, interval.confidence)
    return Estimate(timing.tokens_per_call / seconds.median, interval)


def seconds_per_token(timing: Timing, batch_size: int) -> Estimate | None:
    """Median seconds that each sequence of the batch waits for a token; None without positive, finite samples."""
    seconds = _summary(timing)
    if seconds is None:
        return None
    tokens_per_sequence = timing.tokens_per_call / batch_size
    interval = seconds.interval
    if interval is not None:
        low, high = interval.low / tokens_per_sequence, interval.high / tokens_per_sequence
        interval = Interval(low, high, interval.method, interval.confidence)
    return Estimate(seconds.median / tokens_per_sequence, interval)


def slow_seconds_per_token(timing: Timing, batch_size: int) -> Estimate | None:
    """What 95 % of the calls stay below, per token of each sequence; None without positive, finite samples."""
    seconds = _summary(timing)
    if seconds is None:
        return None
    return Estimate(seconds.ninety_fifth_percentile * batch_size / timing.tokens_per_call)


def _summary(timing: Timing) -> TimingSummary | None:
    if not timing.samples_seconds or not all(0 < sample < math.inf for sample in timing.samples_seconds):
        return None
    return summarize_timing(tuple(timing.samples_seconds))


def _exactly(value: float | None) -> Estimate | None:
    return None if value is None else Estimate(float(value))


def _throughput(activity: Activity) -> Quantity:
    return Quantity(
        name=f"{activity}_tokens_per_second",
        title=activity.capitalize(),
        unit="tokens/s",
        higher_is_better=True,
        write=formatting.compact_count,
        read=lambda cost, _: tokens_per_second(timing_of(cost, activity)),
        is_of_generation=activity == "generation",
    )


def _peak_memory(activity: Activity) -> Quantity:
    return Quantity(
        name=f"{activity}_peak_bytes",
        title=f"Peak memory, {activity}",
        unit="",
        higher_is_better=False,
        write=formatting.byte_size,
        read=lambda cost, _: _exactly(timing_of(cost, activity).peak_memory_bytes),
    )


TRAINING_THROUGHPUT = _throughput("training")
INFERENCE_THROUGHPUT = _throughput("inference")
GENERATION_THROUGHPUT = _throughput("generation")
GENERATION_LATENCY = Quantity(
    name="generation_seconds_per_token",
    title="Per token",
    unit="generated, median",
    higher_is_better=False,
    write=formatting.duration,
    read=lambda cost, batch_size: seconds_per_token(cost.generation, batch_size),
    is_of_generation=True,
)
SLOW_GENERATION_LATENCY = Quantity(
    name="slow_generation_seconds_per_token",
    title="Per token, 95 %",
    unit="generated, or less",
    higher_is_better=False,
    write=formatting.duration,
    read=lambda cost, batch_size: slow_seconds_per_token(cost.generation, batch_size),
    is_of_generation=True,
)
FIRST_TRAINING_STEP = Quantity(
    name="training_first_call_seconds",
    title="First step",
    unit="of training",
    higher_is_better=False,
    write=formatting.duration,
    read=lambda cost, _: _exactly(cost.training.first_call_seconds),
)
TRAINING_MEMORY = _peak_memory("training")
INFERENCE_MEMORY = _peak_memory("inference")
STATE_SIZE = Quantity(
    name="state_bytes",
    title="Generation state",
    unit="per sequence",
    higher_is_better=False,
    write=formatting.byte_size,
    read=lambda cost, _: _exactly(cost.state_bytes),
    is_of_generation=True,
)
