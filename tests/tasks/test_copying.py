"""Copying against its definition, stated here a second time without looking at the generator."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare, multinomial

from suite.errors import UsageError
from suite.plugin import IGNORED
from tasks.copying import Copying


def _task(**settings: Any) -> Copying:
    return Copying(Copying.Options.parse(settings, where="copying"))


@given(
    num_tokens=st.integers(1, 8),
    num_blanks=st.integers(0, 30),
    placement=st.sampled_from(["together", "gaps", "anywhere"]),
    seed=st.integers(0, 2**32),
)
def test_the_data_is_asked_for_in_order(num_tokens: int, num_blanks: int, placement: str, seed: int) -> None:
    task = _task(length=2 * num_tokens + 1 + num_blanks, num_tokens=num_tokens, vocab_size=9, placement=placement)
    batch = task.sample(np.random.default_rng(seed), split="train", batch_size=4, length=task.length)
    for inputs, targets in zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True):
        before, question, after = inputs[: -num_tokens - 1], inputs[-num_tokens - 1], inputs[-num_tokens:]
        assert question == 8
        assert after == [7] * num_tokens
        data = [token for token in before if token < 7]
        assert targets == [IGNORED] * (len(before) + 1) + data
        if placement == "together":
            assert before[:num_tokens] == data
        if placement == "gaps":
            assert before[-1] < 7


def _shares_of_places(placement: str) -> dict[tuple[int, ...], float]:
    task = _task(length=11, num_tokens=3, vocab_size=4, placement=placement)
    batch = task.sample(np.random.default_rng(0), split="train", batch_size=20_000, length=11)
    places = np.argwhere(batch.inputs[:, :7] < 2)[:, 1].reshape(-1, 3)
    found, counts = np.unique(places, axis=0, return_counts=True)
    return {tuple(key): int(count) for key, count in zip(found.tolist(), counts, strict=True)}


def test_anywhere_means_that_every_set_of_places_is_equally_likely() -> None:
    counts = _shares_of_places("anywhere")
    assert set(counts) == set(combinations(range(7), 3))
    assert chisquare(list(counts.values())).pvalue > 1e-3


def test_in_gaps_the_blanks_are_spread_as_if_each_chose_a_token_to_stand_before() -> None:
    counts = _shares_of_places("gaps")
    blanks = {places: np.diff([-1, *places]) - 1 for places in counts}
    expected = [20_000 * multinomial.pmf(blanks[places], 4, [1 / 3] * 3) for places in counts]
    assert chisquare(list(counts.values()), expected).pvalue > 1e-3


def test_data_is_uniform() -> None:
    batch = _task().sample(np.random.default_rng(0), split="train", batch_size=4000, length=48)
    assert chisquare(np.bincount(batch.inputs[:, :5].ravel())).pvalue > 1e-3


def test_sizes_that_do_not_fit_are_refused_with_the_reason() -> None:
    with pytest.raises(UsageError, match=r"length 10 has no room for num_tokens 5: .* need 11 tokens"):
        _task(length=10)
    with pytest.raises(UsageError, match="need 11 tokens, not 9"):
        _task().sample(np.random.default_rng(0), split="test", batch_size=1, length=9)
