"""The CUDA S4D convolution against the recurrence in float64, and as a citizen of torch."""

# B batch, L length, H channels, N half of the state

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from kernels.dispatch import receipt
from kernels.ssm_conv import cuda, s4d_conv
from tests.kernels.comparison import outputs_and_gradients

pytestmark = pytest.mark.gpu

DEVICE = torch.device("cuda")
TOLERANCE = {torch.float32: 3e-5, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
OPTIONAL = ("B", "D", "initial_state")

run = partial(s4d_conv, implementation="cuda")
reference = partial(s4d_conv, implementation="reference")


@pytest.fixture(autouse=True)
def _needs_a_gpu() -> None:
    if not torch.cuda.is_available() or cuda.unavailable(DEVICE):
        pytest.skip(f"no GPU to test on: {cuda.unavailable(DEVICE)}")


def make(
    batch: int,
    length: int,
    channels: int,
    half_state: int,
    dtype: torch.dtype = torch.float32,
    without: tuple[str, ...] = (),
) -> dict[str, Tensor]:
    generator = torch.Generator(DEVICE).manual_seed(length * 1009 + channels * 31 + half_state)

    def normal(*sizes: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*sizes, generator=generator, device=DEVICE, dtype=dtype)

    uniform = torch.rand(channels, generator=generator, device=DEVICE)
    imaginary = math.pi * torch.arange(half_state, device=DEVICE).expand(channels, half_state)
    inputs = {
        "u": normal(batch, length, channels).to(dtype),
        "delta": torch.exp(math.log(1e-3) + math.log(100.0) * uniform),
        "A": torch.complex(torch.full((channels, half_state), -0.5, device=DEVICE), imaginary),
        "C": normal(channels, half_state, dtype=torch.complex64),
        "B": normal(channels, half_state, dtype=torch.complex64),
        "D": normal(channels),
        "initial_state": normal(batch, channels, half_state, dtype=torch.complex64),
    }
    return {name: x for name, x in inputs.items() if name not in without}


def wide(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.to(torch.complex128 if x.is_complex() else torch.float64) for name, x in inputs.items()}


def assert_near(name: str, actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    expected = expected.detach()
    error = float((actual.detach().to(expected.dtype) - expected).norm() / expected.norm())
    assert error <= TOLERANCE[dtype], f"{name}: relative error {error:.1e}"


def assert_like_the_specification(inputs: dict[str, Tensor]) -> None:
    """y, the final state with and without a gradient, and every gradient."""
    dtype = inputs["u"].dtype
    _, final_state = run(**inputs, return_final_state=True)
    _, expected_state = reference(**wide(inputs), return_final_state=True)
    assert_near("final state", final_state, expected_state, dtype)
    for wants_state in (False, True):
        actual = outputs_and_gradients(partial(run, return_final_state=wants_state), inputs)
        expected = outputs_and_gradients(partial(reference, return_final_state=wants_state), wide(inputs))
        for name in expected:
            assert_near(name, actual[name], expected[name], dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 63, 64, 65, 511, 513, 1023, 1024, 1025, 2049])
def test_every_length_and_dtype_agrees_with_the_specification(length: int, dtype: torch.dtype) -> None:
    assert_like_the_specification(make(2, length, 20, 32, dtype))


@pytest.mark.parametrize("channels", [1, 3, 4, 15, 16, 17, 33])
def test_any_number_of_channels(channels: int) -> None:
    assert_like_the_specification(make(2, 70, channels, 32))


@pytest.mark.parametrize("half_state", [1, 2, 7, 8, 9, 16, 17, 31, 33, 64])
def test_any_size_of_the_state(half_state: int) -> None:
    assert_like_the_specification(make(2, 70, 20, half_state))


@pytest.mark.parametrize("without", [*((name,) for name in OPTIONAL), OPTIONAL], ids=str)
def test_optional_inputs_can_be_left_out(without: tuple[str, ...]) -> None:
    assert_like_the_specification(make(2, 70, 20, 32, without=without))


@pytest.mark.parametrize("warps", [4, 8])
@pytest.mark.parametrize("num_segments", [1, 2, 5])
def test_every_plan_computes_the_same(warps: int, num_segments: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "plan", lambda *_: cuda.Plan(warps, num_segments, warps, num_segments))
    assert_like_the_specification(make(2, 4500, 20, 16))


def test_slices_of_a_projection_and_transposed_views_are_read_in_place() -> None:
    inputs = make(2, 100, 24, 16)
    expected = outputs_and_gradients(run, inputs)
    sliced = torch.cat([inputs["u"], inputs["u"]], dim=-1)[..., 24:]
    shifted = torch.cat([inputs["u"][..., :1], inputs["u"]], dim=-1)[..., 1:]
    for u in (sliced, shifted, inputs["u"].mT.contiguous().mT):
        actual = outputs_and_gradients(run, {**inputs, "u": u})
        for name in expected:
            assert_near(name, actual[name], wide({name: expected[name]})[name], torch.float32)


def test_a_state_carried_over_equals_one_long_call() -> None:
    inputs = make(2, 3000, 24, 16)
    y, final_state = run(**inputs, return_final_state=True)
    pieces, state = [], inputs["initial_state"]
    for start, stop in ((0, 77), (77, 78), (78, 2126), (2126, 3000)):
        part = {**inputs, "u": inputs["u"][:, start:stop], "initial_state": state}
        piece, state = run(**part, return_final_state=True)
        pieces.append(piece)
    torch.testing.assert_close(torch.cat(pieces, dim=1), y, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(state, final_state, rtol=1e-4, atol=1e-4)


def test_packed_documents_do_not_see_each_other() -> None:
    inputs = make(2, 500, 20, 16)
    starts = torch.rand(2, 500, device=DEVICE) < 0.02
    packed = partial(s4d_conv, sequence_starts=starts, return_final_state=True)
    actual = outputs_and_gradients(partial(packed, implementation="cuda"), inputs)
    expected = outputs_and_gradients(partial(packed, implementation="reference"), wide(inputs))
    for name in expected:
        assert_near(name, actual[name], expected[name], torch.float32)


def test_gradients_repeat_bit_for_bit() -> None:
    inputs = make(4, 3000, 100, 32, torch.bfloat16)
    first, second = outputs_and_gradients(run, inputs), outputs_and_gradients(run, inputs)
    for name in first:
        assert torch.equal(first[name], second[name]), name


def test_auto_takes_the_kernels() -> None:
    with receipt() as ran:
        s4d_conv(**make(1, 20, 4, 4))
    assert ran == {"s4d_conv": {"cuda"}}


@pytest.mark.parametrize("without", [(), OPTIONAL], ids=["everything", "the least"])
def test_torch_accepts_the_operator(without: tuple[str, ...]) -> None:
    inputs = make(2, 20, 8, 4, without=without)
    names = ("u", "delta", "A", "C", "B", "D", "initial_state")
    leaves = [inputs[name].requires_grad_() if name in inputs else None for name in names]
    torch.library.opcheck(torch.ops.seqsuite.s4d_conv_cuda.default, (*leaves, False, True))


def test_a_cuda_graph_replays_on_new_inputs() -> None:
    inputs, others = make(2, 2000, 24, 16), make(2, 2001, 24, 16)
    run(**inputs)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = run(**inputs)
    inputs["u"].copy_(others["u"][:, :2000])
    graph.replay()
    torch.testing.assert_close(y, run(**inputs), rtol=0, atol=0)


def test_offsets_beyond_32_bits() -> None:
    length, channels = 2**17, 2**14 + 2**12
    if torch.cuda.mem_get_info()[0] < 40 * 2**30:
        pytest.skip("needs 40 GiB of free GPU memory")
    u = torch.zeros(1, length, channels, device=DEVICE, dtype=torch.bfloat16)
    u[:, -3] = 1
    parameters = make(1, 1, channels, 1, without=("u", *OPTIONAL))
    y = run(u.requires_grad_(), **parameters)
    short = reference(u.detach()[:, -3:].double(), **wide(parameters))
    assert bool((y[:, :-3] == 0).all())
    assert_near("y", y[:, -3:], short, torch.bfloat16)
    (du,) = torch.autograd.grad(y[:, -3].sum(), [u])
    assert bool((du[:, -2:] == 0).all()) and bool((du[:, -3] != 0).all())
