"""Where records live: one file per attempt is the truth, everything else is derived from them.

    results/
    ├── run.json                         the RunSpec: what was asked last
    ├── records/<cell id>-<attempt>.json one Record with its own sha256
    └── lock                             held by the run that writes here; freed by the system when that run dies

A file is written under a temporary name, synced, renamed and its folder synced, so that it is there whole or not at
all, whatever happens to the process or the machine.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pydantic

from suite.errors import StoreError
from suite.records import FORMAT_VERSION, Record
from suite.spec import RunSpec, canonical_json

_SPEC_NAME = "run.json"
_TEMPORARY_PREFIX = ".unfinished-"


class Store:
    """A results folder. Reading needs nothing; writing needs the lock (`with store.writing(): …`)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._records = folder / "records"

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Makes the folder and keeps it for this process alone.

        Raises:
            StoreError: the folder cannot be written, or another run is writing to it.
        """
        try:
            self._records.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise StoreError(
                f"Results cannot be written to {self.folder}: {error.strerror}. Choose another --out"
            ) from error
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.read(lock, 64).decode(errors="replace").strip() or "unknown"
                raise StoreError(
                    f"Another run (process {holder}) is writing to {self.folder}. "
                    "Wait until it ends, or choose another --out"
                ) from None
            os.ftruncate(lock, 0)
            os.write(lock, f"{os.getpid()}\n".encode())
            self._sweep()
            yield
        finally:
            os.close(lock)

    def write_spec(self, spec: RunSpec) -> None:
        """Raises StoreError if it cannot be written."""
        write_checked(self.folder / _SPEC_NAME, spec.model_dump(mode="json"))

    def add(self, record: Record) -> None:
        """Stores an attempt for good: it is on disk when this returns.

        Raises:
            StoreError: the disk is full or the folder cannot be written; nothing stored before is touched.
        """
        write_checked(self._records / f"{record.cell_id}-{record.attempt}.json", record.model_dump(mode="json"))

    def spec(self) -> RunSpec | None:
        """What was asked of this folder last, if it says so.

        Raises:
            StoreError: `run.json` is damaged or of another version.
        """
        path = self.folder / _SPEC_NAME
        if not path.exists():
            return None
        try:
            return RunSpec.model_validate_json(json.dumps(read_checked(path, repeated="nothing else")))
        except pydantic.ValidationError as error:
            raise StoreError(_other_version(path, error)) from None

    def records(self) -> list[Record]:
        """Every attempt there is, oldest first.

        Raises:
            StoreError: the folder is not a results folder, or a file in it is damaged or of another version.
        """
        if not self._records.is_dir():
            raise StoreError(
                f"{self.folder} is not a results folder: it has no 'records' in it. `suite run --out` makes one"
            )
        records = [_read_record(path) for path in self._records.glob("*.json") if not path.name.startswith(".")]
        return sorted(records, key=lambda record: (record.started_at, record.attempt))

    def _sweep(self) -> None:
        """Removes what a killed writer left half-written; only the holder of the lock may."""
        for folder in (self.folder, self._records):
            for leftover in folder.glob(f"{_TEMPORARY_PREFIX}*"):
                leftover.unlink(missing_ok=True)


def write_checked(path: Path, value: Any) -> None:
    """Writes a JSON value with its digest: on disk, whole, when this returns.

    Raises:
        StoreError: the disk is full or the folder cannot be written; what was at `path` before is untouched.
    """
    body = canonical_json(value)
    content = f'{{"sha256":"{_sha256(body)}","content":{body}}}\n'
    temporary = path.with_name(_TEMPORARY_PREFIX + path.name)
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise StoreError(
            f"{path.name} could not be written to {path.parent}: {error.strerror}. What was stored before is safe; "
            "make room or mend the folder, then run the same command again"
        ) from error


def read_checked(path: Path, *, repeated: str = "all that it holds") -> Any:
    """The value that `write_checked` wrote, if its digest agrees.

    Args:
        path: the file.
        repeated: what would have to be measured again if it were deleted.

    Raises:
        StoreError: the file cannot be read or is damaged.
    """
    try:
        envelope = json.loads(path.read_text(encoding="utf-8"))
        intact = envelope["sha256"] == _sha256(canonical_json(envelope["content"]))
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError):
        intact = False
    if not intact:
        raise StoreError(
            f"{path} is damaged: its content does not match its digest. Delete it and run the same command again; "
            f"{repeated} is repeated"
        )
    return envelope["content"]


def _read_record(path: Path) -> Record:
    content = read_checked(path, repeated="only its one cell")
    if not isinstance(content, dict) or content.get("format") != FORMAT_VERSION:
        given = content.get("format") if isinstance(content, dict) else None
        raise StoreError(
            f"{path} has record format {given}; this version of the suite reads format {FORMAT_VERSION}. "
            "Use the version of the suite that wrote it, or choose another --out"
        )
    try:
        return Record.model_validate_json(json.dumps(content))
    except pydantic.ValidationError as error:
        raise StoreError(_other_version(path, error)) from None


def _other_version(path: Path, error: pydantic.ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    return (
        f"{path} does not have the layout that this version of the suite reads ({key}: {first['msg']}). "
        "Use the version that wrote it, or choose another --out"
    )


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
