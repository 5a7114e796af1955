"""The mixture against its definition: each sequence is one of MQAR, of a size that belongs there, in its share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import chisquare

from suite.errors import UsageError
from suite.plugin import IGNORED
from tasks.mqar_mixture import MQARMixture


def _task(**settings: Any) -> MQARMixture:
    return MQARMixture(MQARMixture.Options.parse({"vocab_size": 64, **settings}, where="mqar_mixture"))


_SIZES = {"train_sizes": [[8, 1], [12, 3]], "test_sizes": [[12, 2], [12, 3], [24, 5]]}


@pytest.mark.parametrize(
    ("split", "length", "sizes"),
    [
        ("train", 12, {(8, 1), (12, 3)}),
        ("validation", 12, {(8, 1), (12, 3)}),
        ("test", 12, {(12, 2), (12, 3)}),
        ("test", 24, {(24, 5)}),
        ("train", 11, {(8, 1)}),
    ],
)
@pytest.mark.parametrize("fills", [False, True])
def test_every_sequence_has_a_size_that_belongs_there(split: Any, length: int, sizes: set[Any], fills: bool) -> None:
    task = _task(**_SIZES, fills_with_random_tokens=fills)
    batch = task.sample(np.random.default_rng(0), split=split, batch_size=40, length=length)
    assert batch.slices is not None
    seen = set()
    for inputs, targets, at in zip(batch.inputs.tolist(), batch.targets.tolist(), batch.slices[:, 0], strict=True):
        num_pairs, size = (int(number) for number in task.slices[at].split(" pairs in "))
        seen.add((size, num_pairs))
        assert inputs[size:] == [0] * (length - size)
        value_of = dict(zip(inputs[: 2 * num_pairs : 2], inputs[1 : 2 * num_pairs : 2], strict=True))
        asked = [(token, target) for token, target in zip(inputs, targets, strict=True) if target != IGNORED]
        assert sorted(asked) == sorted(value_of.items())
        assert len(asked) == num_pairs
    assert seen == sizes


def test_sizes_are_drawn_by_their_weights_in_training_and_evenly_in_the_test() -> None:
    task = _task(**_SIZES, train_weights=[3.0, 1.0])
    for split, expected in (("train", [750, 250]), ("test", [500, 500])):
        batch = task.sample(np.random.default_rng(0), split=split, batch_size=1000, length=12)
        assert batch.slices is not None
        counts = np.bincount(batch.slices[:, 0])
        assert chisquare(counts[counts > 0], expected).pvalue > 1e-3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_sizes": [[8, 3]]}, "length 8 has no room for num_pairs 3"),
        ({"test_sizes": [[400, 40]]}, "vocab_size 64 has 31 keys, too few for num_pairs 40"),
        ({"train_weights": [1.0]}, "train_weights has 1 numbers for 2 train_sizes"),
        ({"train_sizes": []}, "train_sizes = []"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_the_reason(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        _task(**settings)
    assert message in str(caught.value)


def test_a_length_below_all_sizes_is_refused() -> None:
    with pytest.raises(UsageError, match="the shortest of train_sizes has 8 tokens, more than 7"):
        _task(**_SIZES).sample(np.random.default_rng(0), split="train", batch_size=1, length=7)
