"""The Triton selective scan where there is no GPU: interpreted, and compiled ahead of time for three GPUs."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import kernels
from kernels.selective_scan import triton_scan

ROOT = Path(kernels.__path__[0]).parent

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def _run(arguments: list[str], tmp_path: Path, **environment: str) -> None:
    cache = {"TRITON_CACHE_DIR": str(tmp_path / "triton")}
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, **cache, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]


@needs_triton
def test_the_interpreted_kernels_agree_with_the_reference(tmp_path: Path) -> None:
    module = "tests/kernels/triton_interpreted.py"
    _run(["-m", "pytest", "-q", "-p", "no:cacheprovider", module], tmp_path, TRITON_INTERPRET="1")


@needs_triton
def test_the_compiled_kernels_spill_nothing_and_fit(tmp_path: Path) -> None:
    _run(["-m", "tests.kernels.triton_compiled"], tmp_path)


def test_without_an_interpreter_a_cpu_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    reason = triton_scan.unavailable(torch.device("cpu"))
    assert reason is not None and ("TRITON_INTERPRET=1" in reason or "not installed" in reason)
