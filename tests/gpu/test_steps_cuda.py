"""One token at a time on a GPU: the CUDA steps against plain torch in float64, and against whole sequences."""

# B batch, D channels, N state, R rank

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.causal_conv1d import causal_conv1d, causal_conv1d_step, step_cuda
from kernels.dispatch import receipt
from kernels.selective_scan import selective_scan, selective_scan_step
from tests.kernels.comparison import assert_close

pytestmark = pytest.mark.gpu

DEVICE = torch.device("cuda")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WIDTHS = (1, 3, 64, 100, 1536)


@pytest.fixture(autouse=True)
def _needs_a_gpu() -> None:
    if not torch.cuda.is_available() or step_cuda.unavailable(DEVICE):
        pytest.skip(f"no GPU to test on: {step_cuda.unavailable(DEVICE)}")


def normal(*sizes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*sizes, device=DEVICE).to(dtype)


def double(inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: x.double() if isinstance(x, Tensor) else x for name, x in inputs.items()}


def conv_inputs(batch: int, channels: int, width: int, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "state": normal(batch, channels, width - 1),
        "x": normal(batch, 2 * channels, dtype=dtype)[:, channels:],
        "weight": normal(channels, width),
        "bias": normal(channels),
    }


def scan_inputs(batch: int, channels: int, num_states: int, rank: int, dtype: torch.dtype) -> dict[str, Any]:
    """As a Mamba block makes them: slices of projections; the step size of low rank, unless `rank` is 0."""
    u, z = normal(batch, 2 * channels, dtype=dtype).chunk(2, dim=-1)
    low_rank, B, C = normal(batch, rank + 2 * num_states, dtype=dtype).split([rank, num_states, num_states], dim=-1)
    return {
        "state": normal(batch, channels, num_states),
        "u": u,
        "delta": low_rank if rank else normal(batch, channels, dtype=dtype),
        "delta_weight": normal(channels, rank) / rank**0.5 if rank else None,
        "A": normal(channels, num_states),
        "B": B,
        "C": C,
        "D": normal(channels),
        "z": z,
        "delta_bias": normal(channels),
        "delta_softplus": True,
        "log_rates": True,
    }


def assert_conv_step_like_torch(inputs: dict[str, Any], activation: str | None = "silu") -> None:
    expected_y, expected_state = causal_conv1d_step(**double(inputs), activation=activation)
    y, state = causal_conv1d_step(**inputs, activation=activation, implementation="cuda")
    assert y.dtype == inputs["x"].dtype
    assert_close("y", y, expected_y, y.dtype)
    assert_close("state", state, expected_state, inputs["x"].dtype)


def assert_scan_step_like_torch(inputs: dict[str, Any]) -> None:
    expected_y, expected_state = selective_scan_step(**double(inputs))
    y, state = selective_scan_step(**inputs, implementation="cuda")
    assert y.dtype == inputs["u"].dtype
    assert_close("y", y, expected_y, y.dtype)
    assert_close("state", state, expected_state, inputs["state"].dtype)


@pytest.mark.parametrize("channels", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_convolution_step_agrees_with_plain_torch(channels: int, dtype: torch.dtype) -> None:
    for batch, width in ((1, 1), (2, 2), (3, 4), (2, 9)):
        assert_conv_step_like_torch(conv_inputs(batch, channels, width, dtype))


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("state_dtype", DTYPES, ids=str)
def test_a_convolution_step_with_every_option(activation: str | None, has_bias: bool, state_dtype: torch.dtype) -> None:
    inputs = conv_inputs(2, 20, 4, torch.bfloat16)
    inputs["state"] = inputs["state"].to(state_dtype)
    inputs["weight"] = inputs["weight"].bfloat16()
    assert_conv_step_like_torch({**inputs, "bias": inputs["bias"] if has_bias else None}, activation)


@pytest.mark.parametrize("channels", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_scan_step_agrees_with_plain_torch(channels: int, dtype: torch.dtype) -> None:
    for batch, rank in ((1, 0), (3, 48)):
        assert_scan_step_like_torch(scan_inputs(batch, channels, 16, rank, dtype))


@pytest.mark.parametrize("num_states", [1, 2, 3, 4, 15, 16, 17, 64, 256])
@pytest.mark.parametrize("rank", [0, 1, 2, 7, 160])
def test_any_number_of_states_and_any_rank(num_states: int, rank: int) -> None:
    assert_scan_step_like_torch(scan_inputs(2, 33, num_states, rank, torch.float32))


@pytest.mark.parametrize("without", [("D",), ("z",), ("delta_bias",), ("D", "z", "delta_bias")], ids=str)
@pytest.mark.parametrize("delta_softplus", [False, True])
@pytest.mark.parametrize("log_rates", [False, True])
def test_a_scan_step_with_every_option(without: tuple[str, ...], delta_softplus: bool, log_rates: bool) -> None:
    inputs = scan_inputs(2, 20, 16, 4, torch.float32)
    inputs |= {"delta_softplus": delta_softplus, "log_rates": log_rates} | dict.fromkeys(without)
    if not delta_softplus:
        inputs["delta"], inputs["delta_weight"] = inputs["delta"].abs() / 10, inputs["delta_weight"].abs()
        inputs["delta_bias"] = None
    if not log_rates:
        inputs["A"] = -inputs["A"].abs()
    assert_scan_step_like_torch(inputs)


def test_a_scan_step_with_parameters_and_state_in_half_precision() -> None:
    inputs = scan_inputs(2, 20, 16, 4, torch.bfloat16)
    halves = {name: inputs[name].bfloat16() for name in ("state", "delta_weight", "A", "D", "delta_bias")}
    assert_scan_step_like_torch(inputs | halves)


def test_more_sequences_than_blocks_go_through_in_turn() -> None:
    assert_scan_step_like_torch(scan_inputs(700, 1536, 16, 48, torch.bfloat16))


def test_a_state_with_other_strides_is_changed_in_place() -> None:
    conv, scan = conv_inputs(3, 20, 4, torch.float32), scan_inputs(3, 20, 16, 4, torch.float32)
    for inputs, step in ((conv, causal_conv1d_step), (scan, selective_scan_step)):
        state = inputs["state"].permute(2, 1, 0).contiguous().permute(2, 1, 0)
        expected_y, expected_state = step(**double(inputs))
        y, next_state = step(**inputs | {"state": state}, implementation="cuda")
        assert next_state is state
        assert_close("y", y, expected_y, torch.float32)
        assert_close("state", state, expected_state, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_steps_one_by_one_equal_the_whole_sequence(dtype: torch.dtype) -> None:
    batch, length, channels, num_states = 2, 30, 100, 16
    x, z = normal(batch, length, 2 * channels, dtype=dtype).chunk(2, dim=-1)
    delta, B, C = (normal(batch, length, size, dtype=dtype) for size in (channels, num_states, num_states))
    weight, bias = normal(channels, 4), normal(channels)
    A, D, delta_bias = normal(channels, num_states), normal(channels), normal(channels)
    u, window = causal_conv1d(x, weight, bias, activation="silu", return_final_state=True)
    y, h = selective_scan(u, delta, -A.exp(), B, C, D, z, delta_bias, delta_softplus=True, return_final_state=True)
    state_window, state_h = torch.zeros_like(window), torch.zeros_like(h)
    with receipt() as ran:
        for t in range(length):
            u_t, state_window = causal_conv1d_step(state_window, x[:, t], weight, bias, "silu")
            token = {"A": A, "D": D, "delta_bias": delta_bias, "delta_softplus": True, "log_rates": True}
            token |= {"u": u_t, "delta": delta[:, t], "B": B[:, t], "C": C[:, t], "z": z[:, t]}
            y_t, state_h = selective_scan_step(state_h, **token)
            assert_close(f"u at {t}", u_t, u[:, t].double(), dtype)
            assert_close(f"y at {t}", y_t, y[:, t].double(), dtype)
    assert ran == {"causal_conv1d_step": {"cuda"}, "selective_scan_step": {"cuda"}}
    assert torch.equal(state_window, window)
    assert_close("state", state_h, h.double(), dtype)


def test_a_cuda_graph_replays_steps_on_the_same_state() -> None:
    conv, scan = conv_inputs(2, 100, 4, torch.float32), scan_inputs(2, 100, 16, 4, torch.float32)
    for inputs, step in ((conv, causal_conv1d_step), (scan, selective_scan_step)):
        eager = inputs["state"].clone()
        step(**inputs | {"state": inputs["state"].clone()})
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y, _ = step(**inputs)
        for _ in range(3):
            graph.replay()
            expected, eager = step(**inputs | {"state": eager})
            assert torch.equal(y, expected)
            assert torch.equal(inputs["state"], eager)


def test_where_a_gradient_is_asked_for_auto_takes_plain_torch() -> None:
    conv, scan = conv_inputs(2, 20, 4, torch.float32), scan_inputs(2, 20, 16, 4, torch.float32)
    for inputs, step, name in ((conv, causal_conv1d_step, "x"), (scan, selective_scan_step, "u")):
        state = inputs["state"].clone()
        with receipt() as ran:
            y, _ = step(**inputs | {name: inputs[name].detach().requires_grad_()})
        assert set.union(*ran.values()) == {"torch"}
        assert y.requires_grad
        assert torch.equal(inputs["state"], state)
        with pytest.raises(ValueError, match="an input requires a gradient, which 'cuda' does not take"):
            step(**inputs | {name: inputs[name].detach().requires_grad_()}, implementation="cuda")


def test_torch_accepts_the_operators() -> None:
    conv, scan = conv_inputs(2, 20, 4, torch.float32), scan_inputs(2, 20, 16, 4, torch.float32)
    causal_conv1d_step(**conv)
    selective_scan_step(**scan)
    torch.library.opcheck(torch.ops.seqsuite.causal_conv1d_step_cuda.default, (*conv.values(), True))
    order = ("state", "u", "delta", "A", "B", "C", "D", "z", "delta_bias", "delta_weight")
    torch.library.opcheck(
        torch.ops.seqsuite.selective_scan_step_cuda.default, (*(scan[name] for name in order), True, True)
    )
