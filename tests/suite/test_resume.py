"""A run that is killed, at any stage and any number of times, loses nothing and repeats nothing.

`test_store.py` kills the writer of its records before every single call.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from suite.records import Record
from suite.store import Store
from tests.suite.builders import FAULTY, suite, suite_command


def _arguments(out: Path, num_cells: int, seconds: float) -> list[str | Path]:
    seeds = ",".join(map(str, range(num_cells)))
    return [
        "run", "--models", "faulty", "--tasks", "echo", "--plugin", FAULTY, "--seeds", seeds, "--device", "cpu",
        "--jobs", "2", "--measure", "accuracy", "--out", out, "--set", f"echo.seconds={seconds}",
    ]  # fmt: skip


def _acknowledged(output: str) -> set[int]:
    """Seeds of the cells that the run said were done."""
    return {int(seed) for seed in re.findall(r"\] faulty · echo · seed (\d+) ", output)}


KILLED = """
import itertools, os, pkgutil, signal, sys

owner, name, number, moment, *arguments = sys.argv[1:]
owner = pkgutil.resolve_name(owner)
function, calls = getattr(owner, name), itertools.count(1)

def fatal(*values):
    is_last = next(calls) == int(number)
    if is_last and moment == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    result = function(*values)
    if is_last:
        os.kill(os.getpid(), signal.SIGKILL)
    return result

setattr(owner, name, fatal)
sys.argv = ["suite", *arguments]
from suite.cli import main
main()
"""
"""A run that kills itself before or after the call of that number."""


def test_sigkill_at_any_stage_of_a_run_loses_nothing_and_repeats_nothing(tmp_path: Path) -> None:
    out, num_cells = tmp_path / "results", 10
    arguments = _arguments(out, num_cells, seconds=0.01)
    store, stored = Store(out), list[Record]()
    for *call, num_stored, num_told in (
        # A worker has its first cell.
        ("suite.executors.local:_Worker", "give", 1, "after", 0, 0),
        # A cell is measured, and lost with the run.
        ("suite.store:Store", "add", 3, "before", 2, 2),
        # A record is stored, and nobody was told.
        ("suite.store:Store", "add", 3, "after", 3, 2),
        # All is measured, and the report not yet written.
        ("suite.terminal", "write_file", 1, "before", 5, 5),
    ):
        killed = subprocess.run(
            [sys.executable, "-c", KILLED, *map(str, [*call, *arguments])], capture_output=True, text=True
        )
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert len(_acknowledged(killed.stdout)) == num_told
        records = store.records()
        assert records[: len(stored)] == stored
        assert len(records) == len(stored) + num_stored
        assert _acknowledged(killed.stdout) <= {record.cell.seed for record in records}
        stored = records
    assert Counter(record.cell.seed for record in stored) == Counter(range(num_cells))
    assert all(record.measurement is not None for record in stored)
    again = suite(*arguments)
    assert again.returncode == 0, again.stderr
    assert f"{num_cells} already done" in again.stdout
    assert (out / "report.html").exists()
    assert store.records() == stored


def test_the_workers_of_a_killed_run_die_with_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("w") as output:
        process = subprocess.Popen(suite_command(*_arguments(tmp_path / "results", 20, seconds=0.05)), stdout=output)
        _wait_for_news(process, log)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert children
        process.kill()
        process.wait()
    deadline = time.monotonic() + 10
    while any(_is_running(int(child)) for child in children):
        assert time.monotonic() < deadline, "a worker outlived its run"
        time.sleep(0.05)


def test_ctrl_c_ends_cleanly_and_says_how_to_go_on(tmp_path: Path) -> None:
    out, log = tmp_path / "results", tmp_path / "log"
    arguments = _arguments(out, 20, seconds=0.05)
    with log.open("w") as output:
        process = subprocess.Popen(suite_command(*arguments), stdout=output, stderr=subprocess.STDOUT)
        _wait_for_news(process, log)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130
    said = log.read_text()
    num_done = len(Store(out).records())
    assert 0 < num_done < 20
    assert f"{20 - num_done} of 20 cells left" in said
    assert "Traceback" not in said
    assert f"suite run --models faulty --tasks echo --plugin {FAULTY}" in said
    assert (out / "report.html").exists()
    assert suite(*arguments).returncode == 0
    assert len(Store(out).records()) == 20


def test_failed_cells_are_final_until_asked_for_again(tmp_path: Path) -> None:
    out = tmp_path / "results"
    arguments = [*_arguments(out, 2, seconds=0), "--set", "faulty.fault=raise"]
    first = suite(*arguments)
    assert first.returncode == 1
    assert "2 cells failed" in first.stderr
    assert "already done" in suite(*arguments).stdout
    assert len(Store(out).records()) == 2
    suite(*arguments, "--retry-failed")
    assert Counter(record.cell.seed for record in Store(out).records()) == {0: 2, 1: 2}


def test_two_runs_never_write_to_one_folder(tmp_path: Path) -> None:
    out, log = tmp_path / "results", tmp_path / "log"
    with log.open("w") as output:
        process = subprocess.Popen(suite_command(*_arguments(out, 20, seconds=0.05)), stdout=output)
        _wait_for_news(process, log)
        second = suite(*_arguments(out, 20, seconds=0.05))
        process.kill()
        process.wait()
    assert second.returncode == 2
    assert f"Another run (process {process.pid}) is writing to" in second.stderr
    assert "Traceback" not in second.stderr


def _wait_for_news(process: subprocess.Popen[bytes], log: Path) -> None:
    """Until the run has said that a cell is done, or has ended."""
    deadline = time.monotonic() + 60
    while not _acknowledged(log.read_text()) and process.poll() is None:
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
