"""The CUDA causal convolution against the specification in float64, and as a citizen of torch."""

# B batch, L length, D channels, W width

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from kernels.causal_conv1d import _MAX_CUDA_WIDTH, OPERATION, causal_conv1d, cuda
from kernels.dispatch import receipt
from tests.kernels.comparison import assert_agrees, assert_close, outputs_and_gradients

pytestmark = pytest.mark.gpu

DEVICE = torch.device("cuda")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
OPTIONAL = ("bias", "initial_state")

convolve = partial(causal_conv1d, implementation="cuda")
reference = partial(causal_conv1d, implementation="reference")


@pytest.fixture(autouse=True)
def _needs_a_gpu() -> None:
    if not torch.cuda.is_available() or cuda.unavailable(DEVICE):
        pytest.skip(f"no GPU to test on: {cuda.unavailable(DEVICE)}")


def make(
    batch: int, length: int, channels: int, width: int, dtype: torch.dtype, without: tuple[str, ...] = ()
) -> dict[str, Tensor]:
    inputs = {
        "x": torch.randn(batch, length, channels, device=DEVICE).to(dtype),
        "weight": torch.randn(channels, width, device=DEVICE),
        "bias": torch.randn(channels, device=DEVICE),
        "initial_state": torch.randn(batch, channels, width - 1, device=DEVICE).to(dtype),
    }
    return {name: tensor for name, tensor in inputs.items() if name not in without}


def starts_of(batch: int, length: int, share: float) -> Tensor:
    return torch.rand(batch, length, device=DEVICE) < share


def assert_like_the_specification(inputs: dict[str, Tensor], **options: object) -> None:
    options |= {"return_final_state": True}
    assert_agrees(partial(convolve, **options), partial(reference, **options), inputs, inputs["x"].dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("length", [1, 2, 3, 63, 64, 65, 513])
def test_every_length_and_dtype_agrees_with_the_specification(length: int, dtype: torch.dtype) -> None:
    assert_like_the_specification(make(2, length, 24, 4, dtype), activation="silu")


@pytest.mark.parametrize("channels", [1, 2, 3, 64, 100, 1536])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_any_number_of_channels(channels: int, dtype: torch.dtype) -> None:
    assert_like_the_specification(make(2, 70, channels, 4, dtype), activation="silu")


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 6, 7, 8, 17, _MAX_CUDA_WIDTH])
@pytest.mark.parametrize("channels", [3, 64])
def test_any_number_of_taps(width: int, channels: int) -> None:
    assert_like_the_specification(make(2, 70, channels, width, torch.float32), activation="silu")


@pytest.mark.parametrize("without", [(), ("bias",), ("initial_state",), OPTIONAL], ids=str)
@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.5])
def test_optional_inputs_can_be_left_out(without: tuple[str, ...], activation: str | None, share: float) -> None:
    starts = starts_of(2, 70, share) if share else None
    assert_like_the_specification(
        make(2, 70, 20, 4, torch.float32, without), activation=activation, sequence_starts=starts
    )


@pytest.mark.parametrize("width", [1, 2, 3, 8])
@pytest.mark.parametrize("share", [0.05, 0.3, 1.0])
def test_packed_documents_at_every_width(width: int, share: float) -> None:
    starts = starts_of(2, 200, share)
    assert_like_the_specification(make(2, 200, 12, width, torch.float32), activation="silu", sequence_starts=starts)


@pytest.mark.parametrize(("batch", "length", "channels"), [(1, 100_003, 8), (2, 2049, 1536), (70, 65, 1024)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_large_inputs_agree_with_plain_torch_in_double_precision(
    batch: int, length: int, channels: int, dtype: torch.dtype
) -> None:
    inputs = make(batch, length, channels, 4, dtype, without=("initial_state",))
    # A gradient of parameters sums up `batch * length` numbers of order one.
    scale = (batch * length) ** 0.5
    actual = outputs_and_gradients(partial(convolve, activation="silu"), inputs)
    expected = outputs_and_gradients(
        partial(causal_conv1d, implementation="torch", activation="silu"), {k: x.double() for k, x in inputs.items()}
    )
    for name in expected:
        size = scale if name in ("gradient of weight", "gradient of bias") else 1.0
        assert_close(name, actual[name].double() / size, expected[name] / size, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_plan_computes_the_same(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = make(2, 301, 104, 4, dtype)
    starts = starts_of(2, 301, 0.02)
    for (vector, rows), (columns, threads), steps in itertools.product(
        ((1, 4), (2, 8), (4, 4)), ((1, 32), (8, 128)), (8, 64)
    ):
        candidate = cuda.Plan(vector, rows, steps, columns, threads, 1)
        monkeypatch.setattr(cuda, "plan", lambda *_, candidate=candidate: candidate)
        cuda._forward_launch.cache_clear()
        cuda._backward_launches.cache_clear()
        assert_like_the_specification(inputs, activation="silu", sequence_starts=starts)
    cuda._forward_launch.cache_clear()
    cuda._backward_launches.cache_clear()


def test_slices_of_a_projection_and_transposed_views_are_read_in_place() -> None:
    inputs = make(2, 100, 24, 4, torch.bfloat16)
    projected = torch.randn(2, 100, 64, device=DEVICE).bfloat16()
    views = {
        "aligned slice": projected[..., 8:32],
        "odd slice": projected[..., 9:33],
        "every other channel": projected[..., ::2][..., :24],
        "time last in memory": torch.randn(2, 24, 100, device=DEVICE).bfloat16().mT,
        "batch last in memory": torch.randn(100, 24, 2, device=DEVICE).bfloat16().permute(2, 0, 1),
        "one sequence for all": projected[:1, :, 8:32].expand(2, -1, -1),
    }
    for x in views.values():
        assert_like_the_specification({**inputs, "x": x}, activation="silu")
    # A gradient comes back with strides of its own, such as those of a broadcast sum.
    x = projected[..., 8:32].detach().requires_grad_()
    convolve(x, inputs["weight"]).sum().backward()
    ones = torch.ones(2, 100, 24, device=DEVICE, dtype=torch.bfloat16)
    assert_close("dx", x.grad, torch.autograd.grad(convolve(x, inputs["weight"]), x, ones)[0], torch.bfloat16)


def test_other_inputs_may_have_any_strides_and_dtypes() -> None:
    inputs = make(2, 70, 20, 4, torch.bfloat16)
    mixed = {
        "x": inputs["x"],
        "weight": inputs["weight"].half().mT.contiguous().mT,
        "bias": torch.stack([inputs["bias"]] * 2, dim=1)[:, 0].bfloat16(),
        "initial_state": inputs["initial_state"].float().mT.contiguous().mT,
    }
    assert_like_the_specification(mixed, activation="silu")


def test_no_output_is_left_unwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    empty_like, new_empty = torch.empty_like, Tensor.new_empty

    def poisoned(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *args, **kwargs: make(*args, **kwargs).fill_(torch.nan)

    monkeypatch.setattr(torch, "empty_like", poisoned(empty_like))
    monkeypatch.setattr(Tensor, "new_empty", poisoned(new_empty))
    for length, channels, width in ((1, 1, 4), (65, 100, 4), (300, 64, 2), (5, 3, 8)):
        inputs = make(2, length, channels, width, torch.bfloat16)
        leaves = {name: tensor.requires_grad_() for name, tensor in inputs.items()}
        y = convolve(**leaves, activation="silu")
        gradients = torch.autograd.grad(y, list(leaves.values()), torch.ones_like(y))
        for name, tensor in zip(("y", *leaves), (y, *gradients), strict=True):
            assert bool(torch.isfinite(tensor).all()), name


def test_a_state_carried_over_equals_one_long_convolution() -> None:
    inputs = make(2, 200, 24, 4, torch.float32)
    x, state = inputs.pop("x"), inputs.pop("initial_state")
    run = partial(convolve, **inputs, activation="silu", return_final_state=True)
    whole, final_state = run(x, initial_state=state)
    pieces = []
    for start, stop in ((0, 77), (77, 78), (78, 200)):
        y, state = run(x[:, start:stop], initial_state=state)
        pieces.append(y)
    assert_close("y", torch.cat(pieces, dim=1), whole.double(), torch.float32)
    assert torch.equal(state, final_state)


def test_gradients_repeat_bit_for_bit() -> None:
    inputs = make(4, 1000, 300, 4, torch.bfloat16)
    first, second = (outputs_and_gradients(partial(convolve, activation="silu"), inputs) for _ in range(2))
    for name in first:
        assert torch.equal(first[name], second[name]), name


@pytest.mark.parametrize("without", [(), OPTIONAL], ids=["everything", "the least"])
def test_torch_accepts_the_operator(without: tuple[str, ...]) -> None:
    inputs = make(2, 20, 18, 4, torch.float32, without)
    leaves = [inputs[name].requires_grad_() if name in inputs else None for name in ("x", "weight", *OPTIONAL)]
    starts = None if without else starts_of(2, 20, 0.2)
    torch.library.opcheck(torch.ops.seqsuite.causal_conv1d_cuda.default, (*leaves, starts, True))


def test_a_compiled_function_gives_the_same_gradients() -> None:
    inputs = make(2, 50, 24, 4, torch.float32)

    def run(**tensors: Tensor) -> Tensor:
        return convolve(**tensors, activation="silu") * 2

    expected = outputs_and_gradients(run, inputs)
    actual = outputs_and_gradients(torch.compile(run, fullgraph=True), inputs)
    for name in expected:
        assert_close(name, actual[name], expected[name].double(), torch.float32)


def test_a_cuda_graph_replays_on_new_inputs() -> None:
    inputs = make(2, 100, 24, 4, torch.float32)
    x = inputs["x"].requires_grad_()

    def both() -> tuple[Tensor, Tensor]:
        y = convolve(**inputs, activation="silu")
        return y, torch.autograd.grad(y, x, torch.ones_like(y))[0]

    both()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = both()
    with torch.no_grad():
        x.copy_(torch.randn_like(x))
    graph.replay()
    for actual, expected in zip(replayed, both(), strict=True):
        assert torch.equal(actual, expected)


def test_offsets_beyond_32_bits() -> None:
    length, channels = 2**17, 2**14 + 2**12
    if torch.cuda.mem_get_info()[0] < 24 * 2**30:
        pytest.skip("needs 24 GiB of free GPU memory")
    x = torch.zeros(1, length, channels, device=DEVICE, dtype=torch.bfloat16)
    x[:, -1] = 1
    weight = torch.tensor([4.0, 3.0, 2.0, 1.0], device=DEVICE).repeat(channels, 1)
    x.requires_grad_()
    y = convolve(x, weight)
    assert bool((y[:, -1] == 1).all()) and bool((y[:, :-1] == 0).all())
    (dx,) = torch.autograd.grad(y, x, x.detach())
    assert dx[0, -5:, -1].tolist() == [0, 4, 3, 2, 1]


def test_auto_takes_it_and_the_portable_path_where_there_are_too_many_taps() -> None:
    with receipt() as ran:
        causal_conv1d(**make(1, 5, 3, 4, torch.bfloat16))
    assert ran == {"causal_conv1d": {"cuda"}}
    wide = make(1, 50, 3, _MAX_CUDA_WIDTH + 1, torch.float32)
    with receipt() as ran:
        causal_conv1d(**wide)
    assert ran == {"causal_conv1d": {"torch"}}
    with pytest.raises(ValueError, match=f"at most {_MAX_CUDA_WIDTH} taps"):
        convolve(**wide)
    assert next(iter(OPERATION.implementations)) == "cuda"


def test_an_eager_call_costs_the_host_little() -> None:
    inputs = make(1, 64, 64, 4, torch.bfloat16, OPTIONAL)

    def seconds_per_call(num_calls: int = 200) -> float:
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(num_calls):
            convolve(**inputs, activation="silu")
        return (time.perf_counter() - started) / num_calls

    seconds_per_call()
    assert min(seconds_per_call() for _ in range(5)) < 80e-6
