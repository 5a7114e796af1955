"""In-context recall and its kin against their definition, stated here a second time as a story of keys and values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from suite.errors import UsageError
from suite.plugin import IGNORED, Batch, Split, keyed_generator
from tasks.associative_recall import AssociativeRecall
from tasks.fuzzy_in_context_recall import FuzzyInContextRecall
from tasks.in_context_recall import InContextRecall
from tasks.mad import first_occurrences
from tasks.noisy_in_context_recall import NoisyInContextRecall


def _task(kind: type[InContextRecall] = InContextRecall, **settings: Any) -> InContextRecall:
    return kind(kind.Options.parse(settings, where=kind.name))


def _fuzzy(**settings: Any) -> FuzzyInContextRecall:
    return FuzzyInContextRecall(FuzzyInContextRecall.Options.parse(settings, where="fuzzy_in_context_recall"))


def _drawn(task: InContextRecall | FuzzyInContextRecall, num_rows: int, split: Split = "train", seed: int = 0) -> Batch:
    return task.sample(np.random.default_rng(seed), split=split, batch_size=num_rows, length=task.length)


@given(half=st.integers(2, 30), vocab_size=st.integers(4, 20), seed=st.integers(0, 2**32))
def test_every_key_that_comes_again_is_asked_for_and_no_other(half: int, vocab_size: int, seed: int) -> None:
    batch = _drawn(_task(length=2 * half, vocab_size=vocab_size), 4, seed=seed)
    assert batch.inputs.shape == (4, 2 * half - 1)
    num_keys = vocab_size // 2
    for inputs, targets in zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True):
        value_of: dict[int, int] = {}
        for position, token in enumerate(inputs):
            if position % 2:
                assert num_keys <= token < vocab_size
                assert targets[position] == IGNORED
                assert value_of.setdefault(inputs[position - 1], token) == token
            else:
                assert token < num_keys
                assert targets[position] == value_of.get(token, IGNORED)
        assert targets[-1] != IGNORED


@given(seed=st.integers(0, 2**32), noise_share=st.floats(0.05, 0.95))
def test_noise_takes_the_place_of_pairs_and_is_never_asked_for(seed: int, noise_share: float) -> None:
    task = _task(NoisyInContextRecall, length=40, vocab_size=12, num_noise_tokens=4, noise_share=noise_share)
    for inputs, targets in zip(*(array.tolist() for array in _arrays(_drawn(task, 4, seed=seed))), strict=True):
        pairs = list(zip(inputs[:-1:2], inputs[1::2], strict=True))
        value_of: dict[int, int] = {}
        for number, (key, value) in enumerate(pairs):
            assert (key >= 8) == (value >= 8)
            assert targets[2 * number] == value_of.get(key, IGNORED)
            if key < 8:
                assert key < 4 <= value
                value_of[key] = value
        assert targets[-1] == value_of[inputs[-1]]


def test_noise_has_the_share_that_was_asked_for() -> None:
    task = _task(NoisyInContextRecall, length=402, vocab_size=12, num_noise_tokens=4, noise_share=0.4)
    is_noise = _drawn(task, 50).inputs[:, 0:-1:2] >= 8
    # One pair of the 200, at a place of its own, is never noise.
    assert is_noise.mean() == pytest.approx(0.4 * 199 / 200, abs=5 * (0.24 / is_noise.size) ** 0.5)


@given(half=st.integers(2, 20), seed=st.integers(0, 2**32))
def test_one_key_is_asked_for_after_it_was_announced(half: int, seed: int) -> None:
    task = _task(AssociativeRecall, length=2 * half, vocab_size=9)
    for inputs, targets in zip(*(array.tolist() for array in _arrays(_drawn(task, 4, seed=seed))), strict=True):
        *shown, announcement, key = inputs
        assert announcement == 8
        value_of = dict(zip(shown[::2], shown[1::2], strict=True))
        assert targets == [IGNORED] * (len(inputs) - 1) + [value_of[key]]


def test_keys_and_values_are_uniform_and_so_is_the_last_key_among_those_that_were_shown() -> None:
    batch = _drawn(_task(length=6, vocab_size=8), 30_000)
    assert chisquare(np.bincount(batch.inputs[:, 0])).pvalue > 1e-3
    assert chisquare(np.bincount(batch.inputs[:, 1])[4:]).pvalue > 1e-3
    first, _, second, _, last = batch.inputs.T
    differ = first != second
    assert chisquare(np.bincount((last == first)[differ].astype(int))).pvalue > 1e-3
    assert (last == first)[~differ].all()


def test_training_on_all_wants_every_next_token_and_the_test_only_the_answers() -> None:
    task = _task(length=12, vocab_size=8, train_on="all")
    train, test = (_drawn(task, 5, split) for split in ("train", "test"))
    assert (train.inputs == test.inputs).all()
    assert (train.targets[:, :-1] == train.inputs[:, 1:]).all()
    assert (train.targets[:, -1] == test.targets[:, -1]).all()
    assert (test.targets[:, 1::2] == IGNORED).all()


def test_only_so_many_sequences_are_there_to_train_on() -> None:
    task = _task(length=20, vocab_size=16, num_train_sequences=48)
    draws = [
        task.sample(keyed_generator(task.choice(), 0, split, step), split=split, batch_size=8, length=19).inputs
        for split in ("train", "test")
        for step in range(100)
    ]
    train, test = ({row.tobytes() for batch in half for row in batch} for half in (draws[:100], draws[100:]))
    assert len(train) == 48
    assert len(test) == 800
    assert not train & test


@given(st.lists(st.lists(st.integers(0, 5), min_size=7, max_size=7), min_size=1, max_size=4))
def test_the_first_occurrence_is_where_a_list_would_find_it(rows: list[list[int]]) -> None:
    assert first_occurrences(np.array(rows)).tolist() == [[row.index(number) for number in row] for row in rows]


@given(
    key_tokens=st.integers(1, 3),
    value_tokens=st.integers(1, 3),
    spare=st.integers(0, 40),
    split=st.sampled_from(["train", "test"]),
    seed=st.integers(0, 2**32),
)
def test_motifs_that_come_again_are_asked_for_token_by_token(
    key_tokens: int, value_tokens: int, spare: int, split: Split, seed: int
) -> None:
    length = 2 * (key_tokens + value_tokens) - 1 + spare
    task = _fuzzy(length=length, vocab_size=9, max_key_tokens=key_tokens, max_value_tokens=value_tokens)
    batch = _drawn(task, 4, split, seed)
    for inputs, targets in zip(*(array.tolist() for array in _arrays(batch)), strict=True):
        whole = [token for token in [*inputs, targets[-1]] if token != 8]
        wanted: list[int] = []
        value_of: dict[str, str] = {}
        kinds = "".join("k" if token < 4 else "v" for token in whole)
        for pair in kinds.replace("vk", "v k").split():
            tokens, whole = whole[: len(pair)], whole[len(pair) :]
            key, value = tokens[: pair.count("k")], tokens[pair.count("k") :]
            for motif, longest in ((key, key_tokens), (value, value_tokens)):
                assert 1 <= len(motif) == len(set(motif)) <= longest
            assert split == "train" or len(key) == key_tokens
            is_known = str(key) in value_of
            assert value_of.setdefault(str(key), str(value)) == str(value)
            wanted += [IGNORED] * len(key) + (value if is_known else [IGNORED] * len(value))
        padding = [IGNORED] * (length + 1 - len(wanted))
        assert targets == [*padding, *wanted][1:]
        assert is_known


def test_motifs_of_one_size_are_all_equally_likely() -> None:
    task = _fuzzy(length=11, vocab_size=9, max_key_tokens=2, max_value_tokens=1)
    keys = _drawn(task, 20_000, "test").inputs[:, -2:]
    codes, counts = np.unique(keys @ [4, 1], return_counts=True)
    assert len(codes) == 12
    assert chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (InContextRecall, {"vocab_size": 3}, "vocab_size 3 leaves no two keys beside 0 other tokens"),
        (InContextRecall, {"length": 7}, "length = 7: Input should be a multiple of 2"),
        (InContextRecall, {"noise_share": 0.2}, "noise_share 0.2 needs num_noise_tokens of at least 1"),
        (NoisyInContextRecall, {"vocab_size": 18}, "vocab_size 18 leaves no two keys beside 16 other tokens"),
        (NoisyInContextRecall, {"noise_share": 1.0}, "noise_share = 1.0"),
        (AssociativeRecall, {"vocab_size": 4}, "vocab_size 4 leaves no two keys beside 1 other tokens"),
        (FuzzyInContextRecall, {"vocab_size": 6}, "vocab_size 6 has 2 key tokens, too few for max_key_tokens 3"),
        (FuzzyInContextRecall, {"test_lengths": [8]}, "length 8 has no room for a pair and its key again"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_the_reason(kind: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        kind.Options.parse(settings, where=kind.name)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("task", "length", "message"),
    [
        (_task(), 8, "a sequence has 3, 5, … tokens, not 8"),
        (_task(AssociativeRecall), 2, "a sequence has 4, 6, … tokens, not 2"),
        (_fuzzy(), 10, "may need 11 tokens, not 10"),
    ],
)
def test_lengths_that_do_not_fit_are_refused(task: Any, length: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        task.sample(np.random.default_rng(0), split="test", batch_size=1, length=length)


def test_the_published_recall_has_nine_keys_and_nine_values_and_trains_on_every_token() -> None:
    task = _task(AssociativeRecall, **AssociativeRecall.presets["paper"].settings)
    batch = _drawn(task, 500)
    assert batch.inputs.shape == (500, 42)
    assert set(batch.inputs[:, 0:40:2].ravel()) == set(range(9))
    assert set(batch.inputs[:, 1:40:2].ravel()) == set(range(9, 18))
    assert (batch.targets != IGNORED).all()
    assert (_drawn(task, 500, "test").targets[:, :-1] == IGNORED).all()


def _arrays(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    return batch.inputs, batch.targets
