"""The store loses nothing, refuses what is damaged, and belongs to one writer at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from suite.errors import StoreError
from suite.store import Store
from tests.suite.builders import cell, record, run_spec
from tests.suite.killed_writer import RECORDS, SPECS


def _stored(folder: Path) -> Path:
    store = Store(folder)
    with store.writing():
        store.add(record())
    (path,) = (folder / "records").iterdir()
    return path


def test_what_is_added_is_read_back(tmp_path: Path) -> None:
    store = Store(tmp_path)
    attempts = [record(cell(seed), attempt=f"a{seed}") for seed in range(3)]
    with store.writing():
        store.write_spec(run_spec(cell(0)))
        for attempt in attempts:
            store.add(attempt)
    assert Store(tmp_path).records() == attempts
    assert Store(tmp_path).spec() == run_spec(cell(0))


def test_two_attempts_at_a_cell_are_both_kept(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.writing():
        store.add(record(attempt="one"))
        store.add(record(attempt="two"))
    assert [each.attempt for each in store.records()] == ["one", "two"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 10_000), flipped=st.integers(1, 255))
def test_a_flipped_byte_never_passes_for_a_result(tmp_path: Path, position: int, flipped: int) -> None:
    path = _stored(tmp_path / f"{position}-{flipped}")
    content = bytearray(path.read_bytes())
    content[position % (len(content) - 1)] ^= flipped  # the final newline carries nothing
    path.write_bytes(content)
    with pytest.raises(StoreError, match="damaged"):
        Store(path.parent.parent).records()


def test_a_file_cut_short_is_refused_by_name(tmp_path: Path) -> None:
    path = _stored(tmp_path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(StoreError, match=path.name):
        Store(tmp_path).records()


def test_a_record_of_another_version_is_refused(tmp_path: Path) -> None:
    path = _stored(tmp_path)
    content = json.loads(path.read_text())["content"] | {"format": 99}
    from suite.spec import canonical_json
    from suite.store import _sha256

    body = canonical_json(content)
    path.write_text(f'{{"sha256":"{_sha256(body)}","content":{body}}}')
    with pytest.raises(StoreError, match="format 99; this version of the suite reads format 1"):
        Store(tmp_path).records()


def test_what_a_killed_writer_left_unfinished_is_not_read_and_is_swept(tmp_path: Path) -> None:
    path = _stored(tmp_path)
    leftover = path.with_name(".unfinished-" + path.name)
    leftover.write_text('{"sha256":')
    store = Store(tmp_path)
    assert len(store.records()) == 1
    with store.writing():
        assert not leftover.exists()


def test_a_writer_killed_before_any_call_loses_nothing_that_it_knew_was_stored(tmp_path: Path) -> None:
    home = Path(__file__).parent.parent.parent
    command = [sys.executable, "-m", "tests.suite.killed_writer", str(tmp_path)]
    writers = subprocess.run(command, cwd=home, capture_output=True, text=True)
    assert writers.returncode == 0, writers.stderr
    num_left_unfinished = 0
    for line in writers.stdout.splitlines():
        number, _, seeds = line.partition(":")
        store = Store(tmp_path / number)
        num_left_unfinished += len(list(store.folder.rglob(".unfinished-*")))
        if not seeds and not (store.folder / "records").exists():
            continue
        stored, spec = store.records(), store.spec()
        assert stored in (RECORDS[:0], RECORDS[:1], RECORDS)
        assert spec in (None, *SPECS)
        assert {int(seed) for seed in seeds.split()} <= {each.cell.seed for each in stored}
        assert spec is not None or not stored, "a record that nothing asked for"
        with store.writing():
            assert not list(store.folder.rglob(".unfinished-*"))
            for missing in RECORDS[len(stored) :]:
                store.add(missing)
        assert store.records() == RECORDS
    assert num_left_unfinished > 10, "hardly any was killed while it wrote"


def test_a_file_is_synced_before_it_gets_its_name_and_its_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without either, a power cut takes what was said to be stored; no test can cut it."""
    done, rename = [], Path.rename

    def noted_rename(source: Path, target: Path) -> Path:
        done.append(f"rename {source.name}")
        return rename(source, target)

    with Store(tmp_path).writing():
        monkeypatch.setattr(os, "fsync", lambda file: done.append(f"sync {Path(f'/proc/self/fd/{file}').readlink()}"))
        monkeypatch.setattr(Path, "rename", noted_rename)
        Store(tmp_path).write_spec(run_spec(cell(0)))
    assert done == [f"sync {tmp_path}/.unfinished-run.json", "rename .unfinished-run.json", f"sync {tmp_path}"]


def test_a_second_writer_is_told_who_is_writing(tmp_path: Path) -> None:
    with Store(tmp_path).writing(), pytest.raises(StoreError, match=f"process {os.getpid()}"):
        _enter(Store(tmp_path))


def test_the_lock_of_a_dead_writer_is_free(tmp_path: Path) -> None:
    code = f"""
import os
from pathlib import Path
from suite.store import Store
with Store(Path({str(tmp_path)!r})).writing():
    os.kill(os.getpid(), 9)
"""
    home = Path(__file__).parent.parent.parent
    assert subprocess.run([sys.executable, "-c", code], cwd=home).returncode == -9
    _enter(Store(tmp_path))


def test_a_full_disk_is_one_clear_error_and_loses_nothing() -> None:
    """On a real file system of 64 KiB, made and mounted in a namespace of our own."""
    script = """
set -e
folder=$(mktemp -d)
mount -t tmpfs -o size=64k none "$folder"
"$0" - "$folder" <<'END'
import sys
from pathlib import Path
from suite.errors import StoreError
from suite.store import Store
from tests.suite.builders import cell, record

store = Store(Path(sys.argv[1]) / "results")
num_added = 0
try:
    with store.writing():
        while num_added < 1000:
            store.add(record(cell(num_added)))
            num_added += 1
except StoreError as error:
    print(error)
assert 0 < num_added < 1000, num_added
assert len(store.records()) == num_added
with store.writing():
    (Path(sys.argv[1]) / "results" / "records").joinpath(next(iter((store.folder / "records").iterdir())).name).unlink()
    store.add(record(cell(2000)))
print("stored again after room was made")
END
"""
    home = Path(__file__).parent.parent.parent
    command = ["unshare", "--user", "--map-root-user", "--mount", "bash", "-c", script, sys.executable]
    done = subprocess.run(command, cwd=home, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "No space left on device" in done.stdout
    assert "stored again after room was made" in done.stdout


def test_a_folder_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(StoreError, match=r"cannot be written to .*Not a directory.*Choose another --out"):
        _enter(Store(blocked / "results"))


def test_a_folder_without_results_is_not_read_as_empty(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is not a results folder"):
        Store(tmp_path).records()


def _enter(store: Store) -> None:
    with store.writing():
        pass
