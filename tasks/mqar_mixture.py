"""MQAR of several sizes at once: trained on a mixture, tested size by size (Arora et al. 2024, arXiv:2402.18668).

One model is trained on sequences of several lengths with several numbers of pairs, and tested on those and on longer
ones with more pairs, so that a single training shows how many pairs it can recall. Each sequence is one of `mqar`; the
shorter ones are padded at their end. The published models have a short convolution before every mixer; here it is a
matter of the block.
"""

from __future__ import annotations

from typing import Annotated, Self

import numpy as np
from pydantic import Field, model_validator

from suite import IGNORED, Batch, Budget, Preset, Settings, ShellSettings, Split, Task
from suite.errors import UsageError
from suite.plugin import IntArray
from suite.spec import PositiveFloat, PositiveInt
from tasks.mad import first_occurrences
from tasks.mqar import MQAR, PADDING

Size = tuple[PositiveInt, PositiveInt]
"""Length in tokens, pairs."""


class MQARMixture(Task):
    """Say the value of every key that comes again, trained on sequences of several sizes and tested on each.

    Tokens are those of `mqar`. A batch to train on mixes all sizes; a test at a length draws evenly among the sizes of
    that length.
    """

    name = "mqar_mixture"

    class Options(Settings):
        train_sizes: Annotated[tuple[Size, ...], Field(min_length=1)] = ((64, 4), (128, 8))
        """Lengths and pairs that are trained on."""
        train_weights: tuple[PositiveFloat, ...] = ()
        """How often each of `train_sizes` is drawn, in proportion; all evenly if empty."""
        test_sizes: Annotated[tuple[Size, ...], Field(min_length=1)] = ((64, 4), (128, 8), (256, 16))
        """Lengths and pairs that are tested."""
        vocab_size: Annotated[int, Field(ge=6, multiple_of=2)] = 8192
        """Tokens in all."""
        gap_exponent: PositiveFloat = 0.01
        """As in `mqar`."""
        fills_with_random_tokens: bool = True
        """As in `mqar`."""

        @model_validator(mode="after")
        def _sizes_fit(self) -> Self:
            if self.train_weights and len(self.train_weights) != len(self.train_sizes):
                raise ValueError(
                    f"train_weights has {len(self.train_weights)} numbers for {len(self.train_sizes)} train_sizes"
                )
            for size in (*self.train_sizes, *self.test_sizes):
                self.of_size(size)
            return self

        def of_size(self, size: Size) -> MQAR:
            """The task whose sequences have one size. Raises UsageError if there are none."""
            length, num_pairs = size
            settings = self.model_dump(include={"vocab_size", "gap_exponent", "fills_with_random_tokens"})
            return MQAR(MQAR.Options.parse(settings | {"length": length, "num_pairs": num_pairs}, where="mqar_mixture"))

    presets = {
        "quick": Preset(
            settings={
                "train_sizes": [[16, 2], [24, 4]],
                "test_sizes": [[16, 2], [24, 2], [24, 4], [48, 8]],
                "vocab_size": 32,
            },
            shell=ShellSettings(width=32, num_layers=2),
            budget=Budget(steps=1500, batch_size=32, warmup_steps=50, schedule="cosine", evaluate_every=100),
            learning_rates=(3e-3,),
            num_seeds=2,
            cost_lengths=(24,),
        ),
        "standard": Preset(
            settings={
                "train_sizes": [[64, 4], [64, 8], [128, 16], [128, 32]],
                "test_sizes": [[64, 4], [64, 8], [128, 16], [128, 32], [256, 64]],
                "vocab_size": 1024,
            },
            shell=ShellSettings(width=128, num_layers=2),
            budget=Budget(steps=20_000, batch_size=64, warmup_steps=200, evaluate_every=500, stop_at=0.999),
            learning_rates=(3e-4, 1e-3, 3e-3),
            max_extensions=2,
            num_seeds=5,
            cost_lengths=(128,),
        ),
        # 32 epochs of 180,000 sequences, drawn fresh here.
        "paper": Preset(
            settings={
                "train_sizes": [[64, 4], [128, 8], [256, 16], [256, 32], [256, 64]],
                "train_weights": [5.0, 1.0, 1.0, 1.0, 1.0],
                "test_sizes": [[64, 4], [64, 8], [64, 16], [128, 32], [256, 64], [512, 128], [1024, 256]],
            },
            shell=ShellSettings(width=128, num_layers=2),
            budget=Budget(steps=22_500, batch_size=256, schedule="cosine", evaluate_every=500),
            learning_rates=(1e-3, 3.2e-3, 1e-2, 3.2e-2),
            cost_lengths=(256,),
            cost_batch_size=256,
        ),
    }

    @property
    def vocab_size(self) -> int:
        return int(self.options.vocab_size)

    @property
    def length(self) -> int:
        return int(max(length for length, _ in self.options.train_sizes))

    @property
    def test_lengths(self) -> tuple[int, ...]:
        return tuple(sorted({length for length, _ in self.options.test_sizes}))

    @property
    def slices(self) -> tuple[str, ...]:
        """By size."""
        return tuple(f"{num_pairs} pairs in {length}" for length, num_pairs in self._sizes)

    @property
    def _sizes(self) -> list[Size]:
        return sorted({*self.options.train_sizes, *self.options.test_sizes})

    def sample(self, rng: np.random.Generator, *, split: Split, batch_size: int, length: int) -> Batch:
        sizes, weights = self._drawn_sizes(split, length)
        inputs = np.full((batch_size, length), PADDING, dtype=np.int64)
        targets = np.full_like(inputs, IGNORED)
        slices = np.empty((batch_size, 1), dtype=np.int64)
        end = 0
        for size, num_rows in zip(sizes, rng.multinomial(batch_size, weights), strict=True):
            start, end = end, end + num_rows
            of_size = self.options.of_size(size).sample(rng, split=split, batch_size=num_rows, length=size[0])
            inputs[start:end, : size[0]] = of_size.inputs
            targets[start:end, : size[0]] = of_size.targets
            slices[start:end] = self._sizes.index(size)
        return Batch(inputs, targets, slices)

    def _drawn_sizes(self, split: Split, length: int) -> tuple[list[Size], list[float]]:
        """The sizes that a batch is drawn from, and the chance of each."""
        options = self.options
        tested = [size for size in options.test_sizes if size[0] == length]
        if split == "test" and tested:
            return tested, [1 / len(tested)] * len(tested)
        weights = options.train_weights or (1.0,) * len(options.train_sizes)
        trained = {size: weight for size, weight in zip(options.train_sizes, weights, strict=True) if size[0] <= length}
        if not trained:
            shortest = min(size[0] for size in options.train_sizes)
            raise UsageError(f"{self.name}: the shortest of train_sizes has {shortest} tokens, more than {length}")
        return list(trained), [weight / sum(trained.values()) for weight in trained.values()]

    def oracle(self, batch: Batch) -> IntArray:
        # Wherever a key stands first, its value stands next.
        values = np.minimum(first_occurrences(batch.inputs) + 1, batch.inputs.shape[1] - 1)
        return np.take_along_axis(batch.inputs, values, axis=1)

    def baseline(self) -> float:
        return 2 / self.vocab_size
