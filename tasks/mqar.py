"""Multi-query associative recall, MQAR (Arora et al. 2023, arXiv:2312.04927, §4 and appendix E).

A sequence begins with P pairs of key and value; then every key stands once more, somewhere in the rest, and its value
is to be said there. Keys and values come from the two halves of the vocabulary, without repetition. How far behind the
pairs a key is asked for follows a power law with density gap^(exponent - 1): with the published exponent of 0.01 most
queries come soon. The rest is filled with one padding token (the published default) or with random tokens.
"""

# B batch, L length, P pairs

from __future__ import annotations

from typing import Annotated, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from suite import IGNORED, Batch, Budget, Preset, Settings, ShellSettings, Split, Task
from suite.errors import UsageError
from suite.plugin import IntArray
from suite.spec import PositiveFloat, PositiveInt
from tasks.subsets import random_arrangements

PADDING = 0


class MQAR(Task):
    """Say the value of every key that comes again: recall of many pairs from one context.

    Token 0 is padding, tokens below half the vocabulary are keys, the others values. Scored are the queries alone.
    """

    name = "mqar"
    version = 2  # keys and values are drawn without a look at the whole vocabulary

    class Options(Settings):
        length: PositiveInt = 64
        """Tokens of a sequence, pairs included."""
        num_pairs: PositiveInt = 4
        """Pairs to remember, P, each asked for once."""
        vocab_size: Annotated[int, Field(ge=6, multiple_of=2)] = 8192
        """Tokens in all."""
        gap_exponent: PositiveFloat = 0.01
        """`power_a` of the published generator: 1 spreads the queries evenly, less asks for them sooner."""
        fills_with_random_tokens: bool = False
        """What stands between the queries: padding, or any token at random (`random_non_queries`)."""
        test_lengths: tuple[PositiveInt, ...] = ()
        """Lengths at which the trained model is tested, with the same number of pairs; `length` itself if empty."""

        @model_validator(mode="after")
        def _pairs_have_room(self) -> Self:
            for length in (self.length, *self.test_lengths):
                if length < 4 * self.num_pairs:
                    raise ValueError(
                        f"length {length} has no room for num_pairs {self.num_pairs}: pairs and queries need "
                        f"{4 * self.num_pairs} tokens"
                    )
            if self.num_pairs >= self.vocab_size // 2:
                raise ValueError(
                    f"vocab_size {self.vocab_size} has {self.vocab_size // 2 - 1} keys, too few for num_pairs "
                    f"{self.num_pairs}"
                )
            return self

    presets = {
        "quick": Preset(
            settings={"length": 16, "num_pairs": 2, "vocab_size": 16},
            shell=ShellSettings(width=32, num_layers=2),
            budget=Budget(steps=1500, batch_size=32, warmup_steps=50, schedule="cosine", evaluate_every=100),
            learning_rates=(3e-3,),
            num_seeds=2,
            cost_lengths=(16,),
        ),
        "standard": Preset(
            settings={"length": 256, "num_pairs": 32, "vocab_size": 1024},
            shell=ShellSettings(width=128, num_layers=2),
            budget=Budget(steps=20_000, batch_size=64, warmup_steps=200, evaluate_every=500, stop_at=0.999),
            learning_rates=(3e-4, 1e-3, 3e-3),
            max_extensions=2,
            num_seeds=5,
            cost_lengths=(256,),
        ),
        # One point of figure 2: 64 epochs of 100,000 examples, drawn fresh here. The published cosine is cut short at
        # 99 %; here the learning rate is constant, so that stopping means the same for fast and slow learners.
        "paper": Preset(
            settings={"length": 256, "num_pairs": 16, "vocab_size": 8192},
            shell=ShellSettings(width=128, num_layers=2),
            budget=Budget(steps=25_000, batch_size=256, evaluate_every=500, stop_at=0.99),
            learning_rates=(1e-4, 4.6e-4, 2.2e-3, 1e-2),
            cost_lengths=(256,),
            cost_batch_size=256,
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
        num_pairs, half = self.options.num_pairs, self.vocab_size // 2
        if length < 4 * num_pairs:
            raise UsageError(
                f"{self.name}: {num_pairs} pairs and their queries need {4 * num_pairs} tokens, not {length}"
            )
        keys_BP = 1 + random_arrangements(rng, batch_size, num_pairs, half - 1)
        values_BP = half + random_arrangements(rng, batch_size, num_pairs, half)
        # A query and the place after it, where a language model would read the value, make one slot.
        num_slots = (length - 2 * num_pairs) // 2
        gaps = np.arange(1, num_slots + 1)
        slots_BP = _weighted_subsets(rng, gaps ** (self.options.gap_exponent - 1), batch_size, num_pairs)
        places_BP = 2 * num_pairs + 2 * slots_BP
        inputs = np.full((batch_size, length), PADDING, dtype=np.int64)
        if self.options.fills_with_random_tokens:
            inputs = rng.integers(0, self.vocab_size, inputs.shape)
        inputs[:, 0 : 2 * num_pairs : 2] = keys_BP
        inputs[:, 1 : 2 * num_pairs : 2] = values_BP
        np.put_along_axis(inputs, places_BP, keys_BP, axis=1)
        targets = np.full_like(inputs, IGNORED)
        np.put_along_axis(targets, places_BP, values_BP, axis=1)
        return Batch(inputs, targets)

    def oracle(self, batch: Batch) -> IntArray:
        pairs = 2 * self.options.num_pairs
        keys, values = batch.inputs[:, :pairs:2, np.newaxis], batch.inputs[:, 1:pairs:2]
        which = (batch.inputs[:, np.newaxis] == keys).argmax(axis=1)
        return np.take_along_axis(values, which, axis=1)

    def baseline(self) -> float:
        return 2 / self.vocab_size


def _smallest(keys: npt.NDArray[np.float64], size: int) -> IntArray:
    """In each row where the `size` smallest keys stand, ascending; of random keys, a random choice in random order."""
    candidates = keys.argpartition(size - 1, axis=1)[:, :size]
    order = np.take_along_axis(keys, candidates, axis=1).argsort(axis=1)
    return np.take_along_axis(candidates, order, axis=1)


def _weighted_subsets(rng: np.random.Generator, weights: npt.NDArray[np.float64], num_rows: int, size: int) -> IntArray:
    """In each row `size` numbers drawn one after the other, without repetition, each with chances as `weights`."""
    # The smallest of exponential clocks with these rates ring in just that order (Efraimidis and Spirakis 2006).
    return _smallest(rng.exponential(size=(num_rows, len(weights))) / weights, size)
