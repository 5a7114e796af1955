"""Texts of the user: local files or a dataset of a hub, read with the `datasets` package."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from suite.errors import UsageError, unknown
from suite.plugin import Split
from tasks.corpus.documents import SPLITS, Corpus, Documents

READERS = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
"""File name ending -> the builder of `datasets` that reads it. A text file is one document; elsewhere a row is one."""

HELD_OUT_SHARE = 0.1
"""Share of the documents that go to validation, and to test, where the corpus brings no splits of its own."""


@lru_cache(maxsize=2)
def load_external(corpus: str, *, configuration: str | None, text_column: str, max_documents: int | None) -> Corpus:
    """The documents of a file, a folder or a dataset of the hub, in this process's memory.

    A corpus that brings the splits train, validation and test (as files of these names, or on the hub) keeps them.
    Any other is split by the sha256 of each document's text, so that equal documents stay together and a document keeps
    its split whatever is added.

    Raises:
        UsageError: the package `datasets` is missing, or the corpus cannot be found or read, lacks the column, or
            leaves a split without documents.
    """
    tables = _read(corpus, configuration)
    rows = {split: list(islice(_rows(table, corpus, text_column), max_documents)) for split, table in tables.items()}
    if set(SPLITS) <= set(rows):
        texts = {split: rows[split] for split in SPLITS}
    else:
        texts = {split: [] for split in SPLITS}
        for text in islice((text for table in rows.values() for text in table), max_documents):
            texts[split_of(text)].append(text)
    documents = {split: Documents.of(texts[split]) for split in SPLITS}
    for split, found in documents.items():
        if not len(found):
            counts = ", ".join(f"{other} {len(documents[other])}" for other in SPLITS)
            raise UsageError(
                f"The corpus '{corpus}' has no document for the split '{split}' ({counts}). Give it more documents, or "
                f"files named train, validation and test"
            )
    return documents


def split_of(text: bytes) -> Split:
    """The split that a document belongs to, by its content alone."""
    place = int.from_bytes(hashlib.sha256(text).digest()[:8], "big") / 2**64
    if place < HELD_OUT_SHARE:
        return "test"
    return "validation" if place < 2 * HELD_OUT_SHARE else "train"


def _read(corpus: str, configuration: str | None) -> Mapping[str, Any]:
    """Split name -> table."""
    try:
        import datasets
    except ImportError as error:
        raise UsageError(
            f"Reading the corpus '{corpus}' takes the package 'datasets', which is not installed: "
            f"pip install 'seqsuite[datasets]'"
        ) from error
    path = Path(corpus).expanduser()
    if path.exists():
        reader, files = _local_files(path)
        options = {"sample_by": "document"} if reader == "text" else {}
        request: dict[str, Any] = {"path": reader, "data_files": files, **options}
    elif _looks_like_a_path(corpus):
        raise UsageError(f"There is no corpus at {path}. Known are 'shipped', local files and names on the hub")
    else:
        request = {"path": corpus, "name": configuration}
    try:
        return dict(datasets.load_dataset(**request))
    except Exception as error:
        raise UsageError(f"The package 'datasets' cannot read the corpus '{corpus}': {error}") from error


def _looks_like_a_path(corpus: str) -> bool:
    return corpus.startswith((".", "~", "/")) or corpus.count("/") > 1 or Path(corpus).suffix in READERS


def _local_files(path: Path) -> tuple[str, dict[str, list[str]]]:
    """The reader for a file or folder, and its files by split; all under train if it brings no splits."""
    files = sorted(file for file in (path.rglob("*") if path.is_dir() else [path]) if file.suffix in READERS)
    readers = {READERS[file.suffix] for file in files}
    if len(readers) != 1:
        found = f"a mixture of {', '.join(sorted(readers))}" if readers else "no such file"
        raise UsageError(f"The corpus {path} must consist of files of one kind of {', '.join(READERS)}; it has {found}")
    brings_splits = {file.stem for file in files} == set(SPLITS)
    splits: dict[str, list[str]] = {}
    for file in files:
        splits.setdefault(file.stem if brings_splits else "train", []).append(str(file))
    return readers.pop(), splits


def _rows(table: Any, corpus: str, text_column: str) -> Iterator[bytes]:
    if text_column not in table.column_names:
        raise unknown("text column", text_column, table.column_names, where=f"in the corpus '{corpus}'")
    for number, text in enumerate(table[text_column]):
        if not isinstance(text, str):
            raise UsageError(
                f"Row {number} of the corpus '{corpus}' has no text in the column '{text_column}' but a "
                f"{type(text).__name__}"
            )
        yield text.encode()
