"""Needles against their definition: taken out again, they leave the text of the corpus."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from scipy.stats import chisquare

from suite.errors import UsageError
from suite.plugin import IGNORED, Batch, Split
from tasks.corpus.shipped import load_shipped, read_manifest
from tasks.needle import Needle
from tasks.passkey import Passkey

_FACT = re.compile(rb" The number of (\w+) is (\d+)\. ")
_KEY = re.compile(rb" The pass key is (\d+)\. Remember it\. (\d+) is the pass key\. ")


def _task(kind: type[Needle] = Needle, **settings: Any) -> Needle:
    return kind(kind.Options.parse(settings, where=kind.name))


def _drawn(task: Needle, num_rows: int, split: Split = "train") -> Batch:
    return task.sample(np.random.default_rng(0), split=split, batch_size=num_rows, length=task.length)


def _texts(batch: Batch) -> list[bytes]:
    """Whole sequences, the last digit included."""
    whole = np.hstack([batch.inputs, batch.targets[:, -1:]])
    return [row.astype(np.uint8).tobytes() for row in whole]


def test_the_last_tokens_are_the_number_of_the_name_that_is_asked_for() -> None:
    batch = _drawn(_task(length=400, num_needles=3, num_digits=4), 30)
    for text, targets in zip(_texts(batch), batch.targets.tolist(), strict=True):
        facts = dict(_FACT.findall(text))
        assert len(facts) == 3
        asked = re.fullmatch(rb".* What is the number of (\w+)\? It is (\d{4})", text, re.DOTALL)
        assert asked is not None
        assert facts[asked[1]] == asked[2]
        assert targets == [IGNORED] * 396 + list(asked[2])


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_without_the_needles_it_is_text_of_the_split(split: Split) -> None:
    corpus = load_shipped(tuple(read_manifest().parts))[split].text.tobytes()
    for text in _texts(_drawn(_task(length=300, num_needles=2), 5, split)):
        story = text.partition(b" What is the number of ")[0]
        assert _FACT.sub(b"", story) in corpus


def test_the_pass_key_is_said_twice_and_asked_for_once() -> None:
    task = _task(Passkey, length=200)
    for text in _texts(_drawn(task, 20)):
        (said,) = _KEY.findall(text)
        assert said[0] == said[1]
        assert text.endswith(b" What is the pass key? The pass key is " + said[0])


def test_a_slice_is_the_tenth_of_the_text_in_which_the_asked_fact_stands_and_all_are_equally_likely() -> None:
    task = _task(Passkey, length=400, num_digits=3)
    batch = _drawn(task, 2000)
    assert batch.slices is not None
    for text, tenth in zip(_texts(batch), batch.slices[:, 0], strict=True):
        found = _KEY.search(text)
        assert found is not None
        num_text = len(_KEY.sub(b"", text).partition(b" What is the pass key?")[0])
        assert int(10 * found.start() / (num_text + 1)) == tenth
    assert chisquare(np.bincount(batch.slices[:, 0], minlength=10)).pvalue > 1e-3
    assert task.slices[0] == "depth 0–10 %"
    assert task.slices[-1] == "depth 90–100 %"


def test_digits_names_and_the_asked_fact_are_uniform() -> None:
    texts = _texts(_drawn(_task(length=220, num_needles=2, num_digits=2), 2000))
    facts = [_FACT.findall(text) for text in texts]
    digits = np.frombuffer(b"".join(number for pair in facts for _, number in pair), dtype=np.uint8)
    assert chisquare(np.bincount(digits - ord("0"))).pvalue > 1e-3
    _, counts = np.unique([name for pair in facts for name, _ in pair], return_counts=True)
    assert len(counts) == 16
    assert chisquare(counts).pvalue > 1e-3
    num_first = sum(
        text.rpartition(b" number of ")[2].startswith(pair[0][0]) for text, pair in zip(texts, facts, strict=True)
    )
    assert chisquare([num_first, 2000 - num_first]).pvalue > 1e-3


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (Needle, {"length": 100}, "length 100 has no room for 4 needles of 5 digits"),
        (Needle, {"num_needles": 17}, "num_needles = 17"),
        (Passkey, {"num_needles": 2}, "num_needles = 2"),
        (Passkey, {"test_lengths": [60]}, "length 60 has no room for 1 needles"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_the_reason(kind: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        _task(kind, **settings)
    assert message in str(caught.value)


@pytest.mark.parametrize("length", [100, 2_000_000])
def test_lengths_that_do_not_fit_are_refused(length: int) -> None:
    with pytest.raises(UsageError, match=f"a length of {length:,} does not fit"):
        _task().sample(np.random.default_rng(0), split="test", batch_size=1, length=length)
