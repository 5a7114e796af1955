"""Scores of a model on a split: loss, accuracy by token, by whole sequence and by slice, loss by position."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from suite.errors import Diverged
from suite.plugin import IGNORED, Batch, IntArray, Split
from suite.progress import Listener, Progress
from suite.records import Evaluation, SliceScore
from suite.trainee import Trainee

_TOKENS_AT_ONCE = 2**16
"""What a GPU scores in one forward pass, if a training batch has fewer."""


@torch.no_grad()
def evaluate(
    trainee: Trainee, split: Split, length: int, num_sequences: int, *, hashed: bool, listener: Listener
) -> Evaluation:
    """Scores `num_sequences` fresh sequences, drawn in batches of about as many tokens as a training batch.

    A GPU scores several of them at once, so that a small model does not wait for the host.

    Raises:
        Diverged: the loss is not a finite number.
    """
    training_tokens = trainee.budget.batch_size * trainee.task.length
    batch_size = max(1, min(num_sequences, training_tokens // length))
    num_at_once = max(1, _TOKENS_AT_ONCE // (batch_size * length)) if trainee.device.type == "cuda" else 1
    tally = _Tally(length, trainee.device, is_text=trainee.task.metric == "bits_per_byte")
    by_slice = _SliceTally(trainee.task.slices, trainee.device) if split == "test" and trainee.task.slices else None
    trainee.shell.eval()
    sizes = [min(batch_size, num_sequences - first) for first in range(0, num_sequences, batch_size)]
    for first in range(0, len(sizes), num_at_once):
        listener(Progress(1.0, f"testing at {length:,} tokens") if split == "test" else Progress(None, None))
        drawn = [
            trainee.sample(split, first + index, size, length, hashed=hashed)
            for index, size in enumerate(sizes[first : first + num_at_once])
        ]
        joined = [np.concatenate(parts) for parts in zip(*map(_arrays, drawn), strict=True)]
        inputs, targets, *slices = trainee.on_device(*joined)
        is_right = tally.add(trainee.logits(inputs), targets)
        if by_slice is not None:
            by_slice.add(is_right, targets != IGNORED, *slices)
    trainee.shell.train()
    scores = tally.result()
    return scores if by_slice is None else scores.model_copy(update={"slices": by_slice.result()})


def _arrays(batch: Batch) -> list[IntArray]:
    """Inputs, targets and, where there are slices, that of each position; all (batch, length)."""
    slices = [] if batch.slices is None else [np.broadcast_to(batch.slices, batch.inputs.shape)]
    return [batch.inputs, batch.targets, *slices]


class _Tally:
    """Adds up scores over batches, on the device, without waiting for it."""

    def __init__(self, length: int, device: torch.device, *, is_text: bool) -> None:
        self._length = length
        self._is_text = is_text
        self._loss_per_position = torch.zeros(length, dtype=torch.float64, device=device)
        self._scored_per_position = torch.zeros(length, dtype=torch.float64, device=device)
        self._num_right = torch.zeros(2, dtype=torch.int64, device=device)
        self._num_sequences = 0

    def add(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Gives the scored positions that are right, (batch, length)."""
        is_scored = targets != IGNORED
        loss = torch.where(is_scored, _losses(logits, targets), 0.0)
        is_right = (logits.argmax(-1) == targets) & is_scored
        self._loss_per_position += loss.double().sum(0)
        self._scored_per_position += is_scored.double().sum(0)
        self._num_right += torch.stack([is_right.sum(), (is_right == is_scored).all(1).sum()])
        self._num_sequences += len(targets)
        return is_right

    def result(self) -> Evaluation:
        num_right_tokens, num_right_sequences = self._num_right.tolist()
        num_scored = int(self._scored_per_position.sum())
        loss = float(self._loss_per_position.sum()) / num_scored
        if not math.isfinite(loss):
            raise Diverged(None, str(loss))
        return Evaluation(
            length=self._length,
            num_sequences=self._num_sequences,
            num_scored=num_scored,
            loss=loss,
            token_accuracy=num_right_tokens / num_scored,
            sequence_accuracy=num_right_sequences / self._num_sequences,
            bits_per_byte=loss / math.log(2) if self._is_text else None,
            loss_by_position=self._buckets() if self._is_text else None,
        )

    def _buckets(self) -> list[tuple[int, int, float]]:
        """Mean loss over positions 0, 1, 2–3, 4–7, …; a bucket without a scored position is left out."""
        losses, scored = self._loss_per_position.cpu(), self._scored_per_position.cpu()
        edges = sorted({0, *(2**power for power in range(self._length.bit_length())), self._length})
        return [
            (first, end - 1, float(losses[first:end].sum() / scored[first:end].sum()))
            for first, end in pairwise(edges)
            if scored[first:end].any()
        ]


def _losses(logits: Tensor, targets: Tensor) -> Tensor:
    """-log p of each target, in nats; where the target is IGNORED, anything.

    In float32 log-softmax is 0 once the target leads by 17 nats, and validation could not tell one such model from
    another. This is small where the loss is.
    """
    target = targets.clamp(min=0).unsqueeze(-1)
    others = logits.scatter(-1, target, -math.inf).logsumexp(-1)
    return functional.softplus(others - logits.gather(-1, target).squeeze(-1))


class _SliceTally:
    """Adds up what is right in each slice over batches, on the device, without waiting for it."""

    def __init__(self, names: tuple[str, ...], device: torch.device) -> None:
        self._names = names
        # Rows: sequences, scored positions, right positions, right sequences.
        self._counts = torch.zeros(4, len(names), dtype=torch.int64, device=device)

    def add(self, is_right: Tensor, is_scored: Tensor, slices: Tensor) -> None:
        """All (batch, length)."""
        none_yet = slices.new_zeros(len(slices), len(self._names))
        scored = none_yet.scatter_add(1, slices, is_scored.long())
        right = none_yet.scatter_add(1, slices, is_right.long())
        is_present = scored > 0
        per_sequence = torch.stack([is_present, scored, right, is_present & (right == scored)])
        self._counts += per_sequence.sum(1)

    def result(self) -> list[SliceScore]:
        return [
            SliceScore(
                name=name,
                num_sequences=num_sequences,
                num_scored=num_scored,
                token_accuracy=num_right / num_scored,
                sequence_accuracy=num_right_sequences / num_sequences,
            )
            for name, num_sequences, num_scored, num_right, num_right_sequences in zip(
                self._names, *self._counts.tolist(), strict=True
            )
            if num_scored
        ]
