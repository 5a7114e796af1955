"""Selective copying: remember the tokens that matter and skip the noise (Gu & Dao 2023, arXiv:2312.00752, §4.1.1).

M data tokens stand at random places among noise; then M markers ask for them in order. The paper's generator was not
published. This is the `variable` copying task of the same authors' S4 code; what the paper leaves open is a setting.
"""

# B batch, M data tokens

from __future__ import annotations

from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from suite import IGNORED, Batch, Budget, Preset, Settings, ShellSettings, Split, Task
from suite.errors import UsageError
from suite.plugin import IntArray
from suite.spec import PositiveInt
from tasks.subsets import random_subsets

NOISE = 0


class SelectiveCopying(Task):
    """Copy a few data tokens, in order, from among many noise tokens.

    Token 0 is noise, the last token of the vocabulary is the marker, and the others are data. Scored are the markers
    alone: the k-th one asks for the k-th data token.
    """

    name = "selective_copying"

    class Options(Settings):
        length: PositiveInt = 48
        """Places for noise and data together, before the markers; but see `length_counts`."""
        num_tokens: PositiveInt = 4
        """Data tokens to remember, M, and as many markers after them."""
        vocab_size: Annotated[int, Field(ge=4)] = 10
        """Tokens in all, noise and marker included."""
        length_counts: Literal["noise", "noise_and_data", "everything"] = "noise_and_data"
        """What `length` counts, which the paper does not say: 4096 and M = 16 come to 4128, 4112 or 4096 tokens."""
        test_lengths: tuple[PositiveInt, ...] = ()
        """Values of `length` at which the trained model is tested; `length` itself if empty."""

        @model_validator(mode="after")
        def _tokens_have_places(self) -> Self:
            for length in (self.length, *self.test_lengths):
                num_places = self.total_length(length) - self.num_tokens
                if num_places < self.num_tokens:
                    raise ValueError(
                        f"length {length}, which counts {self.length_counts}, leaves {max(num_places, 0)} places "
                        f"for num_tokens {self.num_tokens}"
                    )
            return self

        def total_length(self, length: int) -> int:
            """Tokens of a sequence whose published length is `length`."""
            uncounted = {"noise": 2 * self.num_tokens, "noise_and_data": self.num_tokens, "everything": 0}
            return length + uncounted[self.length_counts]

    presets = {
        "quick": Preset(
            settings={"length": 64, "num_tokens": 3, "vocab_size": 16},
            shell=ShellSettings(width=32, num_layers=2),
            budget=Budget(steps=1000, batch_size=16, warmup_steps=50, schedule="cosine", evaluate_every=100),
            learning_rates=(5e-3,),
            num_seeds=2,
            cost_lengths=(67,),
        ),
        "standard": Preset(
            settings={"length": 256, "num_tokens": 16, "vocab_size": 16},
            budget=Budget(steps=20_000, batch_size=64, warmup_steps=200, evaluate_every=500, stop_at=0.999),
            learning_rates=(3e-4, 1e-3, 3e-3),
            max_extensions=2,
            num_seeds=5,
            cost_lengths=(272, 1024, 4096),
        ),
        "paper": Preset(
            settings={"length": 4096, "num_tokens": 16, "vocab_size": 16},
            shell=ShellSettings(width=64, num_layers=2),
            budget=Budget(steps=400_000, batch_size=64, evaluate_every=10_000, validation_batches=8, test_batches=16),
            learning_rates=(1e-4,),
            cost_lengths=(4112,),
            cost_batch_size=64,
        ),
    }

    @property
    def vocab_size(self) -> int:
        return int(self.options.vocab_size)

    @property
    def length(self) -> int:
        return int(self.options.total_length(self.options.length))

    @property
    def test_lengths(self) -> tuple[int, ...]:
        published = self.options.test_lengths or (self.options.length,)
        return tuple(self.options.total_length(length) for length in published)

    def sample(self, rng: np.random.Generator, *, split: Split, batch_size: int, length: int) -> Batch:
        num_tokens, marker = self.options.num_tokens, self.vocab_size - 1
        num_places = length - num_tokens
        if num_places < num_tokens:
            raise UsageError(
                f"{self.name}: {num_tokens} data tokens and their markers need at least {2 * num_tokens} tokens, "
                f"not {length}"
            )
        places_BM = random_subsets(rng, batch_size, num_tokens, num_places)
        data_BM = rng.integers(NOISE + 1, marker, (batch_size, num_tokens))
        inputs = np.full((batch_size, length), NOISE, dtype=np.int64)
        np.put_along_axis(inputs, places_BM, data_BM, axis=1)
        inputs[:, num_places:] = marker
        targets = np.full_like(inputs, IGNORED)
        targets[:, num_places:] = data_BM
        return Batch(inputs, targets)

    def oracle(self, batch: Batch) -> IntArray:
        is_data = (batch.inputs != NOISE) & (batch.inputs != self.vocab_size - 1)
        answers = np.full_like(batch.inputs, NOISE)
        answers[:, -self.options.num_tokens :] = batch.inputs[is_data].reshape(len(batch.inputs), -1)
        return answers

    def baseline(self) -> float:
        return 1 / (self.vocab_size - 2)
