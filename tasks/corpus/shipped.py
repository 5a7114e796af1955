"""The texts that come with the suite: one compressed archive per part, and a manifest that fixes every split."""

from __future__ import annotations

import hashlib
import lzma
from functools import lru_cache
from pathlib import Path
from typing import Literal

from suite.errors import SuiteError
from suite.plugin import Split
from suite.spec import Settings
from tasks.corpus.documents import SPLITS, Corpus, Documents

HOME = Path(__file__).parent
MANIFEST = "manifest.json"

PartName = Literal["shakespeare", "state_of_the_union", "moby_dick"]


class DocumentEntry(Settings):
    """One document of an archive."""

    name: str
    split: Split
    num_bytes: int
    sha256: str


class PartEntry(Settings):
    """One archive: documents end to end, in the order of the manifest, compressed with xz."""

    archive: str
    package: str
    """Where the text was taken from."""
    package_version: str
    licence: str
    documents: tuple[DocumentEntry, ...]


class Manifest(Settings):
    """What is shipped."""

    parts: dict[PartName, PartEntry]

    def splits_of(self, parts: tuple[PartName, ...]) -> set[Split]:
        """The splits in which these parts have documents."""
        return {document.split for part in parts for document in self.parts[part].documents}


@lru_cache
def read_manifest(home: Path = HOME) -> Manifest:
    """Raises SuiteError if there is none that can be read."""
    path = home / MANIFEST
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise SuiteError(f"The corpus manifest {path} cannot be read ({error}). Install the suite again") from error


@lru_cache(maxsize=2)
def load_shipped(parts: tuple[PartName, ...], home: Path = HOME) -> Corpus:
    """The documents of some parts, in this process's memory.

    Raises:
        SuiteError: an archive is missing or is not what the manifest says.
    """
    texts: dict[Split, list[bytes]] = {split: [] for split in SPLITS}
    for part in parts:
        entry = read_manifest(home).parts[part]
        for document, text in zip(entry.documents, _texts(entry, home), strict=True):
            texts[document.split].append(text)
    return {split: Documents.of(texts[split]) for split in SPLITS}


def _texts(part: PartEntry, home: Path) -> list[bytes]:
    path = home / part.archive
    try:
        whole = lzma.decompress(path.read_bytes())
    except (OSError, lzma.LZMAError) as error:
        raise SuiteError(f"The corpus archive {path} cannot be read ({error}). Install the suite again") from error
    texts: list[bytes] = []
    start = 0
    for document in part.documents:
        text = whole[start : start + document.num_bytes]
        digest = hashlib.sha256(text).hexdigest()
        if digest != document.sha256:
            raise SuiteError(
                f"The corpus archive {path} is damaged: the document '{document.name}' has sha256 {digest}, and the "
                f"manifest says {document.sha256}. Install the suite again"
            )
        texts.append(text)
        start += document.num_bytes
    return texts
