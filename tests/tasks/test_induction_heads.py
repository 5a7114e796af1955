"""Induction heads against its definition, stated here a second time without looking at the generator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from suite.errors import UsageError
from suite.plugin import IGNORED
from tasks.induction_heads import InductionHeads


def _task(**settings: Any) -> InductionHeads:
    return InductionHeads(InductionHeads.Options.parse(settings, where="induction_heads"))


@given(
    length=st.integers(4, 70), vocab_size=st.integers(4, 20), has_unused_token=st.booleans(), seed=st.integers(0, 2**32)
)
def test_the_answer_follows_the_only_earlier_trigger(
    length: int, vocab_size: int, has_unused_token: bool, seed: int
) -> None:
    task = _task(length=length, vocab_size=vocab_size, has_unused_token=has_unused_token)
    num_symbols = vocab_size - 2 if has_unused_token else vocab_size - 1
    batch = task.sample(np.random.default_rng(seed), split="train", batch_size=3, length=length)
    for inputs, targets in zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True):
        trigger = inputs[-1]
        assert inputs.count(trigger) == 2
        assert targets[:-1] == [IGNORED] * (length - 1)
        assert targets[-1] == inputs[inputs.index(trigger) + 1]
        assert all(token < num_symbols for token in inputs if token != trigger)


def test_the_trigger_stands_anywhere_but_in_the_last_places() -> None:
    task = _task(length=12, vocab_size=8)
    batch = task.sample(np.random.default_rng(0), split="train", batch_size=20_000, length=12)
    places = np.bincount((batch.inputs[:, :-1] == batch.inputs[0, -1]).argmax(axis=1), minlength=12)
    assert places[9:].sum() == 0, "the published generator draws from 0 … L - 4"
    assert chisquare(places[:9]).pvalue > 1e-3
    assert chisquare(np.bincount(batch.targets[:, -1])).pvalue > 1e-3


def test_training_on_all_positions_leaves_the_test_as_it_is() -> None:
    task = _task(train_on="all")
    train, test = (
        task.sample(np.random.default_rng(3), split=split, batch_size=4, length=64)  # type: ignore[arg-type]
        for split in ("train", "test")
    )
    assert (train.inputs == test.inputs).all()
    assert (train.targets[:, :-1] == train.inputs[:, 1:]).all()
    assert (train.targets[:, -1] == test.targets[:, -1]).all()
    assert (test.targets[:, :-1] == IGNORED).all()
    assert task.oracle(train) is None, "random tokens cannot be foretold"


@pytest.mark.parametrize("train_on", ["answer", "all"])
def test_asked_anywhere_training_holds_every_shorter_length(train_on: str) -> None:
    length, size = 12, 20_000
    task = _task(train_query="anywhere", train_on=train_on, length=length, vocab_size=8)
    batch = task.sample(np.random.default_rng(0), split="train", batch_size=size, length=length)
    is_trigger = batch.inputs == 7
    assert (is_trigger.sum(axis=1) == 2).all()
    first, query = np.nonzero(is_trigger)[1].reshape(size, 2).T
    assert chisquare(np.bincount(query, minlength=length)[3:]).pvalue > 1e-3
    assert chisquare(np.bincount(first[query == 8])).pvalue > 1e-3, "0 … 5, as in a sequence of nine tokens"
    rows = np.arange(size)
    assert (batch.targets[rows, query] == batch.inputs[rows, first + 1]).all()
    if train_on == "answer":
        assert ((batch.targets != IGNORED).sum(axis=1) == 1).all()
    test = task.sample(np.random.default_rng(0), split="test", batch_size=9, length=length)
    assert (test.inputs[:, -1] == 7).all()


def test_the_paper_is_tested_at_every_power_of_two_to_a_million() -> None:
    task = _task(**InductionHeads.presets["paper"].settings)
    assert task.test_lengths == tuple(2**power for power in range(6, 21))
    assert task.baseline() == pytest.approx(1 / 14)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"length": 3}, "induction_heads.length = 3: Input should be greater than or equal to 4"),
        ({"test_lengths": [64, 2]}, "induction_heads.test_lengths.1 = 2: Input should be greater than or equal to 4"),
        ({"vocab_size": 2}, "induction_heads.vocab_size = 2"),
        ({"vocab_size": 3, "has_unused_token": True}, "vocab_size 3 leaves no two symbols beside the special tokens"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_the_reason(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        _task(**settings)
    assert message in str(caught.value)


def test_a_length_without_room_for_the_triggers_is_refused() -> None:
    with pytest.raises(UsageError, match="at least 4 tokens, not 3"):
        _task().sample(np.random.default_rng(0), split="test", batch_size=1, length=3)
