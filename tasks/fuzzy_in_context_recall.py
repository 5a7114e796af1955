"""Fuzzy in-context recall (Poli et al. 2024, arXiv:2403.17844): keys and values of several tokens each.

As in in-context recall, but a key is a motif of 1 to `max_key_tokens` different tokens and a value one of 1 to
`max_value_tokens`; in validation and test every key has the full length, as published. The published generator now and
then asks at the end for a key that it never showed; here the last key is always one of those that were.
"""

# B batch, N pairs that could be shown, M tokens of the longest key and value together

from __future__ import annotations

from typing import Self

import numpy as np
from pydantic import model_validator

from suite import Batch, Budget, Preset, Settings, ShellSettings, Split, Task
from suite.errors import UsageError
from suite.plugin import IntArray
from suite.spec import PositiveInt
from tasks.mad import TrainOn, first_occurrences, next_tokens, one_of, published_preset
from tasks.training_set import training_generator


class FuzzyInContextRecall(Task):
    """Say the value of a key that came before, where keys and values are motifs of several tokens.

    The first tokens of the vocabulary make up keys, the others values, and the last one is padding before the first
    pair. Scored is every token of the value of a key that has come before.
    """

    name = "fuzzy_in_context_recall"

    class Options(Settings):
        length: PositiveInt = 64
        """Tokens of a sequence; a few at its start may be padding."""
        vocab_size: PositiveInt = 16
        """Tokens in all."""
        max_key_tokens: PositiveInt = 3
        """Tokens of the longest key."""
        max_value_tokens: PositiveInt = 3
        """Tokens of the longest value."""
        train_on: TrainOn = "answers"
        """`all` trains on every next token, as published; most of them cannot be known."""
        num_train_sequences: PositiveInt | None = None
        """Sequences that there are to train on; if not given, they are fresh at every step."""
        test_lengths: tuple[PositiveInt, ...] = ()
        """Lengths at which the trained model is tested; `length` itself if empty."""

        @model_validator(mode="after")
        def _motifs_fit(self) -> Self:
            for kind, longest, num_tokens in (
                ("key", self.max_key_tokens, self.num_key_tokens),
                ("value", self.max_value_tokens, self.vocab_size - 1 - self.num_key_tokens),
            ):
                if longest > num_tokens or num_tokens < 2:
                    raise ValueError(
                        f"vocab_size {self.vocab_size} has {max(num_tokens, 0)} {kind} tokens, too few for "
                        f"max_{kind}_tokens {longest} and a choice"
                    )
            for length in (self.length, *self.test_lengths):
                if length < self.shortest_length:
                    raise ValueError(
                        f"length {length} has no room for a pair and its key again, which may need "
                        f"{self.shortest_length} tokens"
                    )
            return self

        @property
        def num_key_tokens(self) -> int:
            return (self.vocab_size - 1) // 2

        @property
        def shortest_length(self) -> int:
            """Two pairs but for the last token, which is not shown."""
            return 2 * (self.max_key_tokens + self.max_value_tokens) - 1

    presets = {
        "quick": Preset(
            settings={"length": 32, "vocab_size": 9, "max_key_tokens": 2, "max_value_tokens": 2},
            shell=ShellSettings(width=32, num_layers=2),
            budget=Budget(steps=1000, batch_size=32, warmup_steps=50, schedule="cosine", evaluate_every=100),
            learning_rates=(5e-3,),
            num_seeds=2,
            cost_lengths=(32,),
        ),
        "standard": Preset(
            settings={"length": 128, "vocab_size": 16},
            shell=ShellSettings(width=128, num_layers=2),
            budget=Budget(steps=20_000, batch_size=64, warmup_steps=200, evaluate_every=500, stop_at=0.999),
            learning_rates=(3e-4, 1e-3, 3e-3),
            max_extensions=2,
            num_seeds=5,
            cost_lengths=(128,),
        ),
        "paper": published_preset(length=128, vocab_size=16, train_on="all"),
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
        options = self.options
        if length < options.shortest_length:
            raise UsageError(
                f"{self.name}: a pair and its key again may need {options.shortest_length} tokens, not {length}"
            )
        rng = training_generator(rng, split, batch_size, options.num_train_sequences)
        most_keys, most_values = options.max_key_tokens, options.max_value_tokens
        shape = (batch_size, length // 2)
        key_sizes = rng.integers(1 if split == "train" else most_keys, most_keys + 1, shape)
        value_sizes = rng.integers(1, most_values + 1, shape)
        keys = _motifs(rng, key_sizes, most_keys, options.num_key_tokens)
        values = _motifs(rng, value_sizes, most_values, self.vocab_size - 1 - options.num_key_tokens)
        values = np.where(values >= 0, options.num_key_tokens + values, values)
        # A key has the value that it came with first.
        codes = (keys + 1) @ (options.num_key_tokens + 1) ** np.arange(most_keys)
        firsts = first_occurrences(codes)
        values = np.take_along_axis(values, firsts[..., np.newaxis], axis=1)
        pairs_BNM = np.concatenate([keys, values], axis=2)
        ends_BN = np.cumsum((pairs_BNM >= 0).sum(axis=2), axis=1)
        is_shown_BN = ends_BN <= length + 1 - most_keys - most_values
        is_new_BN = firsts == np.arange(shape[1])
        last = one_of(rng, is_new_BN & is_shown_BN)

        pairs_BNM[~is_shown_BN] = -1
        pairs_BNM = np.concatenate([pairs_BNM, np.take_along_axis(pairs_BNM, last[..., np.newaxis], axis=1)], axis=1)
        is_answer_BNM = np.zeros(pairs_BNM.shape, dtype=bool)
        is_answer_BNM[:, :-1, most_keys:] = ~is_new_BN[..., np.newaxis]
        is_answer_BNM[:, -1, most_keys:] = True
        # What is there moves together and to the end of its row.
        row, *where = np.nonzero(pairs_BNM >= 0)
        sizes_B = np.bincount(row, minlength=batch_size)
        place = length + 1 - np.cumsum(sizes_B)[row] + np.arange(len(row))
        tokens = np.full((batch_size, length + 1), self.vocab_size - 1, dtype=np.int64)
        tokens[row, place] = pairs_BNM[row, *where]
        is_answer = np.zeros(tokens.shape, dtype=bool)
        is_answer[row, place] = is_answer_BNM[row, *where]
        return Batch(*next_tokens(tokens, is_answer, trains_on_all=split == "train" and options.train_on == "all"))

    def oracle(self, batch: Batch) -> IntArray | None:
        if self.options.train_on == "all":
            return None
        answers = np.zeros_like(batch.inputs)
        for row, tokens in enumerate(batch.inputs.tolist()):
            value_of: dict[tuple[int, ...], list[int]] = {}
            start = tokens.count(self.vocab_size - 1)
            while start < len(tokens):
                middle = self._end_of_motif(tokens, start)
                end = self._end_of_motif(tokens, middle)
                value = value_of.setdefault(tuple(tokens[start:middle]), tokens[middle:end])
                answers[row, middle - 1 : middle - 1 + len(value)] = value
                start = end
        return answers

    def _end_of_motif(self, tokens: list[int], start: int) -> int:
        """Where the run of key tokens or of value tokens ends that begins at `start`."""
        num_key_tokens = self.options.num_key_tokens
        end = start
        while end < len(tokens) and (tokens[end] < num_key_tokens) == (tokens[start] < num_key_tokens):
            end += 1
        return end

    def baseline(self) -> float:
        return 1 / (self.vocab_size - 1 - int(self.options.num_key_tokens))


def _motifs(rng: np.random.Generator, sizes: IntArray, longest: int, population: int) -> IntArray:
    """Different numbers below `population` in random order, as many as `sizes` says, then -1; (*sizes, longest)."""
    motifs = np.empty((*sizes.shape, longest), dtype=np.int64)
    for place in range(longest):
        # Counted among those that are left: every one that was taken and is not greater moves the number up.
        number = rng.integers(0, population - place, sizes.shape)
        for taken in np.moveaxis(np.sort(motifs[..., :place]), -1, 0):
            number += number >= taken
        motifs[..., place] = number
    return np.where(np.arange(longest) < sizes[..., np.newaxis], motifs, -1)
