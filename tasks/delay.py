"""Delay: say the token of k steps ago, at every step (the tokens of the delay network; Voelker et al. 2019, NeurIPS).

The plainest test of memory: a model that solves it holds the last k tokens, whatever they are.
"""

from __future__ import annotations

from typing import Annotated, Self

import numpy as np
from pydantic import Field, model_validator

from suite import IGNORED, Batch, Budget, Preset, Settings, ShellSettings, Split, Task
from suite.errors import UsageError
from suite.plugin import IntArray
from suite.spec import PositiveInt


class Delay(Task):
    """Say the token of k steps ago, at every step."""

    name = "delay"

    class Options(Settings):
        length: PositiveInt = 64
        """Tokens of a sequence."""
        steps: PositiveInt = 8
        """k: how long ago the answer stood."""
        vocab_size: Annotated[int, Field(ge=2)] = 8
        """Tokens, all equally likely."""
        test_lengths: tuple[PositiveInt, ...] = ()
        """Lengths at which the trained model is tested; `length` itself if empty."""

        @model_validator(mode="after")
        def _something_is_asked_for(self) -> Self:
            for length in (self.length, *self.test_lengths):
                if length <= self.steps:
                    raise ValueError(f"length {length} is over before steps {self.steps} have passed")
            return self

    presets = {
        "quick": Preset(
            settings={"length": 32, "steps": 6, "test_lengths": [32, 64, 128]},
            shell=ShellSettings(width=32, num_layers=2),
            budget=Budget(steps=800, batch_size=32, warmup_steps=50, schedule="cosine", evaluate_every=100),
            learning_rates=(5e-3,),
            num_seeds=2,
            cost_lengths=(32,),
        ),
        "standard": Preset(
            settings={"length": 256, "steps": 64, "test_lengths": [256, 512, 1024]},
            budget=Budget(steps=10_000, batch_size=64, warmup_steps=200, evaluate_every=500, stop_at=0.999),
            learning_rates=(3e-4, 1e-3, 3e-3),
            max_extensions=2,
            num_seeds=5,
            cost_lengths=(256,),
        ),
        # The lag of a thousand steps in sequences of four thousand of Gu et al. 2022, arXiv:2206.12037.
        "paper": Preset(
            settings={"length": 4000, "steps": 1000},
            shell=ShellSettings(width=128, num_layers=2),
            budget=Budget(steps=20_000, batch_size=16, schedule="cosine", warmup_steps=500, evaluate_every=1000),
            learning_rates=(3e-4, 1e-3, 3e-3),
            cost_lengths=(4000,),
        ),
    }

    @property
    def vocab_size(self) -> int:
        return int(self.options.vocab_size)

    @property
    def length(self) -> int:
        return int(self.options.length)

    @property
    def test_lengths(self) -> tuple[int, ...]:
        return self.options.test_lengths or (self.length,)

    def sample(self, rng: np.random.Generator, *, split: Split, batch_size: int, length: int) -> Batch:
        steps = self.options.steps
        if length <= steps:
            raise UsageError(f"{self.name}: a delay of {steps} needs more than {length} tokens")
        inputs = rng.integers(0, self.vocab_size, (batch_size, length))
        targets = np.full_like(inputs, IGNORED)
        targets[:, steps:] = inputs[:, :-steps]
        return Batch(inputs, targets)

    def oracle(self, batch: Batch) -> IntArray:
        return np.roll(batch.inputs, self.options.steps, axis=1)

    def baseline(self) -> float:
        return 1 / self.vocab_size
