"""Training steps on batch after batch: called on a CPU, replayed as one CUDA graph on a GPU.

A step of a small model is hundreds of kernels of microseconds: called from Python, they keep the GPU waiting for the
host nearly all the time. As a graph, a step is one launch of the same kernels in the same order.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from suite.measure.graph import capture, rehearse
from suite.trainee import Learner


class TrainingSteps:
    """A learner's steps. On a GPU the first is called, and the second captured; it and all after it are replays.

    A step that cannot be captured goes on being called, and `not_graphed` says why.
    """

    def __init__(self, learner: Learner) -> None:
        self._learner = learner
        self._take: Callable[[], None] = self._rehearsal
        self._batch: Tensor | None = None
        self._is_on_gpu = learner.device.type == "cuda"
        self.not_graphed = None if self._is_on_gpu else "there are no CUDA graphs on a CPU"
        """Why steps are called from Python; None if they are replayed."""

    def __call__(self, batch: Tensor) -> Tensor:
        """One optimizer step; gives the mean loss over the scored positions, in nats. Does not wait for the device.

        Args:
            batch: tokens and what belongs to each, (2, batch, length), on the host or the device; always of one size.
        """
        if not self._is_on_gpu:
            return self._learner.training_step(*batch)
        if self._batch is None:
            self._batch = torch.empty_like(batch, device=self._learner.device)
        self._batch.copy_(batch, non_blocking=True)
        self._take()
        return self._loss.clone()

    def _step(self) -> None:
        assert self._batch is not None
        self._loss = self._learner.training_step(*self._batch)

    def _rehearsal(self) -> None:
        rehearse(self._step, self._learner.device)
        self._take = self._capture

    def _capture(self) -> None:
        try:
            self._take = capture(self._step, self._learner.device)
        except RuntimeError as error:
            self.not_graphed = str(error).strip().partition("\n")[0]
            self._take = self._step
        self._take()
