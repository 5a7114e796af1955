"""What needs no kernel of our own, on a GPU: attention by every backend, and the operations in plain torch."""

from __future__ import annotations

import time
from functools import partial

import pytest
import torch
from torch import Tensor

from kernels.attention import OPERATION, attention_step, causal_attention
from kernels.causal_conv1d import causal_conv1d
from kernels.dispatch import ImplementationUnavailable, receipt
from kernels.long_conv import long_conv
from kernels.selective_scan import selective_scan
from kernels.ssm_kernel import s4d_kernel
from tests.kernels.comparison import assert_agrees, assert_close

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda")


@pytest.fixture(autouse=True)
def _needs_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU to test on")


def qkv(length: int, key_heads: int, head_size: int, dtype: torch.dtype) -> dict[str, Tensor]:
    heads = {"q": 4, "k": key_heads, "v": key_heads}
    return {name: torch.randn(2, length, n, head_size, device=CUDA, dtype=dtype) for name, n in heads.items()}


@pytest.mark.parametrize("implementation", ["flash_attn", "cudnn", "flash", "efficient", "math"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("key_heads", [4, 2])
@pytest.mark.parametrize("window", [None, 32, 64])
@pytest.mark.parametrize("length", [65, 512])
def test_attention_agrees_with_the_reference_or_says_why_it_cannot(
    implementation: str, dtype: torch.dtype, key_heads: int, window: int | None, length: int
) -> None:
    attention = partial(causal_attention, implementation=implementation, window=window)
    inputs = qkv(length, key_heads, 64, dtype)
    try:
        attention(**inputs)
    except ImplementationUnavailable as error:
        pytest.skip(str(error))
    assert_agrees(attention, partial(causal_attention, implementation="reference", window=window), inputs, dtype)


@pytest.mark.parametrize("head_size", [16, 64, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("window", [None, 64])
def test_auto_always_finds_a_kernel_that_does_not_hold_the_scores(
    head_size: int, dtype: torch.dtype, window: int | None
) -> None:
    with receipt() as ran:
        causal_attention(**qkv(256, 2, head_size, dtype), window=window)
    assert ran["attention"] <= {"flash_attn", "cudnn", "flash", "efficient"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("length", [1, 2, 65])
def test_a_step_agrees_with_the_last_position(dtype: torch.dtype, length: int) -> None:
    q, k, v = qkv(80, 2, 64, dtype).values()
    expected = causal_attention(q[:, :length], k[:, :length], v[:, :length], implementation="reference")[:, -1]
    assert_close("y", attention_step(q[:, length - 1], k, v, length), expected, dtype)


def test_a_step_costs_no_planning_when_the_cache_grows() -> None:
    q, k, v = qkv(200, 4, 64, torch.bfloat16).values()
    attention_step(q[:, 0], k, v, 1)
    torch.cuda.synchronize()
    started = time.perf_counter()
    with receipt() as ran:
        for length in range(2, 200):
            attention_step(q[:, length - 1], k, v, length)
    torch.cuda.synchronize()
    assert (time.perf_counter() - started) / 198 < 5e-3
    assert "cudnn" not in ran[OPERATION.name]


@pytest.mark.parametrize("length", [1, 65, 300])
def test_the_operations_in_plain_torch_agree_with_their_references(length: int) -> None:
    def randn(*sizes: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*sizes, device=CUDA, dtype=dtype)

    scan = {"u": randn(2, length, 20), "delta": randn(2, length, 20), "A": -randn(20, 4).abs()}
    scan |= {"B": randn(2, length, 4), "C": randn(2, length, 4), "initial_state": randn(2, 20, 4)}
    conv = {"x": randn(2, length, 20), "weight": randn(20, 4), "bias": randn(20), "initial_state": randn(2, 20, 3)}
    long = {"u": randn(2, length, 20), "kernel": randn(20, length) / length**0.5}
    ssm = {
        "delta": randn(20).abs() / 10,
        "A": randn(20, 8, dtype=torch.complex64),
        "C": randn(20, 8, dtype=torch.complex64),
    }
    ssm["A"] = torch.complex(-ssm["A"].real.abs() - 0.1, 10 * ssm["A"].imag)
    starts = torch.rand(2, length, device=CUDA) < 0.1
    for operation, implementation, inputs in (
        (partial(selective_scan, delta_softplus=True, sequence_starts=starts), "torch", scan),
        (partial(causal_conv1d, activation="silu"), "torch", conv),
        (partial(causal_conv1d, activation="silu", sequence_starts=starts), "torch", conv),
        (long_conv, "fft", long),
        (partial(s4d_kernel, length=length), "powers", ssm),
    ):
        assert_agrees(
            partial(operation, implementation=implementation),
            partial(operation, implementation="reference"),
            inputs,
            torch.float32,
        )


def test_what_is_not_for_this_device_is_left_out() -> None:
    assert OPERATION.availability(CUDA)["efficient"] is None
    assert OPERATION.availability(torch.device("cpu"))["efficient"] == "it runs on a GPU only"
