"""The CUDA kernels compile without a GPU, do not spill, and fit; so does what the host asks of a launch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HOME = Path(__file__).parent.parent.parent

CAPABILITIES = (80, 90, 100)


@pytest.fixture(scope="module")
def compilations() -> Iterator[dict[int, subprocess.Popen[str]]]:
    """One for each architecture, side by side: they take longest of all tests of kernels."""
    module = [sys.executable, "-m", "tests.kernels.cuda_compiled"]
    started = {
        capability: subprocess.Popen([*module, str(capability)], cwd=HOME, stderr=subprocess.PIPE, text=True)
        for capability in CAPABILITIES
    }
    yield started
    for compilation in started.values():
        # One that nobody waited for must not outlive the tests; leaving the context closes its pipe and waits.
        with compilation:
            compilation.kill()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_no_variant_of_a_kernel_spills_or_does_not_fit(
    capability: int, compilations: dict[int, subprocess.Popen[str]]
) -> None:
    compilation = compilations[capability]
    _, said = compilation.communicate()
    assert compilation.returncode == 0, said
