"""Compression: every place is asked for once, and all orders are equally likely."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import chisquare

from suite.errors import UsageError
from suite.plugin import IGNORED
from tasks.compression import Compression


def test_every_place_is_asked_for_once_and_its_token_wanted() -> None:
    task = Compression(Compression.Options(length=6, vocab_size=4))
    batch = task.sample(np.random.default_rng(0), split="train", batch_size=50, length=11)
    for inputs, targets in zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True):
        held, end, places = inputs[:5], inputs[5], [token - 4 for token in inputs[6:]]
        assert all(0 <= token < 3 for token in held)
        assert end == 3
        assert sorted(places) == [0, 1, 2, 3, 4]
        assert targets == [IGNORED] * 6 + [held[place] for place in places]


def test_tokens_and_orders_are_uniform() -> None:
    task = Compression(Compression.Options(length=4, vocab_size=6))
    batch = task.sample(np.random.default_rng(1), split="train", batch_size=6000, length=7)
    assert chisquare(np.bincount(batch.inputs[:, :3].ravel())).pvalue > 1e-3
    _, counts = np.unique(batch.inputs[:, 4:], axis=0, return_counts=True)
    assert len(counts) == 6
    assert chisquare(counts).pvalue > 1e-3


def test_a_length_that_the_task_does_not_have_is_refused_with_the_setting_that_changes_it() -> None:
    with pytest.raises(UsageError, match=r"come to 63 tokens, not 64; set compression\.length"):
        Compression().sample(np.random.default_rng(0), split="test", batch_size=1, length=64)
