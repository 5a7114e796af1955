"""Memorization (Poli et al. 2024, arXiv:2403.17844): learn fixed facts, which no sequence explains.

Which value belongs to which key never changes, so it must go into the weights. A sequence is a row of keys, each with a
blank after it in whose place its value is to be said.
"""

from __future__ import annotations

import functools
from typing import Annotated

import numpy as np
from pydantic import Field

from suite import IGNORED, Batch, Budget, Preset, Settings, ShellSettings, Split, Task
from suite.errors import UsageError
from suite.plugin import IntArray
from suite.spec import PositiveInt, Seed
from tasks.mad import published_preset
from tasks.training_set import training_generator

_Length = Annotated[int, Field(ge=2, multiple_of=2)]


class Memorization(Task):
    """Say the value of each key, the same in all sequences: facts to be held in the weights.

    The first half of the tokens are keys, the second half values, the last token is the blank. Scored are the blanks.
    """

    name = "memorization"

    class Options(Settings):
        length: _Length = 32
        """Tokens of a sequence, keys and blanks."""
        vocab_size: Annotated[int, Field(ge=5)] = 256
        """Tokens in all: nearly twice as many as there are facts."""
        facts_seed: Seed = 0
        """Decides which value belongs to which key."""
        num_train_sequences: PositiveInt | None = None
        """Sequences that there are to train on; if not given, they are fresh at every step."""

    presets = {
        "quick": Preset(
            settings={"length": 16, "vocab_size": 64},
            shell=ShellSettings(width=32, num_layers=2),
            budget=Budget(steps=300, batch_size=32, warmup_steps=20, schedule="cosine"),
            learning_rates=(5e-3,),
            cost_lengths=(16,),
        ),
        "standard": Preset(
            settings={"vocab_size": 4096},
            shell=ShellSettings(width=128, num_layers=2),
            budget=Budget(steps=10_000, batch_size=128, warmup_steps=200, evaluate_every=500, stop_at=0.999),
            learning_rates=(3e-4, 1e-3, 3e-3),
            max_extensions=2,
            num_seeds=5,
            cost_lengths=(32,),
        ),
        "paper": published_preset(length=32, vocab_size=256),
    }

    @property
    def vocab_size(self) -> int:
        return int(self.options.vocab_size)

    @property
    def length(self) -> int:
        return int(self.options.length)

    def sample(self, rng: np.random.Generator, *, split: Split, batch_size: int, length: int) -> Batch:
        if length < 2 or length % 2:
            raise UsageError(f"{self.name}: keys and blanks come to 2, 4, 6, … tokens, not {length}")
        rng = training_generator(rng, split, batch_size, self.options.num_train_sequences)
        value_of_key = _facts(self.vocab_size, self.options.facts_seed)
        keys = rng.integers(0, len(value_of_key), (batch_size, length // 2))
        inputs = np.full((batch_size, length), self.vocab_size - 1, dtype=np.int64)
        inputs[:, 0::2] = keys
        targets = np.full_like(inputs, IGNORED)
        targets[:, 1::2] = value_of_key[keys]
        return Batch(inputs, targets)

    def oracle(self, batch: Batch) -> IntArray:
        value_of_key = _facts(self.vocab_size, self.options.facts_seed)
        return np.repeat(value_of_key[batch.inputs[:, 0::2]], 2, axis=1)

    def baseline(self) -> float:
        return 1 / ((self.vocab_size - 1) // 2)


@functools.cache
def _facts(vocab_size: int, seed: int) -> IntArray:
    """The value of every key; no two keys share one."""
    num_keys, num_values = (vocab_size - 1) // 2, vocab_size // 2
    values = np.random.Generator(np.random.Philox(key=seed)).permutation(num_values)
    return num_keys + values[:num_keys]
