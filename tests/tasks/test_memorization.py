"""Memorization: the facts are a bijection that never changes."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import chisquare

from suite.errors import UsageError
from suite.plugin import IGNORED
from tasks.memorization import Memorization


def _facts(task: Memorization, seed: int = 0) -> dict[int, int]:
    """What the sequences say, which must not contradict each other."""
    batch = task.sample(np.random.default_rng(seed), split="train", batch_size=500, length=task.length)
    facts: dict[int, int] = {}
    assert (batch.targets[:, 0::2] == IGNORED).all()
    assert (batch.inputs[:, 1::2] == task.vocab_size - 1).all()
    for key, value in zip(batch.inputs[:, 0::2].flat, batch.targets[:, 1::2].flat, strict=True):
        assert facts.setdefault(int(key), int(value)) == value
    return facts


def test_every_sequence_tells_the_same_facts_and_no_two_keys_share_a_value() -> None:
    task = Memorization(Memorization.Options(vocab_size=20))
    facts = _facts(task)
    assert facts == _facts(task, seed=1)
    assert sorted(facts) == list(range(9))
    assert len(set(facts.values())) == 9
    assert set(facts.values()) <= set(range(9, 19))


def test_another_seed_of_the_facts_gives_other_facts() -> None:
    assert _facts(Memorization()) != _facts(Memorization(Memorization.Options(facts_seed=1)))


def test_keys_are_uniform() -> None:
    task = Memorization(Memorization.Options(vocab_size=20))
    batch = task.sample(np.random.default_rng(0), split="train", batch_size=2000, length=32)
    assert chisquare(np.bincount(batch.inputs[:, 0::2].ravel())).pvalue > 1e-3


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match="length = 3: Input should be a multiple of 2"):
        Memorization.Options.parse({"length": 3}, where="memorization")
    with pytest.raises(UsageError, match="keys and blanks come to 2, 4, 6, … tokens, not 5"):
        Memorization().sample(np.random.default_rng(0), split="test", batch_size=1, length=5)
