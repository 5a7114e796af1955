"""The adding problem (Hochreiter & Schmidhuber 1997; two halves as in Arjovsky et al. 2016, arXiv:1511.06464, §5.2).

Two of many numbers are marked, one in each half of the sequence: what is their sum? The numbers are whole here, so that
the sum is one of finitely many classes and all models answer through the head that they share.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from suite import IGNORED, Batch, Budget, Preset, Settings, ShellSettings, Split, Task
from suite.errors import UsageError
from suite.plugin import IntArray

_Length = Annotated[int, Field(ge=2)]


class Adding(Task):
    """Say the sum of the two numbers that are marked.

    Tokens 0 … n-1 are the numbers, n … 2n-1 the same numbers marked. Scored is the last position alone; its target is
    the sum, 0 … 2n-2.
    """

    name = "adding"

    class Options(Settings):
        length: _Length = 32
        """Tokens of a sequence."""
        num_numbers: Annotated[int, Field(ge=2)] = 10
        """n: numbers reach from 0 to n - 1."""
        test_lengths: tuple[_Length, ...] = ()
        """Lengths at which the trained model is tested; `length` itself if empty."""

    presets = {
        "quick": Preset(
            settings={"length": 16, "num_numbers": 5, "test_lengths": [16, 32, 64]},
            shell=ShellSettings(width=32, num_layers=2),
            budget=Budget(steps=1000, batch_size=32, warmup_steps=50, schedule="cosine", evaluate_every=100),
            learning_rates=(5e-3,),
            num_seeds=2,
            cost_lengths=(16,),
        ),
        "standard": Preset(
            settings={"length": 200, "test_lengths": [200, 400, 800]},
            budget=Budget(steps=20_000, batch_size=64, warmup_steps=200, evaluate_every=500, stop_at=0.999),
            learning_rates=(3e-4, 1e-3, 3e-3),
            max_extensions=2,
            num_seeds=5,
            cost_lengths=(200, 1024, 4096),
        ),
        "paper": Preset(
            settings={"length": 750, "num_numbers": 100},
            shell=ShellSettings(width=128, num_layers=2),
            budget=Budget(steps=20_000, batch_size=50, evaluate_every=500, stop_at=0.999),
            learning_rates=(3e-4, 1e-3, 3e-3),
            num_seeds=5,
            cost_lengths=(750,),
        ),
    }

    @property
    def vocab_size(self) -> int:
        return 2 * int(self.options.num_numbers)

    @property
    def length(self) -> int:
        return int(self.options.length)

    @property
    def test_lengths(self) -> tuple[int, ...]:
        return self.options.test_lengths or (self.length,)

    def sample(self, rng: np.random.Generator, *, split: Split, batch_size: int, length: int) -> Batch:
        if length < 2:
            raise UsageError(f"{self.name}: two marked numbers need at least 2 tokens, not {length}")
        num_numbers, rows = self.options.num_numbers, np.arange(batch_size)
        inputs = rng.integers(0, num_numbers, (batch_size, length))
        first, second = rng.integers([[0], [length // 2]], [[length // 2], [length]], (2, batch_size))
        targets = np.full_like(inputs, IGNORED)
        targets[:, -1] = inputs[rows, first] + inputs[rows, second]
        inputs[rows, first] += num_numbers
        inputs[rows, second] += num_numbers
        return Batch(inputs, targets)

    def oracle(self, batch: Batch) -> IntArray:
        num_numbers = self.options.num_numbers
        marked = np.maximum(batch.inputs, num_numbers) - num_numbers
        return np.repeat(marked.sum(axis=1, keepdims=True), batch.inputs.shape[1], axis=1)

    def baseline(self) -> float:
        """Of the n² pairs of numbers, n have the commonest sum, n - 1."""
        return 1 / int(self.options.num_numbers)
