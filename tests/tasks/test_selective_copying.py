"""Selective copying against its definition, stated here a second time without looking at the generator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from suite.errors import UsageError
from suite.plugin import IGNORED
from tasks.selective_copying import SelectiveCopying


def _task(**settings: Any) -> SelectiveCopying:
    return SelectiveCopying(SelectiveCopying.Options.parse(settings, where="selective_copying"))


@given(
    num_tokens=st.integers(1, 12),
    num_noise=st.integers(0, 40),
    vocab_size=st.integers(4, 20),
    batch_size=st.integers(1, 5),
    seed=st.integers(0, 2**32),
)
def test_what_is_not_noise_is_asked_for_in_order(
    num_tokens: int, num_noise: int, vocab_size: int, batch_size: int, seed: int
) -> None:
    task = _task(length=num_noise + num_tokens, num_tokens=num_tokens, vocab_size=vocab_size)
    rng = np.random.default_rng(seed)
    batch = task.sample(rng, split="train", batch_size=batch_size, length=task.length)
    marker = vocab_size - 1
    for inputs, targets in zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True):
        before, after = inputs[:-num_tokens], inputs[-num_tokens:]
        assert after == [marker] * num_tokens
        assert [token for token in before if token != 0] == targets[-num_tokens:]
        assert targets[:-num_tokens] == [IGNORED] * len(before)
        assert all(1 <= token < marker for token in targets[-num_tokens:])


def test_places_and_tokens_are_uniform() -> None:
    task = _task(length=20, num_tokens=5, vocab_size=9)
    batch = task.sample(np.random.default_rng(0), split="train", batch_size=20_000, length=task.length)
    is_data = (batch.inputs[:, :20] != 0).sum(axis=0)
    assert chisquare(is_data).pvalue > 1e-3
    assert chisquare(np.bincount(batch.targets[:, -5:].ravel())[1:8]).pvalue > 1e-3


def test_every_subset_of_places_is_equally_likely() -> None:
    task = _task(length=6, num_tokens=3, vocab_size=4)
    batch = task.sample(np.random.default_rng(1), split="train", batch_size=20_000, length=task.length)
    subsets = ((batch.inputs[:, :6] != 0) * 2 ** np.arange(6)).sum(axis=1)
    _, counts = np.unique(subsets, return_counts=True)
    assert len(counts) == 20
    assert chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize(("length_counts", "total"), [("noise", 4128), ("noise_and_data", 4112), ("everything", 4096)])
def test_the_published_length_can_be_read_in_three_ways(length_counts: str, total: int) -> None:
    task = _task(length=4096, num_tokens=16, vocab_size=16, length_counts=length_counts)
    assert task.length == total
    assert task.test_lengths == (total,)
    batch = task.sample(np.random.default_rng(0), split="train", batch_size=2, length=total)
    num_noise = {"noise": 4096, "noise_and_data": 4080, "everything": 4064}[length_counts]
    assert (batch.inputs == 0).sum(axis=1).tolist() == [num_noise, num_noise]


def test_test_lengths_are_in_the_unit_of_the_training_length() -> None:
    assert _task(length=48, num_tokens=4, test_lengths=[48, 96]).test_lengths == (52, 100)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"length": 3, "num_tokens": 4}, "length 3, which counts noise_and_data, leaves 3 places for num_tokens 4"),
        ({"length": 7, "num_tokens": 4, "length_counts": "everything"}, "leaves 3 places for num_tokens 4"),
        ({"test_lengths": [48, 2]}, "length 2, which counts noise_and_data, leaves 2 places for num_tokens 4"),
        ({"vocab_size": 3}, "vocab_size = 3: Input should be greater than or equal to 4"),
        ({"num_tokens": 0}, "num_tokens = 0: Input should be greater than or equal to 1"),
        ({"num_token": 4}, "Did you mean 'num_tokens'?"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_the_reason(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        _task(**settings)
    assert message in str(caught.value)


def test_a_length_without_room_for_the_tokens_is_refused() -> None:
    with pytest.raises(UsageError, match="at least 8 tokens, not 7"):
        _task().sample(np.random.default_rng(0), split="test", batch_size=1, length=7)


def test_as_many_tokens_as_places_leave_no_noise() -> None:
    task = _task(length=4, num_tokens=4)
    batch = task.sample(np.random.default_rng(0), split="train", batch_size=50, length=8)
    assert (batch.inputs[:, :4] == batch.targets[:, 4:]).all()
