"""Language modelling on bytes: windows come from the documents of their split, and every answer is the next byte."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from suite.errors import UsageError
from suite.plugin import IGNORED, Split
from tasks.corpus.documents import SPLITS, Documents
from tasks.corpus.external import split_of
from tasks.long_range_lm import LongRangeLM


def _task(**settings: Any) -> LongRangeLM:
    return LongRangeLM(LongRangeLM.Options.parse(settings, where="long_range_lm"))


def _texts(documents: Documents) -> list[bytes]:
    return [
        documents.text[start : start + size].tobytes()
        for start, size in zip(documents.starts, documents.sizes, strict=True)
    ]


@given(
    texts=st.lists(st.binary(min_size=0, max_size=30), min_size=1, max_size=6).filter(
        lambda texts: any(len(text) >= 2 for text in texts)
    ),
    size=st.integers(2, 20),
    seed=st.integers(0, 2**32),
)
def test_a_window_is_a_stretch_of_one_document_or_a_whole_short_one(texts: list[bytes], size: int, seed: int) -> None:
    documents = Documents.of(texts)
    windows, is_text = documents.windows(np.random.default_rng(seed), 5, size, skip_short=False)
    assert windows.shape == is_text.shape == (5, size)
    for window, has_text in zip(windows, is_text, strict=True):
        found = bytes(window[has_text].tolist())
        assert has_text.tolist() == sorted(has_text.tolist(), reverse=True)
        assert len(found) >= 2
        assert (window[~has_text] == 0).all()
        assert any(found in text if len(found) == size else found == text for text in texts)


def test_documents_are_drawn_in_proportion_to_their_bytes_and_windows_evenly() -> None:
    documents = Documents.of([b"a" * 300, b"b" * 100, bytes(range(100, 110))])
    windows, is_text = documents.windows(np.random.default_rng(0), 20_000, 8, skip_short=False)
    assert is_text.all()
    shares = [np.isin(windows[:, 0], tokens).mean() for tokens in (ord("a"), ord("b"))]
    assert shares == pytest.approx([300 / 410, 100 / 410], abs=0.01)
    starts = np.bincount(windows[(windows[:, 1] - windows[:, 0]) == 1, 0], minlength=103)[100:103]
    assert starts / starts.sum() == pytest.approx([1 / 3] * 3, abs=0.1)


def test_short_documents_are_skipped_where_that_is_asked() -> None:
    documents = Documents.of([b"short", b"long enough"])
    windows, is_text = documents.windows(np.random.default_rng(0), 50, 8, skip_short=True)
    assert is_text.all()
    assert all(bytes(window.tolist()) in b"long enough" for window in windows)
    with pytest.raises(UsageError, match="No document has 12 bytes; the longest of 2 has 11"):
        documents.windows(np.random.default_rng(0), 1, 12, skip_short=True)


@pytest.mark.parametrize("split", SPLITS)
def test_a_shipped_window_stands_in_a_document_of_its_split_and_in_no_other(split: Split) -> None:
    task = _task(parts=["shakespeare"])
    batch = task.sample(np.random.default_rng(0), split=split, batch_size=16, length=200)
    assert batch.inputs.dtype == batch.targets.dtype == np.int64
    assert (batch.targets != IGNORED).all()
    assert (batch.inputs[:, 1:] == batch.targets[:, :-1]).all()
    texts = {other: _texts(task.documents()[other]) for other in SPLITS}
    for inputs, targets in zip(batch.inputs, batch.targets, strict=True):
        window = bytes([*inputs.tolist(), targets[-1]])
        assert [other for other in SPLITS if any(window in text for text in texts[other])] == [split]


def test_no_parts_are_all_parts_so_that_a_presets_own_can_be_unset() -> None:
    assert _task(parts=[]).options.chosen_parts == _task().options.chosen_parts
    _task(parts=[], corpus="own.txt")


def test_places_after_a_short_documents_end_are_not_scored() -> None:
    task = _task(parts=["state_of_the_union"], length=64)
    longest = int(task.documents()["test"].sizes.max())
    batch = task.sample(np.random.default_rng(0), split="test", batch_size=4, length=longest + 10)
    for inputs, targets in zip(batch.inputs, batch.targets, strict=True):
        num_scored = int((targets != IGNORED).sum())
        assert num_scored + 1 in task.documents()["test"].sizes
        assert (targets[:num_scored] == inputs[1 : num_scored + 1]).all()
        assert (targets[num_scored:] == IGNORED).all()


def test_the_baseline_is_the_entropy_of_bytes() -> None:
    task = _task(parts=["shakespeare"])
    train, test = (b"".join(_texts(task.documents()[split])) for split in ("train", "test"))
    counts = {byte: 1 + train.count(bytes([byte])) for byte in range(256)}
    bits = [-test.count(bytes([byte])) * np.log2(counts[byte] / sum(counts.values())) for byte in range(256)]
    assert task.baseline() == pytest.approx(sum(bits) / len(test))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"parts": ["moby_dick"]}, "parts ['moby_dick'] have no document in the split 'validation'; add one of"),
        ({"parts": ["hamlet"]}, "Input should be 'shakespeare', 'state_of_the_union' or 'moby_dick'"),
        ({"corpus": "own.txt", "parts": ["shakespeare"]}, "not to 'own.txt'; set parts = []"),
        ({"text_column": "body"}, "text_column belongs to a corpus of one's own, not to the shipped one"),
        ({"length": 0}, "long_range_lm.length = 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused_with_the_reason(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        _task(**settings)
    assert message in str(caught.value)


STORIES = [f"Story {number}. " + "word " * (number % 7) for number in range(60)]


def _write_jsonl(path: Path, texts: list[str], column: str = "text") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({column: text, "id": 1}) + "\n" for text in texts), encoding="utf-8")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))


@pytest.mark.parametrize("ending", ["jsonl", "parquet", "folder of txt"])
def test_a_local_corpus_is_split_by_content(tmp_path: Path, ending: str) -> None:
    match ending:
        case "jsonl":
            corpus = tmp_path / "stories.jsonl"
            _write_jsonl(corpus, STORIES)
        case "parquet":
            corpus = tmp_path / "stories.parquet"
            datasets.Dataset.from_dict({"text": STORIES}).to_parquet(str(corpus))
        case _:
            corpus = tmp_path / "stories"
            corpus.mkdir()
            for number, story in enumerate(STORIES):
                (corpus / f"{number:02}.txt").write_text(story, encoding="utf-8")
    task = _task(corpus=str(corpus), length=16)
    for split in SPLITS:
        expected = [story.encode() for story in STORIES if split_of(story.encode()) == split]
        assert _texts(task.documents()[split]) == expected
        assert 0 < len(expected) < 60
    batch = task.sample(np.random.default_rng(0), split="test", batch_size=4, length=8)
    assert all(any(bytes(row.tolist()) in story.encode() for story in STORIES) for row in batch.inputs)
    assert np.isfinite(task.baseline())


def test_equal_documents_share_a_split_and_keep_it_when_others_come(tmp_path: Path) -> None:
    _write_jsonl(tmp_path / "twice.jsonl", [story for story in STORIES for _ in (1, 2)])
    _write_jsonl(tmp_path / "more.jsonl", [f"Another {number}" for number in range(40)] + STORIES)
    twice, more = (_task(corpus=str(tmp_path / name)).documents() for name in ("twice.jsonl", "more.jsonl"))
    for split in SPLITS:
        assert set(_texts(twice[split])) <= set(_texts(more[split]))
        assert len(twice[split]) == 2 * len(set(_texts(twice[split])))


def test_files_named_after_the_splits_keep_them(tmp_path: Path) -> None:
    for split, texts in (("train", STORIES[:5]), ("validation", STORIES[5:7]), ("test", STORIES[7:9])):
        _write_jsonl(tmp_path / f"{split}.jsonl", texts, column="body")
    corpus = _task(corpus=str(tmp_path), text_column="body", max_documents=2).documents()
    assert _texts(corpus["train"]) == [story.encode() for story in STORIES[:2]]
    assert _texts(corpus["validation"]) == [story.encode() for story in STORIES[5:7]]
    assert _texts(corpus["test"]) == [story.encode() for story in STORIES[7:9]]


def test_a_corpus_that_cannot_be_read_is_refused_with_the_reason(tmp_path: Path) -> None:
    stories, few, numbers = tmp_path / "stories.jsonl", tmp_path / "few.jsonl", tmp_path / "numbers.jsonl"
    _write_jsonl(stories, STORIES)
    _write_jsonl(few, STORIES[:2])
    numbers.write_text('{"text": 1}\n{"text": 2}\n', encoding="utf-8")
    (tmp_path / "mixed").mkdir()
    for name in ("a.txt", "b.jsonl"):
        (tmp_path / "mixed" / name).write_text("{}", encoding="utf-8")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.jsonl").write_text("{not json\n", encoding="utf-8")
    refusals: list[tuple[dict[str, Any], str]] = [
        ({"corpus": str(stories), "text_column": "txt"}, "No text column is called 'txt'"),
        ({"corpus": str(few)}, "has no document for the split"),
        ({"corpus": str(numbers)}, "Row 0 of the corpus"),
        ({"corpus": str(tmp_path / "mixed")}, "it has a mixture of json, text"),
        ({"corpus": str(tmp_path / "empty")}, "it has no such file"),
        ({"corpus": str(tmp_path / "broken.jsonl")}, "The package 'datasets' cannot read the corpus"),
        ({"corpus": "./nowhere.jsonl"}, "There is no corpus at nowhere.jsonl"),
    ]
    for settings, message in refusals:
        with pytest.raises(UsageError) as caught:
            _task(**settings).documents()
        assert message in str(caught.value)


def test_a_missing_package_is_named_with_the_way_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    importing = builtins.__import__

    def without_datasets(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name == "datasets":
            raise ImportError(name)
        return importing(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without_datasets)
    with pytest.raises(UsageError, match=r"pip install 'seqsuite\[datasets\]'"):
        _task(corpus=str(tmp_path)).documents()


def test_a_dataset_of_the_hub_is_asked_for_by_name_and_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def from_hub(**request: Any) -> Any:
        asked.append(request)
        rows = {"train": STORIES[:3], "validation": STORIES[3:5], "test": STORIES[5:7]}
        return datasets.DatasetDict({name: datasets.Dataset.from_dict({"text": rows[name]}) for name in rows})

    monkeypatch.setattr(datasets, "load_dataset", from_hub)
    corpus = _task(corpus="someone/stories", configuration="small").documents()
    assert asked == [{"path": "someone/stories", "name": "small"}]
    assert _texts(corpus["test"]) == [story.encode() for story in STORIES[5:7]]
