"""The CUDA kernels compile without a GPU, do not spill, and fit; so does what the host asks of a launch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HOME = Path(__file__).parent.parent.parent


@pytest.mark.timeout(600)
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_no_variant_of_a_kernel_spills_or_does_not_fit(capability: int) -> None:
    command = [sys.executable, "-m", "tests.kernels.cuda_compiled", str(capability)]
    done = subprocess.run(command, cwd=HOME, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
