"""Training sets of a limited size, for tasks whose published data are, and to see how a model does with little data."""

from __future__ import annotations

import numpy as np

from suite import Split


def training_generator(
    rng: np.random.Generator, split: Split, batch_size: int, num_train_sequences: int | None
) -> np.random.Generator:
    """The generator to draw a batch from, where there are only so many sequences to train on; None: `rng` itself.

    The training set comes in fixed batches, of which each step draws one; it is the same for all seeds.
    """
    if split != "train" or num_train_sequences is None:
        return rng
    which = int(rng.integers(0, max(1, num_train_sequences // batch_size)))
    return np.random.Generator(np.random.Philox(key=which))
