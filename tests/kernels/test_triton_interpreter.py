"""The Triton kernels without a GPU: their tests again, where Triton interprets the kernels on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FILES = ("test_rms_norm.py", "test_cross_entropy.py", "test_rotary.py")


def test_the_kernels_agree_with_their_references_in_the_interpreter() -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    # Whether it interprets, Triton decides when a kernel's module is imported: in a process of its own.
    command = [sys.executable, "-m", "pytest", "-q", "-k", "triton", *(str(HERE / file) for file in FILES)]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=HERE.parent.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "skipped" not in done.stdout
