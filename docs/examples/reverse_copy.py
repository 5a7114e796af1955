"""A task in one file. Check it with `suite check`, then run it with `suite run --plugin`."""

from __future__ import annotations

import numpy as np

from suite import IGNORED, Batch, Budget, Preset, Settings, Split, Task

ASK = 0


class ReverseCopy(Task):
    """Read a few symbols, then say them backwards."""

    name = "reverse_copy"

    class Options(Settings):
        num_read: int = 5
        """Symbols to read; as many answers follow."""
        num_symbols: int = 8

    presets = {"quick": Preset(budget=Budget(steps=1500, evaluate_every=50, stop_at=0.99))}

    @property
    def vocab_size(self) -> int:
        return 1 + int(self.options.num_symbols)

    @property
    def length(self) -> int:
        return 2 * int(self.options.num_read)

    def sample(self, rng: np.random.Generator, *, split: Split, batch_size: int, length: int) -> Batch:
        num_read = length // 2
        read = rng.integers(1, self.vocab_size, (batch_size, num_read))
        inputs = np.full((batch_size, length), ASK)
        inputs[:, :num_read] = read
        targets = np.full_like(inputs, IGNORED)
        targets[:, length - num_read :] = read[:, ::-1]
        return Batch(inputs, targets)

    def oracle(self, batch: Batch) -> np.ndarray:
        return batch.inputs[:, ::-1]

    def baseline(self) -> float:
        return 1 / float(self.options.num_symbols)
