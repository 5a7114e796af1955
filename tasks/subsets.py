"""Random choices without repetition, many at a time."""

from __future__ import annotations

import numpy as np

from suite.plugin import IntArray


def random_subsets(rng: np.random.Generator, num_rows: int, size: int, population: int) -> IntArray:
    """In each row a random `size` of the numbers below `population`, ascending; all subsets are equally likely."""
    # Floyd's algorithm on all rows at once: its cost does not grow with the population.
    largest = np.arange(population - size, population)
    candidates = rng.integers(0, largest + 1, (num_rows, size))
    subsets = np.empty((num_rows, size), dtype=np.int64)
    for column in range(size):
        candidate = candidates[:, column]
        is_taken = (subsets[:, :column] == candidate[:, np.newaxis]).any(axis=1)
        subsets[:, column] = np.where(is_taken, largest[column], candidate)
    return np.sort(subsets, axis=1)


def random_arrangements(rng: np.random.Generator, num_rows: int, size: int, population: int) -> IntArray:
    """In each row a random `size` of the numbers below `population`, in random order."""
    return rng.permuted(random_subsets(rng, num_rows, size, population), axis=1)
