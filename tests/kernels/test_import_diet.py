"""Importing the kernels compiles nothing and loads no compiler."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import kernels

OPERATIONS = ["selective_scan", "linear_scan", "causal_conv1d", "long_conv", "ssm_kernel", "attention"]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_importing_an_operation_loads_neither_numba_nor_triton(operation: str) -> None:
    code = f"import sys, kernels.{operation}; print([name for name in ('numba', 'triton') if name in sys.modules])"
    root = Path(kernels.__path__[0]).parent
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
