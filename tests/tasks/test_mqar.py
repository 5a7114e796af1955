"""MQAR against its definition, stated here a second time without looking at the generator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from suite.errors import UsageError
from suite.plugin import IGNORED
from tasks.mqar import MQAR


def _task(**settings: Any) -> MQAR:
    return MQAR(MQAR.Options.parse(settings, where="mqar"))


@given(
    num_pairs=st.integers(1, 6),
    spare=st.integers(0, 30),
    fills=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_every_key_is_asked_for_once_and_its_value_wanted(num_pairs: int, spare: int, fills: bool, seed: int) -> None:
    task = _task(length=4 * num_pairs + spare, num_pairs=num_pairs, vocab_size=20, fills_with_random_tokens=fills)
    batch = task.sample(np.random.default_rng(seed), split="train", batch_size=4, length=task.length)
    for inputs, targets in zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True):
        value_of = dict(zip(inputs[: 2 * num_pairs : 2], inputs[1 : 2 * num_pairs : 2], strict=True))
        assert len(value_of) == num_pairs == len(set(value_of.values()))
        assert all(1 <= key < 10 for key in value_of)
        assert all(10 <= value < 20 for value in value_of.values())
        asked = [(token, target) for token, target in zip(inputs, targets, strict=True) if target != IGNORED]
        assert sorted(asked) == sorted(value_of.items())
        assert targets[: 2 * num_pairs] == [IGNORED] * 2 * num_pairs
        if not fills:
            assert inputs.count(0) == len(inputs) - 3 * num_pairs


def test_keys_and_values_are_uniform() -> None:
    task = _task(length=16, num_pairs=4, vocab_size=20)
    batch = task.sample(np.random.default_rng(0), split="train", batch_size=10_000, length=16)
    assert chisquare(np.bincount(batch.inputs[:, 0:8:2].ravel())[1:10]).pvalue > 1e-3
    assert chisquare(np.bincount(batch.inputs[:, 1:8:2].ravel())[10:20]).pvalue > 1e-3


@pytest.mark.parametrize("exponent", [0.01, 1.0])
def test_the_gap_to_a_single_query_follows_the_power_law(exponent: float) -> None:
    task = _task(length=22, num_pairs=1, vocab_size=20, gap_exponent=exponent)
    batch = task.sample(np.random.default_rng(1), split="train", batch_size=20_000, length=22)
    slots = ((batch.targets != IGNORED).argmax(axis=1) - 2) // 2
    density = np.arange(1, 11) ** (exponent - 1)
    expected = 20_000 * density / density.sum()
    assert chisquare(np.bincount(slots, minlength=10), expected).pvalue > 1e-3


def test_queries_drawn_one_after_the_other_follow_the_law_of_the_second_draw() -> None:
    task = _task(length=12, num_pairs=2, vocab_size=20, gap_exponent=0.5)
    batch = task.sample(np.random.default_rng(2), split="train", batch_size=30_000, length=12)
    slots = np.sort(np.argwhere(batch.targets != IGNORED)[:, 1].reshape(-1, 2) - 4, axis=1) // 2
    chance = np.arange(1, 5) ** -0.5
    chance /= chance.sum()
    pairs = [(i, j) for i in range(4) for j in range(i + 1, 4)]
    expected = [chance[i] * chance[j] / (1 - chance[i]) + chance[j] * chance[i] / (1 - chance[j]) for i, j in pairs]
    seen = [int(((slots[:, 0] == i) & (slots[:, 1] == j)).sum()) for i, j in pairs]
    assert chisquare(seen, 30_000 * np.array(expected)).pvalue > 1e-3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"length": 15, "num_pairs": 4}, "length 15 has no room for num_pairs 4: pairs and queries need 16 tokens"),
        ({"length": 64, "num_pairs": 4, "test_lengths": [8]}, "length 8 has no room for num_pairs 4"),
        ({"vocab_size": 8, "num_pairs": 4}, "vocab_size 8 has 3 keys, too few for num_pairs 4"),
        ({"vocab_size": 9}, "multiple of 2"),
        ({"gap_exponent": 0}, "greater than 0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_the_reason(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        _task(**settings)
    assert message in str(caught.value)


def test_a_length_without_room_for_the_queries_is_refused() -> None:
    with pytest.raises(UsageError, match="4 pairs and their queries need 16 tokens, not 12"):
        _task().sample(np.random.default_rng(0), split="test", batch_size=1, length=12)
