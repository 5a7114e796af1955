"""A launched kernel is compiled once for each key, and never used for what it was not compiled for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from kernels import triton_launch
from kernels.triton_launch import Launcher, next_power_of_2, size_class


class _Kernel:
    """Stands for Triton's: launching it gives what it was compiled to, which can be launched in turn."""

    def __init__(self) -> None:
        self.num_looked_up = 0
        self.num_direct = 0

    def __getitem__(self, grid: tuple[int, int, int]) -> Callable[..., Any]:
        def launch(*arguments: Any, num_warps: int) -> _Compiled:
            self.num_looked_up += 1
            return _Compiled(self)

        return launch


class _Compiled:
    def __init__(self, kernel: _Kernel) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int, int, int]) -> Callable[..., None]:
        def launch(*arguments: Any) -> None:
            self.kernel.num_direct += 1

        return launch


def test_a_known_key_skips_tritons_look_up() -> None:
    kernel = _Kernel()
    launch = Launcher(kernel)
    for key in ("a", "a", "b", "a", "b"):
        launch(key, 1, 4, torch.zeros(8), 8)
    assert (kernel.num_looked_up, kernel.num_direct) == (2, 3)


def test_an_address_that_is_not_aligned_goes_through_tritons_look_up() -> None:
    kernel = _Kernel()
    launch = Launcher(kernel)
    numbers = torch.zeros(9)
    for x in (numbers[1:], numbers[:8], numbers[1:], numbers[:8]):
        launch("a", 1, 4, x, 8)
    assert (kernel.num_looked_up, kernel.num_direct) == (3, 1)


@pytest.mark.parametrize("size", [1, 2, 16, 17, 32, 2**31])
def test_sizes_of_a_class_are_those_that_triton_compiles_alike(size: int) -> None:
    assert size_class(size) == (size == 1, size % 16 == 0, size < 2**31)


@pytest.mark.parametrize(("size", "power"), [(1, 1), (2, 2), (3, 4), (64, 64), (65, 128)])
def test_the_side_of_a_tile_is_a_power_of_two(size: int, power: int) -> None:
    assert next_power_of_2(size) == power


def test_without_triton_or_a_gpu_it_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    reason = triton_launch.unavailable.__wrapped__
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(triton_launch.importlib.util, "find_spec", lambda name: object())
    assert reason(torch.device("cpu")) == "it runs on a GPU only"
    assert reason(torch.device("cuda")) is None
    monkeypatch.setattr(triton_launch.importlib.util, "find_spec", lambda name: None)
    assert reason(torch.device("cuda")) == "the package triton is not installed"
