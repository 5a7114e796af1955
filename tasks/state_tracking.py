"""State tracking: the running product of group elements (Merrill, Petty and Sabharwal 2024, arXiv:2404.08819).

    s_t = s_{t-1} g_t,   g_t drawn uniformly from a finite group G;   what is s_t?

`z2` is parity, `z60` addition modulo 60. The harder groups are permutations: `s3` and `s5` of three and five things,
`a5` the even ones of five. A5 and S5 are not solvable; by the paper's argument (under a common assumption on complexity
classes) a Transformer or a state space with diagonal updates, Mamba's included, needs depth that grows with the length
of their words. An RNN does not.
"""

# B batch, L length, G elements of the group

from __future__ import annotations

import functools
from itertools import pairwise, permutations
from typing import Literal

import numpy as np

from suite import IGNORED, Batch, Budget, Preset, Settings, ShellSettings, Split, Task
from suite.plugin import IntArray
from suite.spec import PositiveInt

Group = Literal["z2", "z3", "z5", "z60", "s3", "a5", "s5"]


class StateTracking(Task):
    """Follow a state through every step: parity, addition modulo n, and permutations of things.

    Tokens are the elements of the group, the identity first; the target at a position is the product of all up to it.
    """

    name = "state_tracking"

    class Options(Settings):
        group: Group = "z2"
        """The group: cyclic (z), symmetric (s) or alternating (a)."""
        length: PositiveInt = 16
        """Tokens of a training sequence."""
        test_lengths: tuple[PositiveInt, ...] = (16, 32, 64, 128)
        """Lengths at which the trained model is tested; `length` itself if empty."""
        scored: Literal["all", "last"] = "all"
        """Positions that are trained on and scored: every one, or the last alone."""

    presets = {
        "quick": Preset(
            shell=ShellSettings(width=32, num_layers=2),
            budget=Budget(steps=800, batch_size=32, warmup_steps=50, schedule="cosine", evaluate_every=100),
            learning_rates=(3e-3,),
            num_seeds=2,
            cost_lengths=(16,),
        ),
        "standard": Preset(
            settings={"group": "s3", "length": 32, "test_lengths": [2**power for power in range(5, 10)]},
            shell=ShellSettings(width=64, num_layers=2),
            budget=Budget(steps=20_000, batch_size=64, warmup_steps=200, evaluate_every=500, stop_at=0.999),
            learning_rates=(3e-4, 1e-3, 3e-3),
            max_extensions=2,
            num_seeds=5,
            cost_lengths=(32,),
        ),
        # The parity of the xLSTM code is trained at lengths up to 40 and tested up to 256.
        "paper": Preset(
            settings={"length": 40, "test_lengths": [40, 64, 128, 256]},
            shell=ShellSettings(width=64, num_layers=2),
            budget=Budget(steps=20_000, batch_size=256, warmup_steps=2000, weight_decay=0.1, evaluate_every=500),
            learning_rates=(1e-3,),
            num_seeds=5,
            cost_lengths=(40,),
            cost_batch_size=256,
        ),
    }

    @property
    def vocab_size(self) -> int:
        return len(multiplication_table(self.options.group))

    @property
    def length(self) -> int:
        return int(self.options.length)

    @property
    def test_lengths(self) -> tuple[int, ...]:
        return self.options.test_lengths or (self.length,)

    @property
    def slices(self) -> tuple[str, ...]:
        """Positions 1–4, 5–8, 9–16, …, where all are scored."""
        if self.options.scored == "last":
            return ()
        starts = [start + 1 for start in self._slice_starts]
        names = [f"positions {start}–{following - 1}" for start, following in pairwise(starts)]
        return (*names, f"positions from {starts[-1]}")

    @property
    def _slice_starts(self) -> list[int]:
        """0, 4, 8, 16, …: where the slices begin."""
        longest = max(self.length, *self.test_lengths)
        return [0, *(2**power for power in range(2, (longest - 1).bit_length()))]

    def sample(self, rng: np.random.Generator, *, split: Split, batch_size: int, length: int) -> Batch:
        inputs = rng.integers(0, self.vocab_size, (batch_size, length))
        targets = self._products(inputs)
        if self.options.scored == "last":
            targets[:, :-1] = IGNORED
        slices = np.searchsorted(self._slice_starts, np.arange(length), side="right") - 1
        return Batch(inputs, targets, slices[np.newaxis])

    def oracle(self, batch: Batch) -> IntArray:
        return self._products(batch.inputs)

    def baseline(self) -> float:
        return 1 / self.vocab_size

    def _products(self, words_BL: IntArray) -> IntArray:
        """s_t for every t."""
        table_GG = multiplication_table(self.options.group)
        products_BL = words_BL.copy()
        for t in range(1, words_BL.shape[1]):
            products_BL[:, t] = table_GG[products_BL[:, t - 1], words_BL[:, t]]
        return products_BL


@functools.cache
def multiplication_table(group: Group) -> IntArray:
    """(elements, elements): which element the product of two is. Element 0 is the identity.

    Permutations are in lexicographic order; the product `g h` does h first.
    """
    size = int(group[1:])
    if group.startswith("z"):
        return np.add.outer(np.arange(size), np.arange(size)) % size
    elements = [p for p in permutations(range(size)) if group.startswith("s") or _is_even(p)]
    number = {element: i for i, element in enumerate(elements)}
    products = [[number[tuple(g[h[x]] for x in range(size))] for h in elements] for g in elements]
    return np.array(products, dtype=np.int64)


def _is_even(permutation: tuple[int, ...]) -> bool:
    num_inversions = sum(a > b for i, a in enumerate(permutation) for b in permutation[i + 1 :])
    return num_inversions % 2 == 0
