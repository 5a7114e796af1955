"""The adding problem and the delay against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from suite.errors import UsageError
from suite.plugin import IGNORED
from tasks.adding import Adding
from tasks.delay import Delay


@given(length=st.integers(2, 40), num_numbers=st.integers(2, 12), seed=st.integers(0, 2**32))
def test_one_number_of_each_half_is_marked_and_their_sum_wanted(length: int, num_numbers: int, seed: int) -> None:
    task = Adding(Adding.Options(length=length, num_numbers=num_numbers))
    batch = task.sample(np.random.default_rng(seed), split="train", batch_size=4, length=length)
    for inputs, targets in zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True):
        marked = [position for position, token in enumerate(inputs) if token >= num_numbers]
        first, second = marked
        assert first < length // 2 <= second
        assert targets == [IGNORED] * (length - 1) + [inputs[first] + inputs[second] - 2 * num_numbers]


def test_numbers_are_uniform_and_so_are_the_marked_places() -> None:
    task = Adding(Adding.Options(length=11, num_numbers=4))
    batch = task.sample(np.random.default_rng(0), split="train", batch_size=10_000, length=11)
    assert chisquare(np.bincount(batch.inputs.ravel() % 4)).pvalue > 1e-3
    num_marked = (batch.inputs >= 4).sum(axis=0)
    for half in (num_marked[:5], num_marked[5:]):
        assert chisquare(half).pvalue > 1e-3
    sums = np.bincount(batch.targets[:, -1])
    assert chisquare(sums, 10_000 * np.array([1, 2, 3, 4, 3, 2, 1]) / 16).pvalue > 1e-3


@given(length=st.integers(2, 40), seed=st.integers(0, 2**32), data=st.data())
def test_the_answer_stood_so_many_steps_ago(length: int, seed: int, data: st.DataObject) -> None:
    steps = data.draw(st.integers(1, length - 1))
    task = Delay(Delay.Options(length=length, steps=steps))
    batch = task.sample(np.random.default_rng(seed), split="train", batch_size=3, length=length)
    for inputs, targets in zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True):
        assert targets == [IGNORED] * steps + inputs[: length - steps]


def test_delayed_tokens_are_uniform() -> None:
    batch = Delay().sample(np.random.default_rng(0), split="train", batch_size=300, length=64)
    assert chisquare(np.bincount(batch.inputs.ravel())).pvalue > 1e-3


def test_sizes_that_do_not_fit_are_refused_with_the_reason() -> None:
    with pytest.raises(UsageError, match="length 8 is over before steps 8 have passed"):
        Delay.Options.parse({"length": 8}, where="delay")
    with pytest.raises(UsageError, match="a delay of 8 needs more than 8 tokens"):
        Delay().sample(np.random.default_rng(0), split="test", batch_size=1, length=8)
    with pytest.raises(UsageError, match="num_numbers = 1"):
        Adding.Options.parse({"num_numbers": 1}, where="adding")
    with pytest.raises(UsageError, match="at least 2 tokens, not 1"):
        Adding().sample(np.random.default_rng(0), split="test", batch_size=1, length=1)
