"""In-context recall (Poli et al. 2024, arXiv:2403.17844): say the value of every key that has come before.

A sequence is a row of keys, each with its value after it. Keys are drawn again and again from a few; which value
belongs to which key is drawn anew for every sequence. The last key is one that was shown. It differs from `mqar` in
that there is no first part with all pairs: a model must recall and learn new pairs at the same time.
"""

# B batch, N pairs before the last key, K keys

from __future__ import annotations

from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from suite import Batch, Budget, Preset, Settings, ShellSettings, Split, Task
from suite.errors import UsageError
from suite.plugin import IntArray
from suite.spec import NonNegativeInt, PositiveInt
from tasks.mad import BoolArray, TrainOn, first_occurrences, next_tokens, one_of, published_preset
from tasks.training_set import training_generator

Length = Annotated[int, Field(ge=4, multiple_of=2)]
Share = Annotated[float, Field(ge=0, lt=1)]


class InContextRecall(Task):
    """Say the value of a key that came before, while more pairs come.

    The first tokens of the vocabulary are keys, then come as many values (one more if the number is odd), then noise
    tokens, and last, where only one key is asked for, the token that announces it.
    """

    name = "in_context_recall"

    class Options(Settings):
        length: Length = 64
        """Tokens with the last value. A sequence has one less, since the last value is asked for and not shown, or as
        many where only one key is asked for, which is announced."""
        vocab_size: PositiveInt = 16
        """Tokens in all."""
        queries: Literal["repeated", "last"] = "repeated"
        """Keys that are asked for: each that has come before (the published `multi_query`), or the last alone."""
        noise_share: Share = 0.0
        """Chance that two noise tokens stand in the place of a pair."""
        num_noise_tokens: NonNegativeInt = 0
        """Tokens of the vocabulary that are noise."""
        train_on: TrainOn = "answers"
        """`all` trains on every next token, as published; most of them cannot be known."""
        num_train_sequences: PositiveInt | None = None
        """Sequences that there are to train on; if not given, they are fresh at every step."""
        test_lengths: tuple[Length, ...] = ()
        """Values of `length` at which the trained model is tested; `length` itself if empty."""

        @model_validator(mode="after")
        def _there_are_keys_and_values(self) -> Self:
            if self.num_keys < 2:
                raise ValueError(
                    f"vocab_size {self.vocab_size} leaves no two keys beside {self._num_special} other tokens"
                )
            if self.noise_share and not self.num_noise_tokens:
                raise ValueError(f"noise_share {self.noise_share} needs num_noise_tokens of at least 1")
            return self

        @property
        def _num_special(self) -> int:
            return self.num_noise_tokens + (self.queries == "last")

        @property
        def num_keys(self) -> int:
            return (self.vocab_size - self._num_special) // 2

        @property
        def num_values(self) -> int:
            return self.vocab_size - self._num_special - self.num_keys

        def total_length(self, length: int) -> int:
            """Tokens of a sequence whose published length is `length`."""
            return length if self.queries == "last" else length - 1

    presets = {
        "quick": Preset(
            settings={"length": 32, "vocab_size": 8},
            shell=ShellSettings(width=32, num_layers=2),
            budget=Budget(steps=800, batch_size=32, warmup_steps=50, schedule="cosine", evaluate_every=100),
            learning_rates=(5e-3,),
            num_seeds=2,
            cost_lengths=(31,),
        ),
        "standard": Preset(
            settings={"length": 128, "vocab_size": 64},
            shell=ShellSettings(width=128, num_layers=2),
            budget=Budget(steps=20_000, batch_size=64, warmup_steps=200, evaluate_every=500, stop_at=0.999),
            learning_rates=(3e-4, 1e-3, 3e-3),
            max_extensions=2,
            num_seeds=5,
            cost_lengths=(127,),
        ),
        "paper": published_preset(length=128, vocab_size=16, train_on="all"),
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
        options = self.options
        shortest = options.total_length(4)
        if length < shortest or (length - shortest) % 2:
            raise UsageError(f"{self.name}: a sequence has {shortest}, {shortest + 2}, … tokens, not {length}")
        rng = training_generator(rng, split, batch_size, options.num_train_sequences)
        keys_BN, values_BN, is_noise_BN = self._pairs(rng, batch_size, num_pairs=1 + (length - shortest) // 2)
        is_new_BN = first_occurrences(keys_BN) == np.arange(keys_BN.shape[1])
        last = one_of(rng, is_new_BN & ~is_noise_BN)

        end = 2 * keys_BN.shape[1]
        tokens = np.empty((batch_size, length + 1), dtype=np.int64)
        tokens[:, 0:end:2], tokens[:, 1:end:2] = keys_BN, values_BN
        tokens[:, end:] = self.vocab_size - 1
        tokens[:, -2:-1] = np.take_along_axis(keys_BN, last, axis=1)
        tokens[:, -1:] = np.take_along_axis(values_BN, last, axis=1)
        is_answer = np.zeros(tokens.shape, dtype=bool)
        is_answer[:, 1:end:2] = (options.queries == "repeated") & ~is_new_BN & ~is_noise_BN
        is_answer[:, -1] = True
        return Batch(*next_tokens(tokens, is_answer, trains_on_all=split == "train" and options.train_on == "all"))

    def _pairs(self, rng: np.random.Generator, batch_size: int, num_pairs: int) -> tuple[IntArray, IntArray, BoolArray]:
        """Keys, their values, and which of the pairs are noise, at least one of them not; each (batch, pairs)."""
        options = self.options
        keys_BN = rng.integers(0, options.num_keys, (batch_size, num_pairs))
        value_of_key_BK = options.num_keys + rng.integers(0, options.num_values, (batch_size, options.num_keys))
        values_BN = np.take_along_axis(value_of_key_BK, keys_BN, axis=1)
        is_noise_BN = rng.random(keys_BN.shape) < options.noise_share
        is_noise_BN[np.arange(batch_size), rng.integers(0, num_pairs, batch_size)] = False
        first_noise = options.num_keys + options.num_values
        noise = rng.integers(first_noise, first_noise + max(1, options.num_noise_tokens), (2, *keys_BN.shape))
        keys_BN, values_BN = np.where(is_noise_BN, noise, [keys_BN, values_BN])
        return keys_BN, values_BN, is_noise_BN

    def oracle(self, batch: Batch) -> IntArray | None:
        if self.options.train_on == "all":
            return None
        answers = np.zeros_like(batch.inputs)
        for row, tokens in enumerate(batch.inputs.tolist()):
            value_of: dict[int, int] = {}
            for position, token in enumerate(tokens):
                answers[row, position] = value_of.get(token, 0)
                if token < self.options.num_keys and position + 1 < len(tokens):
                    value_of[token] = tokens[position + 1]
        return answers

    def baseline(self) -> float:
        return 1 / float(self.options.num_values)
