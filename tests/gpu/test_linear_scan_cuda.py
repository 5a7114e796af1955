"""The CUDA linear scan, minGRU and minLSTM: against the specification in float64, and as citizens of torch."""

# B batch, L length, D channels

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.linear_scan import cuda, linear_scan, min_gru_scan, min_lstm_scan

pytestmark = pytest.mark.gpu

DEVICE = torch.device("cuda")
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
NAMES = {
    linear_scan: ("a", "b"),
    min_gru_scan: ("update", "candidate"),
    min_lstm_scan: ("forget", "input", "candidate"),
}

every_scan = pytest.mark.parametrize("scan", NAMES, ids=lambda scan: scan.__name__)


@pytest.fixture(autouse=True)
def _needs_a_gpu() -> None:
    if not torch.cuda.is_available() or cuda.unavailable(DEVICE):
        pytest.skip(f"no GPU to test on: {cuda.unavailable(DEVICE)}")


def make(
    scan: Callable[..., Any], batch: int, length: int, channels: int, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    generator = torch.Generator(DEVICE).manual_seed(length * 1009 + channels)
    shape = (batch, length, channels)
    inputs = {name: torch.randn(shape, generator=generator, device=DEVICE).to(dtype) for name in NAMES[scan]}
    if scan is linear_scan:
        inputs["a"] = (1.96 * torch.rand(shape, generator=generator, device=DEVICE) - 0.98).to(dtype)
    return inputs | {"initial_state": torch.randn(batch, channels, generator=generator, device=DEVICE)}


def run(
    scan: Callable[..., Any], inputs: dict[str, Tensor], implementation: str = "cuda", **options: Any
) -> dict[str, Tensor]:
    """h, the final state and every gradient by name, of a loss that looks at both outputs."""
    is_reference = implementation == "reference"
    leaves = {name: (x.double() if is_reference else x).detach().requires_grad_() for name, x in inputs.items()}
    outputs = scan(**leaves, **options, return_final_state=True, implementation=implementation)
    generator = torch.Generator(DEVICE).manual_seed(1)
    weights = [torch.randn(x.shape, generator=generator, device=DEVICE) for x in outputs]
    loss = sum((x * weight.to(x.dtype)).sum() for x, weight in zip(outputs, weights, strict=True))
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    return {"h": outputs[0].detach(), "final_state": outputs[1].detach(), **dict(zip(leaves, gradients, strict=True))}


def assert_like_the_specification(scan: Callable[..., Any], inputs: dict[str, Tensor], **options: Any) -> None:
    got, wanted = run(scan, inputs, **options), run(scan, inputs, "reference", **options)
    tolerance = TOLERANCE[next(iter(inputs.values())).dtype]
    for name, expected in wanted.items():
        error = float((got[name].double() - expected).norm() / expected.norm().clamp_min(1e-30))
        assert error <= tolerance, f"{name}: relative error {error:.1e}"


@every_scan
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("length", [1, 63, 64, 65, 128, 129, 500])
def test_every_length_and_dtype_agrees_with_the_specification(
    scan: Callable[..., Any], length: int, dtype: torch.dtype
) -> None:
    assert_like_the_specification(scan, make(scan, 2, length, 70, dtype))


@pytest.mark.parametrize("channels", [1, 2, 63, 64, 65, 300])
def test_any_number_of_channels(channels: int) -> None:
    assert_like_the_specification(linear_scan, make(linear_scan, 2, 150, channels))


def test_a_long_sequence_of_few_channels_hands_its_state_from_group_to_group() -> None:
    # Slow decay, so that what is handed on matters.
    inputs = make(linear_scan, 1, 20_000, 6)
    inputs["a"] = 1 - 1e-3 * inputs["a"].abs()
    assert_like_the_specification(linear_scan, inputs)


@every_scan
def test_documents_do_not_see_each_other(scan: Callable[..., Any]) -> None:
    inputs = make(scan, 2, 700, 70)
    starts = torch.rand(2, 700, device=DEVICE) < 0.02
    assert_like_the_specification(scan, inputs, sequence_starts=starts)
    inputs["candidate" if scan is not linear_scan else "b"][:, 0] = torch.nan
    starts[:, 1] = True
    h = scan(**inputs, sequence_starts=starts, implementation="cuda")
    assert bool(h[:, 0].isnan().all()) and not bool(h[:, 1:].isnan().any())


@pytest.mark.parametrize("scan", [min_gru_scan, min_lstm_scan], ids=lambda scan: scan.__name__)
def test_the_candidate_may_be_taken_as_it_is(scan: Callable[..., Any]) -> None:
    assert_like_the_specification(scan, make(scan, 2, 150, 70), positive_candidate=False)


@pytest.mark.parametrize("size", [100.0, 1e4])
def test_huge_projections_overflow_nowhere(size: float) -> None:
    values = torch.tensor([-size, -1.0, 0.0, 1.0, size], device=DEVICE)
    columns = torch.cartesian_prod(values, values, values).T.reshape(3, 1, -1, 5)
    assert_like_the_specification(min_lstm_scan, dict(zip(NAMES[min_lstm_scan], columns, strict=True)))
    assert_like_the_specification(min_gru_scan, dict(zip(NAMES[min_gru_scan], columns[1:], strict=True)))


def test_slices_of_a_projection_and_transposed_views_are_read_in_place() -> None:
    inputs = make(min_lstm_scan, 2, 150, 24, torch.bfloat16)
    plain = run(min_lstm_scan, inputs)
    names = NAMES[min_lstm_scan]
    slices = torch.cat([inputs[name] for name in names], dim=-1).chunk(3, dim=-1)
    odd_slices = torch.cat([inputs["forget"][..., :1], *(inputs[name] for name in names)], dim=-1).split(
        [1, 24, 24, 24], -1
    )
    transposed = [inputs[name].mT.contiguous().mT for name in names]
    for others in (slices, odd_slices[1:], transposed):
        got = run(min_lstm_scan, {**inputs, **dict(zip(names, others, strict=True))})
        for name, expected in plain.items():
            assert torch.equal(got[name], expected), name


def test_dtypes_may_be_mixed() -> None:
    inputs = make(min_lstm_scan, 2, 150, 24, torch.bfloat16)
    assert_like_the_specification(min_lstm_scan, {**inputs, "input": inputs["input"].float()})


@every_scan
def test_results_repeat_bit_for_bit(scan: Callable[..., Any]) -> None:
    inputs = make(scan, 8, 9000, 320, torch.bfloat16)
    first, second = run(scan, inputs), run(scan, inputs)
    for name in first:
        assert torch.equal(first[name], second[name]), name


def test_a_state_carried_over_equals_one_long_scan() -> None:
    inputs = make(linear_scan, 2, 500, 24)
    state = inputs.pop("initial_state")
    h, final_state = linear_scan(**inputs, initial_state=state, return_final_state=True, implementation="cuda")
    pieces = []
    for part in (slice(0, 177), slice(177, 178), slice(178, 500)):
        piece = {name: x[:, part] for name, x in inputs.items()}
        h_piece, state = linear_scan(**piece, initial_state=state, return_final_state=True, implementation="cuda")
        pieces.append(h_piece)
    torch.testing.assert_close(torch.cat(pieces, dim=1), h, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state, final_state, rtol=1e-5, atol=1e-5)


def test_torch_accepts_the_operator() -> None:
    operator = torch.ops.seqsuite.linear_scan_cuda.default
    forget, input_, candidate, state = (x.requires_grad_() for x in make(min_lstm_scan, 2, 20, 8).values())
    starts = torch.rand(2, 20, device=DEVICE) < 0.2
    torch.library.opcheck(operator, (forget, input_, candidate, state, starts, cuda._MIN_LSTM, True))
    torch.library.opcheck(operator, (forget, candidate, None, None, None, cuda._LINEAR, False))


def test_a_cuda_graph_replays_on_new_inputs() -> None:
    inputs, others = make(linear_scan, 2, 9000, 24), make(linear_scan, 2, 9001, 24)
    linear_scan(**inputs, implementation="cuda")
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        h = linear_scan(**inputs, implementation="cuda")
    inputs["b"].copy_(others["b"][:, :9000])
    graph.replay()
    assert torch.equal(h, linear_scan(**inputs, implementation="cuda"))


def test_offsets_beyond_32_bits() -> None:
    length, channels = 2**17, 2**14 + 2**12
    if torch.cuda.mem_get_info()[0] < 40 * 2**30:
        pytest.skip("needs 40 GiB of free GPU memory")
    b = torch.zeros(1, length, channels, device=DEVICE, dtype=torch.bfloat16)
    b[:, -1] = 1
    a = torch.full_like(b, 0.5).requires_grad_()
    h = linear_scan(a, b.requires_grad_(), implementation="cuda")
    assert bool((h[:, -1] == 1).all()) and bool((h[:, :-1] == 0).all())
    (db,) = torch.autograd.grad(h[:, -1].sum(), [b])
    assert bool((db[:, -1] == 1).all()) and bool((db[:, -2] == 0.5).all())
