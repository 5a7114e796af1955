"""Compression (Poli et al. 2024, arXiv:2403.17844): hold a whole random sequence, and say its token at any place.

The published task hands what a model says at the sequence's end to a decoder of its own, which must restore every token
from it and a place. The models here share one shell without such a decoder; in its stead, places are asked for one by
one after the end, in random order. So a recurrent model answers from its state alone, as was meant; attention may look
back, and is not made to compress.
"""

# B batch, M tokens to hold

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from suite import IGNORED, Batch, Budget, Preset, Settings, ShellSettings, Split, Task
from suite.errors import UsageError
from suite.plugin import IntArray
from suite.spec import PositiveInt
from tasks.mad import published_preset
from tasks.training_set import training_generator


class Compression(Task):
    """Hold a random sequence, then say the token at each of its places, asked for in random order.

    The first tokens of the vocabulary are to be held, the next one ends the sequence, and the others are places.
    """

    name = "compression"

    class Options(Settings):
        length: Annotated[int, Field(ge=3)] = 32
        """Tokens of the sequence that is held, with the one that ends it."""
        vocab_size: Annotated[int, Field(ge=3)] = 16
        """Tokens to hold and the one that ends the sequence; the places come on top."""
        num_train_sequences: PositiveInt | None = None
        """Sequences that there are to train on; if not given, they are fresh at every step."""

    presets = {
        "quick": Preset(
            settings={"length": 9, "vocab_size": 9},
            shell=ShellSettings(width=32, num_layers=2),
            budget=Budget(steps=1000, batch_size=32, warmup_steps=50, schedule="cosine", evaluate_every=100),
            learning_rates=(5e-3,),
            num_seeds=2,
            cost_lengths=(17,),
        ),
        "standard": Preset(
            shell=ShellSettings(width=128, num_layers=2),
            budget=Budget(steps=20_000, batch_size=128, warmup_steps=200, evaluate_every=500, stop_at=0.999),
            learning_rates=(3e-4, 1e-3, 3e-3),
            max_extensions=2,
            num_seeds=5,
            cost_lengths=(63,),
        ),
        "paper": published_preset(length=32, vocab_size=16),
    }

    @property
    def vocab_size(self) -> int:
        return int(self.options.vocab_size) + self._num_held

    @property
    def length(self) -> int:
        return 2 * self._num_held + 1

    @property
    def _num_held(self) -> int:
        return int(self.options.length) - 1

    def sample(self, rng: np.random.Generator, *, split: Split, batch_size: int, length: int) -> Batch:
        if length != self.length:
            raise UsageError(
                f"{self.name}: {self._num_held} tokens, their end and their places come to {self.length} tokens, not "
                f"{length}; set {self.name}.length"
            )
        rng = training_generator(rng, split, batch_size, self.options.num_train_sequences)
        end_token = self.options.vocab_size - 1
        held_BM = rng.integers(0, end_token, (batch_size, self._num_held))
        places_BM = rng.permuted(np.tile(np.arange(self._num_held), (batch_size, 1)), axis=1)
        inputs = np.hstack([held_BM, np.full((batch_size, 1), end_token), end_token + 1 + places_BM])
        targets = np.full_like(inputs, IGNORED)
        targets[:, self._num_held + 1 :] = np.take_along_axis(held_BM, places_BM, axis=1)
        return Batch(inputs, targets)

    def oracle(self, batch: Batch) -> IntArray:
        places = np.maximum(batch.inputs - self.options.vocab_size, 0)
        return np.take_along_axis(batch.inputs, places, axis=1)

    def baseline(self) -> float:
        return 1 / (int(self.options.vocab_size) - 1)
