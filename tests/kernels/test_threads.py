"""The threads that run the CPU loops: every task once, errors come through, a forked process has its own."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import kernels
from kernels.numba_calls import run_in_threads


@pytest.fixture(params=[1, 2, 5])
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(num_threads)


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("num_tasks", [1, 2, 3, 17])
def test_every_task_runs_once(num_tasks: int) -> None:
    lock, done = threading.Lock(), []

    def loops(first: int, end: int, name: str) -> None:
        with lock:
            done.extend((name, task) for task in range(first, end))

    run_in_threads(loops, num_tasks, "scan")
    assert sorted(done) == [("scan", task) for task in range(num_tasks)]


@pytest.mark.usefixtures("_threads")
def test_an_error_in_any_thread_comes_through() -> None:
    def loops(first: int, end: int) -> None:
        if end == 5:
            raise MemoryError("the last task failed")

    with pytest.raises(MemoryError, match="the last task failed"):
        run_in_threads(loops, 5)


def test_a_forked_process_scans_after_its_parent_did() -> None:
    code = """
import os, torch
from kernels.selective_scan import selective_scan

def scan():
    x, B = torch.ones(4, 9, 5), torch.ones(4, 9, 3)
    return selective_scan(x, x, -torch.ones(5, 3), B, B)

torch.set_num_threads(2)
expected = scan()
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(scan(), expected) else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    root = Path(kernels.__path__[0]).parent
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=root, check=True, timeout=120)
