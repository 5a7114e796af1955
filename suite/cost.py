"""A cost cell: seconds and bytes of training, inference and generation, at one length, with nobody beside.

It runs twice. The rehearsal pays for what is paid once in a process (compilation, autotuning, libraries that load on
first use, pools that never shrink) and gives the first-call seconds; the second time, with a fresh model, counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from models.state import state_bytes
from suite.measure.time import call_seconds, interleaved_seconds
from suite.progress import Listener, Progress
from suite.records import Cost, Timing
from suite.trainee import Trainee

MAX_STEPPED_CONTEXT = 1024
"""Tokens that the state of a model is fed, at most, that cannot take a prompt at once."""

MAX_GENERATION_SAMPLES = 30
"""Steps that are timed, at most."""


@dataclass(frozen=True)
class FirstCalls:
    """Seconds of the first call of each activity in this cell."""

    inference: float
    generation: float
    training: float


def rehearse(trainee: Trainee, listener: Listener) -> FirstCalls:
    """Does everything once, with a model that is then thrown away."""
    listener(Progress(0.05, "first calls"))
    activities = _Activities(trainee)
    activities.shell.eval()
    inference = call_seconds(activities.infer, trainee.device)
    with torch.inference_mode(), trainee.autocast():
        state = activities.shell.initial_state(activities.batch_size, 1)
        first_tokens = activities.inputs[:, 0]
        generation = call_seconds(lambda: activities.shell.step(first_tokens, state), trainee.device)
    activities.shell.train()
    return FirstCalls(inference, generation, call_seconds(activities.train, trainee.device))


def measure_cost(trainee: Trainee, first_calls: FirstCalls, listener: Listener) -> Cost:
    """Times and weighs the three things one does with a model."""
    activities = _Activities(trainee)
    # What is only used comes before what is trained: gradients and the optimizer's state belong to training alone.
    listener(Progress(0.3, "inference memory"))
    activities.shell.eval()
    inference_bytes = trainee.memory.of(activities.infer)
    listener(Progress(0.4, "generation"))
    context, samples, generation_bytes, num_state_bytes = activities.generate(listener)
    listener(Progress(0.6, "training memory"))
    activities.shell.train()
    training_bytes = trainee.memory.of(activities.train)
    listener(Progress(0.7, "timing training and inference"))
    inference_seconds, training_seconds = interleaved_seconds(
        [(activities.shell.eval, activities.infer), (activities.shell.train, activities.train)],
        trainee.device,
        num_warmup_rounds=1,
        min_rounds=10,
        seconds=0.5,
    )
    return Cost(
        training=Timing(
            first_call_seconds=first_calls.training,
            samples_seconds=training_seconds,
            tokens_per_call=activities.num_tokens,
            peak_memory_bytes=training_bytes,
        ),
        inference=Timing(
            first_call_seconds=first_calls.inference,
            samples_seconds=inference_seconds,
            tokens_per_call=activities.num_tokens,
            peak_memory_bytes=inference_bytes,
        ),
        generation=Timing(
            first_call_seconds=first_calls.generation,
            samples_seconds=samples,
            tokens_per_call=activities.batch_size,
            peak_memory_bytes=generation_bytes,
        ),
        generation_context=context,
        state_bytes=num_state_bytes,
    )


class _Activities:
    """Inference, generation and training of one model on one batch."""

    def __init__(self, trainee: Trainee) -> None:
        length, batch_size = trainee.cell.length, trainee.cell.batch_size
        assert length is not None
        assert batch_size is not None
        self.trainee = trainee
        self.shell = trainee.shell
        self.batch_size, self.length = batch_size, length
        self.num_tokens = batch_size * length
        self.inputs, self._targets = trainee.batch("train", 0, batch_size, length, hashed=False)

    def train(self) -> None:
        self.trainee.training_step(self.inputs, self._targets)

    @torch.inference_mode()
    def infer(self) -> None:
        self.trainee.logits(self.inputs)

    def generate(self, listener: Listener) -> tuple[int, list[float], int | None, int]:
        """Fills a state with the first of `context` tokens and times the last steps.

        Returns:
            The context, the seconds of each timed step (one token for each sequence), their peak memory in bytes, and
            the bytes of one sequence's state at the end.
        """
        context = self.length if self.shell.prefills_in_parallel else min(self.length, MAX_STEPPED_CONTEXT)
        num_samples = min(context, MAX_GENERATION_SAMPLES)
        prompt, timed = torch.split(self.inputs[:, :context], [context - num_samples, num_samples], dim=1)
        tokens = iter(timed.unbind(1))
        samples: list[float] = []
        with torch.inference_mode(), self.trainee.autocast():
            if prompt.shape[1]:
                listener(Progress(None, f"generation, a prompt of {prompt.shape[1]:,} tokens"))
                _, state = self.shell.prefill(prompt, context)
            else:
                state = self.shell.initial_state(self.batch_size, context)

            def step() -> None:
                nonlocal state
                _, state = self.shell.step(next(tokens), state)

            def sample() -> None:
                samples.extend(call_seconds(step, self.trainee.device) for _ in range(num_samples))

            peak_bytes = self.trainee.memory.of(sample)
        return context, samples, peak_bytes, state_bytes(state) // self.batch_size
