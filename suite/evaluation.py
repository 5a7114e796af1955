"""Scores of a model on a split: loss, accuracy by token and by whole sequence, loss by position."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from suite.errors import Diverged
from suite.plugin import IGNORED, Split
from suite.progress import Listener, Progress
from suite.records import Evaluation
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
    trainee.shell.eval()
    sizes = [min(batch_size, num_sequences - first) for first in range(0, num_sequences, batch_size)]
    for first in range(0, len(sizes), num_at_once):
        listener(Progress(1.0, f"testing at {length:,} tokens") if split == "test" else Progress(None, None))
        drawn = [
            trainee.batch(split, first + index, size, length, hashed=hashed)
            for index, size in enumerate(sizes[first : first + num_at_once])
        ]
        inputs, targets = (torch.cat(parts) for parts in zip(*drawn, strict=True))
        tally.add(trainee.logits(inputs), targets)
    trainee.shell.train()
    return tally.result()


class _Tally:
    """Adds up scores over batches, on the device, without waiting for it."""

    def __init__(self, length: int, device: torch.device, *, is_text: bool) -> None:
        self._length = length
        self._is_text = is_text
        self._loss_per_position = torch.zeros(length, dtype=torch.float64, device=device)
        self._scored_per_position = torch.zeros(length, dtype=torch.float64, device=device)
        self._num_right = torch.zeros(2, dtype=torch.int64, device=device)
        self._num_sequences = 0

    def add(self, logits: Tensor, targets: Tensor) -> None:
        is_scored = targets != IGNORED
        loss = functional.cross_entropy(logits.transpose(1, 2), targets, ignore_index=IGNORED, reduction="none")
        is_right = (logits.argmax(-1) == targets) & is_scored
        self._loss_per_position += loss.double().sum(0)
        self._scored_per_position += is_scored.double().sum(0)
        self._num_right += torch.stack([is_right.sum(), (is_right == is_scored).all(1).sum()])
        self._num_sequences += len(targets)

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
