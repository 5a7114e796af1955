"""Copying after a delay (Hochreiter & Schmidhuber 1997; as in Arjovsky et al. 2016, arXiv:1511.06464, §5.1).

M data tokens, many blanks, a token that asks for the copy, and M blanks in whose place the data is to be said. With
`placement`, the data stands among the blanks, as in the selective copying of MAD (Poli et al. 2024, arXiv:2403.17844):

    together    data, then blanks: what is remembered and when is always the same
    gaps        each blank goes before one of the data tokens, drawn evenly: MAD's code. The last data token is never
                followed by a blank, so a model may learn to start from the end
    anywhere    every set of places is equally likely: MAD's task, mended

`selective_copying` is the task of Mamba's paper, with a marker for each answer.
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
from tasks.mad import published_preset
from tasks.training_set import training_generator


class Copying(Task):
    """Copy the first few tokens after a long delay.

    The last token of the vocabulary asks for the copy, the one before is the blank, and the others are data. Scored are
    the blanks after the question alone: the k-th one asks for the k-th data token.
    """

    name = "copying"

    class Options(Settings):
        length: PositiveInt = 48
        """Tokens of a sequence: data, blanks, the question, and as many blanks as data."""
        num_tokens: PositiveInt = 5
        """Data tokens to remember, M."""
        vocab_size: Annotated[int, Field(ge=4)] = 10
        """Tokens in all."""
        placement: Literal["together", "gaps", "anywhere"] = "together"
        """Where the data stands among the blanks before the question."""
        num_train_sequences: PositiveInt | None = None
        """Sequences that there are to train on; if not given, they are fresh at every step."""
        test_lengths: tuple[PositiveInt, ...] = ()
        """Lengths at which the trained model is tested; `length` itself if empty."""

        @model_validator(mode="after")
        def _tokens_have_places(self) -> Self:
            for length in (self.length, *self.test_lengths):
                if length < self.shortest_length:
                    raise ValueError(
                        f"length {length} has no room for num_tokens {self.num_tokens}: data, question and answers "
                        f"need {self.shortest_length} tokens"
                    )
            return self

        @property
        def shortest_length(self) -> int:
            return 2 * self.num_tokens + 1

    presets = {
        "quick": Preset(
            settings={"length": 32, "num_tokens": 4},
            shell=ShellSettings(width=32, num_layers=2),
            budget=Budget(steps=1000, batch_size=32, warmup_steps=50, schedule="cosine", evaluate_every=100),
            learning_rates=(5e-3,),
            num_seeds=2,
            cost_lengths=(32,),
        ),
        "standard": Preset(
            settings={"length": 256, "num_tokens": 16, "vocab_size": 16},
            budget=Budget(steps=20_000, batch_size=64, warmup_steps=200, evaluate_every=500, stop_at=0.999),
            learning_rates=(3e-4, 1e-3, 3e-3),
            max_extensions=2,
            num_seeds=5,
            cost_lengths=(256, 1024, 4096),
        ),
        # Ten tokens of eight kinds, remembered for a thousand steps.
        "paper": Preset(
            settings={"length": 1020, "num_tokens": 10, "vocab_size": 10},
            shell=ShellSettings(width=128, num_layers=2),
            budget=Budget(steps=20_000, batch_size=20, evaluate_every=500, stop_at=0.999),
            learning_rates=(3e-4, 1e-3, 3e-3),
            num_seeds=5,
            cost_lengths=(1020,),
        ),
        # MAD's selective copying, as its code draws it.
        "mad": published_preset(length=256, num_tokens=16, vocab_size=16, placement="gaps"),
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
                f"{self.name}: data, question and answers need {options.shortest_length} tokens, not {length}"
            )
        rng = training_generator(rng, split, batch_size, options.num_train_sequences)
        num_tokens, blank, question = options.num_tokens, self.vocab_size - 2, self.vocab_size - 1
        data_BM = rng.integers(0, blank, (batch_size, num_tokens))
        inputs = np.full((batch_size, length), blank, dtype=np.int64)
        np.put_along_axis(inputs, self._places(rng, batch_size, length - num_tokens - 1), data_BM, axis=1)
        inputs[:, -num_tokens - 1] = question
        targets = np.full_like(inputs, IGNORED)
        targets[:, -num_tokens:] = data_BM
        return Batch(inputs, targets)

    def _places(self, rng: np.random.Generator, batch_size: int, num_places: int) -> IntArray:
        """Where the data stands, ascending; (batch, M)."""
        num_tokens = self.options.num_tokens
        match self.options.placement:
            case "together":
                return np.tile(np.arange(num_tokens), (batch_size, 1))
            case "gaps":
                num_blanks = num_places - num_tokens
                blanks_before_BM = rng.multinomial(num_blanks, np.full(num_tokens, 1 / num_tokens), batch_size)
                return np.cumsum(blanks_before_BM + 1, axis=1) - 1
        places: IntArray = rng.random((batch_size, num_places)).argpartition(num_tokens - 1, axis=1)[:, :num_tokens]
        return np.sort(places, axis=1)

    def oracle(self, batch: Batch) -> IntArray:
        answers = np.zeros_like(batch.inputs)
        is_data = batch.inputs < self.vocab_size - 2
        answers[:, -self.options.num_tokens :] = batch.inputs[is_data].reshape(len(answers), -1)
        return answers

    def baseline(self) -> float:
        return 1 / (self.vocab_size - 2)
