"""`suite bench kernels` on a GPU: replays, clocks and floors are there, and a time is what the device took."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from suite.bench.results import load
from suite.bench.timing import Effort, Stopwatch, captured, timed_in_rounds
from tests.suite.builders import suite

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda")


@pytest.fixture(autouse=True)
def _needs_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU to test on")


def test_quick_runs_end_to_end(tmp_path: Path) -> None:
    done = suite("bench", "kernels", "causal_conv1d", "long_conv", "--quick", "--device", "cuda", "--out", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = tmp_path.iterdir()
    bench = load(path)
    assert bench.is_complete
    assert bench.environment.gpu == bench.device.name
    assert bench.device.copy_bytes_per_second > 1e11
    for case in bench.cases:
        assert all(floor.seconds > 0 for floor in case.floors.values())
        for entry in case.entries:
            for timing in entry.timings.values():
                assert timing.graphed_seconds, timing.not_graphed
                assert min(timing.graphed_seconds) > 0


def test_a_kernel_takes_as_long_as_its_bytes_and_a_replay_of_it_too() -> None:
    source = torch.ones(2**28, device=CUDA)
    target = torch.empty_like(source)

    # Not a copy: in a graph it becomes work of the copy engines, which are half as fast.
    def negate() -> object:
        return torch.neg(source, out=target)

    stopwatch = Stopwatch(CUDA)
    runs = {"called": negate, "replayed": captured(negate, CUDA)}
    rounds = timed_in_rounds(runs, stopwatch, Effort(seconds=0.05, min_rounds=10, max_rounds=50))
    assert not rounds.errors
    called, replayed = (sorted(rounds.samples[name])[len(rounds.samples[name]) // 2] for name in runs)
    assert called == pytest.approx(replayed, rel=0.1)
    assert 2**31 / called < 20e12
