"""Induction heads: recall what followed the trigger, at any length (Gu & Dao 2023, arXiv:2312.00752, §4.1.2).

The generator is the published one of the safari code (Fu et al. 2022, arXiv:2212.14052), with one earlier trigger: a
sequence of L tokens is random but for its last token, the trigger, and the trigger takes the place of one more token,
at a position drawn uniformly from 0 … L - 4. The token after it is the answer. So the answer stands at L - 3 at the
latest, and the token at L - 2 is never the answer.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from suite import IGNORED, Batch, Budget, Preset, Settings, ShellSettings, Split, Task
from suite.errors import UsageError
from suite.plugin import IntArray

MIN_LENGTH = 4
"""The trigger, its answer, a token between, the trigger."""

_Length = Annotated[int, Field(ge=MIN_LENGTH)]


class InductionHeads(Task):
    """Say the token that once followed the trigger, when the trigger comes again at the end.

    Scored is the last position alone. Trained at one length and tested at many.
    """

    name = "induction_heads"

    class Options(Settings):
        length: _Length = 32
        """Tokens of a training sequence, both triggers included."""
        vocab_size: Annotated[int, Field(ge=3)] = 12
        """Tokens in all, the trigger included."""
        test_lengths: tuple[_Length, ...] = (32, 64, 128, 256, 512)
        """Lengths at which the trained model is tested; `length` itself if empty."""
        has_unused_token: bool = False
        """The published vocabulary holds one more special token, which never occurs and leaves one symbol fewer."""
        train_on: Literal["answer", "all"] = "answer"
        """`all` trains on the next token at every position, as the published generator does; the paper's curves were
        not reproduced that way. Validation and test score the answer alone in either case."""
        train_query: Literal["last", "anywhere"] = "last"
        """Where the trigger comes again in training: at the last position, as in the published generator, or at any,
        which trains on all shorter lengths at once. In validation and test it is always the last."""

        @model_validator(mode="after")
        def _answers_differ(self) -> Self:
            if self.num_symbols < 2:
                raise ValueError(f"vocab_size {self.vocab_size} leaves no two symbols beside the special tokens")
            return self

        @property
        def num_symbols(self) -> int:
            """Tokens that can be an answer."""
            return self.vocab_size - (2 if self.has_unused_token else 1)

    presets = {
        "quick": Preset(
            settings={"length": 32, "vocab_size": 8, "test_lengths": [2**power for power in range(4, 10)]},
            shell=ShellSettings(width=32, num_layers=2),
            budget=Budget(steps=700, batch_size=32, warmup_steps=50, schedule="cosine", evaluate_every=100),
            learning_rates=(3e-3,),
            num_seeds=2,
            cost_lengths=(32,),
        ),
        "standard": Preset(
            settings={"length": 128, "vocab_size": 16, "test_lengths": [2**power for power in range(6, 13)]},
            budget=Budget(steps=20_000, batch_size=32, warmup_steps=200, evaluate_every=500, stop_at=0.999),
            learning_rates=(3e-4, 1e-3, 3e-3),
            max_extensions=2,
            num_seeds=5,
            cost_lengths=(128, 1024, 4096),
        ),
        "paper": Preset(
            settings={
                "length": 256,
                "vocab_size": 16,
                "has_unused_token": True,
                "test_lengths": [2**power for power in range(6, 21)],
            },
            shell=ShellSettings(width=64, num_layers=2),
            # 25 of the paper's epochs of 8192 steps, at which it reports Mamba and absolute attention.
            budget=Budget(steps=25 * 8192, batch_size=8, evaluate_every=8192, validation_batches=32, test_batches=32),
            learning_rates=(2e-4, 1e-3),
            cost_lengths=(256,),
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
        if length < MIN_LENGTH:
            raise UsageError(f"{self.name}: a sequence needs at least {MIN_LENGTH} tokens, not {length}")
        trigger = self.options.num_symbols
        rows = np.arange(batch_size)
        inputs = rng.integers(0, trigger, (batch_size, length))
        query_at = np.full(batch_size, length - 1)
        if split == "train" and self.options.train_query == "anywhere":
            query_at = rng.integers(MIN_LENGTH - 1, length, batch_size)
        trigger_at = rng.integers(0, query_at - 2)
        inputs[rows, trigger_at] = trigger
        inputs[rows, query_at] = trigger
        targets = np.full_like(inputs, IGNORED)
        if split == "train" and self.options.train_on == "all":
            targets[:, :-1] = inputs[:, 1:]
        targets[rows, query_at] = inputs[rows, trigger_at + 1]
        return Batch(inputs, targets)

    def oracle(self, batch: Batch) -> IntArray | None:
        if self.options.train_on == "all":
            return None
        is_trigger = batch.inputs == self.options.num_symbols
        after_first = batch.inputs[np.arange(len(is_trigger)), is_trigger.argmax(axis=1) + 1]
        return np.where(is_trigger, after_first[:, None], 0)

    def baseline(self) -> float:
        return 1 / float(self.options.num_symbols)
