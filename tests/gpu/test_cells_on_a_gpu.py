"""A run on a GPU: cells side by side, steps as graphs, and nothing left behind."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

from suite.executors.gpus import can_be_shared
from suite.store import Store
from tests.suite.builders import suite

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _needs_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU to test on")


@pytest.mark.skipif(not can_be_shared(), reason="nvidia-cuda-mps-control is not installed")
def test_cells_share_a_gpu_and_their_steps_are_replays(tmp_path: Path) -> None:
    small = ("--set", "budget.steps=20", "--set", "budget.evaluate_every=10", "--set", "budget.warmup_steps=0")
    models = ("mamba", "transformer", "gru")
    run = ("run", "--models", ",".join(models), "--tasks", "induction_heads", "--measure", "accuracy", "--seeds", "0")
    done = suite(*run, *small, "--device", "cuda", "--jobs", "3", "--out", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    records = Store(tmp_path).records()
    assert {record.cell.model.name for record in records} == set(models)
    for record in records:
        assert record.measurement is not None
        assert record.measurement.accuracy is not None
        assert record.measurement.accuracy.steps_not_graphed is None
    left = subprocess.run(["pgrep", "-f", "nvidia-cuda-mps"], capture_output=True, text=True, check=False).stdout
    assert not left, f"processes of the service are left: {left}"
