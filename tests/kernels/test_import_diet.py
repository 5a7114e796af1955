"""Importing the kernels compiles nothing and loads no compiler."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from pathlib import Path

import kernels

OPERATIONS = [module.name for module in pkgutil.iter_modules(kernels.__path__) if module.ispkg]


def test_importing_an_operation_loads_neither_numba_nor_triton() -> None:
    # One process, for most of its time goes into importing torch.
    code = f"""
import importlib, sys
for operation in {OPERATIONS}:
    importlib.import_module("kernels." + operation)
    print(operation, *(name for name in ("numba", "triton") if name in sys.modules))
"""
    root = Path(kernels.__path__[0]).parent
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert {"attention", "selective_scan", "ssm_conv"} <= set(OPERATIONS)
    assert result.stdout.split("\n")[:-1] == OPERATIONS, "the first with more than its name loads it"
