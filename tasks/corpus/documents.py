"""Documents as bytes, and windows drawn from them."""

# W windows, L bytes of a window

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from suite.errors import UsageError
from suite.plugin import IntArray, Split

SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class Documents:
    """Texts end to end in one array, each at least two bytes long (something to read and something to predict)."""

    text: npt.NDArray[np.uint8]
    starts: IntArray
    """Where each document begins in `text`."""
    sizes: IntArray
    """Bytes of each document."""

    @classmethod
    def of(cls, texts: Iterable[bytes]) -> Self:
        """Texts shorter than two bytes are left out."""
        kept = [text for text in texts if len(text) >= 2]
        sizes = np.array([len(text) for text in kept], dtype=np.int64)
        return cls(np.frombuffer(b"".join(kept), dtype=np.uint8), np.cumsum(sizes) - sizes, sizes)

    def __len__(self) -> int:
        return len(self.sizes)

    def windows(
        self, rng: np.random.Generator, num_windows: int, size: int, *, skip_short: bool
    ) -> tuple[IntArray, npt.NDArray[np.bool_]]:
        """Random stretches of `size` bytes, and which of their bytes are text; both (num_windows, size).

        A document is drawn in proportion to its bytes, then a window within it. A document shorter than the window is
        taken whole and filled up with zeros, or, with `skip_short`, never taken.

        Raises:
            UsageError: with `skip_short`, if no document is as long as a window.
        """
        candidates = np.flatnonzero(self.sizes >= size) if skip_short else np.arange(len(self))
        if not len(candidates):
            raise UsageError(
                f"No document has {size:,} bytes; the longest of {len(self):,} has {self.sizes.max():,}. "
                f"Ask for a shorter length, or pad short documents"
            )
        ends = np.cumsum(self.sizes[candidates])
        drawn_W = candidates[np.searchsorted(ends, rng.integers(0, ends[-1], num_windows), side="right")]
        offsets_W = rng.integers(0, np.maximum(self.sizes[drawn_W] - size, 0) + 1)
        in_document_WL = offsets_W[:, np.newaxis] + np.arange(size)
        is_text_WL = in_document_WL < self.sizes[drawn_W, np.newaxis]
        in_corpus_WL = np.where(is_text_WL, self.starts[drawn_W, np.newaxis] + in_document_WL, 0)
        return np.where(is_text_WL, self.text[in_corpus_WL], 0).astype(np.int64), is_text_WL


Corpus = Mapping[Split, Documents]
"""The documents of each split. No document is in two splits."""
