"""A cost cell: seconds and bytes of training, inference and generation, at one length, with nobody beside."""

from __future__ import annotations

from itertools import chain, repeat

import torch
from torch import Tensor

from models.shell import state_bytes
from suite.measure.time import call_seconds, interleaved_seconds
from suite.progress import Listener, Progress
from suite.records import Cost, Timing
from suite.trainee import Trainee

MAX_GENERATION_CONTEXT = 1024
"""Tokens that a generation state is fed, at most, before its steps are timed."""

_NUM_GENERATION_SAMPLES = 30


def measure_cost(trainee: Trainee, listener: Listener) -> Cost:
    """Times and weighs the three things one does with a model."""
    length, batch_size = trainee.cell.length, trainee.cell.batch_size
    assert length is not None
    assert batch_size is not None
    inputs, targets = trainee.batch("train", 0, batch_size, length, hashed=False)

    def train() -> None:
        trainee.training_step(inputs, targets)

    def infer() -> None:
        with torch.inference_mode():
            trainee.logits(inputs)

    # What is only used comes before what is trained: gradients and the optimizer's state belong to training alone.
    listener(Progress(0.1, "inference"))
    first_inference, inference_bytes = call_seconds(infer, trainee.device), trainee.memory.of(infer)
    listener(Progress(0.2, "generation"))
    context = min(length, MAX_GENERATION_CONTEXT)
    generation = _measure_generation(trainee, inputs, context)
    with trainee.autocast():
        num_state_bytes = state_bytes(trainee.shell.initial_state(1, context))
    listener(Progress(0.5, "training"))
    first_training, training_bytes = call_seconds(train, trainee.device), trainee.memory.of(train)
    inference_seconds, training_seconds = interleaved_seconds(
        [infer, train], trainee.device, num_warmup_rounds=1, min_rounds=10, max_rounds=30, seconds=0.5
    )
    return Cost(
        training=Timing(
            first_call_seconds=first_training,
            samples_seconds=training_seconds,
            tokens_per_call=batch_size * length,
            peak_memory_bytes=training_bytes,
        ),
        inference=Timing(
            first_call_seconds=first_inference,
            samples_seconds=inference_seconds,
            tokens_per_call=batch_size * length,
            peak_memory_bytes=inference_bytes,
        ),
        generation=generation,
        generation_context=context,
        state_bytes=num_state_bytes,
    )


def _measure_generation(trainee: Trainee, inputs: Tensor, context: int) -> Timing:
    """Times single steps, one token for each sequence, after `context` tokens."""
    batch_size = inputs.shape[0]
    tokens = chain.from_iterable(repeat(inputs.unbind(1)))
    trainee.shell.eval()
    with torch.inference_mode(), trainee.autocast():
        state = trainee.shell.initial_state(batch_size, context + _NUM_GENERATION_SAMPLES)

        def generate() -> None:
            nonlocal state
            _, state = trainee.shell.step(next(tokens), state)

        first = call_seconds(generate, trainee.device)
        for _ in range(context - 1):
            generate()
        samples: list[float] = []

        def sample() -> None:
            samples.extend(call_seconds(generate, trainee.device) for _ in range(_NUM_GENERATION_SAMPLES))

        peak = trainee.memory.of(sample)
    trainee.shell.train()
    return Timing(first_call_seconds=first, samples_seconds=samples, tokens_per_call=batch_size, peak_memory_bytes=peak)
