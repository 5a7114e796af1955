"""State tracking against its definition: groups by their axioms, words by multiplying matrices of permutations."""

from __future__ import annotations

from itertools import permutations
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from suite.errors import UsageError
from suite.plugin import IGNORED, Batch
from tasks.state_tracking import Group, StateTracking, multiplication_table

_ORDERS = {"z2": 2, "z3": 3, "z5": 5, "z60": 60, "s3": 6, "a5": 60, "s5": 120}


def _task(**settings: Any) -> StateTracking:
    return StateTracking(StateTracking.Options.parse(settings, where="state_tracking"))


@pytest.mark.parametrize("group", get_args(Group))
def test_the_table_is_that_of_a_group_of_the_right_order(group: Group) -> None:
    table = multiplication_table(group)
    elements = np.arange(_ORDERS[group])
    assert table.shape == (len(elements), len(elements))
    assert (table[0] == elements).all()
    assert (table[:, 0] == elements).all()
    for line in (*table, *table.T):
        assert sorted(line) == elements.tolist()
    a, b, c = np.random.default_rng(0).integers(0, len(elements), (3, 2000))
    assert (table[table[a, b], c] == table[a, table[b, c]]).all()
    is_commutative = (table == table.T).all()
    assert is_commutative == group.startswith("z")


@given(bits=st.lists(st.integers(0, 1), min_size=1, max_size=40))
def test_z2_is_parity(bits: list[int]) -> None:
    task = _task(group="z2", length=len(bits))
    answers = task.oracle(_batch_of(bits))
    assert answers[0].tolist() == [sum(bits[: t + 1]) % 2 for t in range(len(bits))]


@given(word=st.lists(st.integers(0, 119), min_size=1, max_size=12))
def test_a_word_of_s5_is_a_product_of_permutation_matrices(word: list[int]) -> None:
    matrices = [np.eye(5, dtype=int)[:, list(p)] for p in permutations(range(5))]
    state = np.eye(5, dtype=int)
    for element, answer in zip(word, _task(group="s5").oracle(_batch_of(word))[0], strict=True):
        state = state @ matrices[element]
        assert (state == matrices[answer]).all()


def test_elements_are_uniform_and_so_are_states() -> None:
    task = _task(group="s3", length=8)
    batch = task.sample(np.random.default_rng(0), split="train", batch_size=5_000, length=8)
    assert chisquare(np.bincount(batch.inputs.ravel(), minlength=6)).pvalue > 1e-3
    assert chisquare(np.bincount(batch.targets[:, -1], minlength=6)).pvalue > 1e-3


def test_only_the_last_position_can_be_scored() -> None:
    every, last = (
        _task(scored=scored).sample(np.random.default_rng(3), split="test", batch_size=4, length=9)
        for scored in ("all", "last")
    )
    assert (last.inputs == every.inputs).all()
    assert (last.targets[:, -1] == every.targets[:, -1]).all()
    assert (last.targets[:, :-1] == IGNORED).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"group": "s4"}, "group"), ({"length": 0}, "length = 0"), ({"grup": "s3"}, "Did you mean 'group'?")],
)
def test_settings_that_do_not_exist_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        _task(**settings)
    assert message in str(caught.value)


def _batch_of(word: list[int]) -> Batch:
    inputs = np.array([word])
    return Batch(inputs, np.zeros_like(inputs))
