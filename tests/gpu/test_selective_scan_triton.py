"""The Triton selective scan on a GPU: against the specification in float64, and as a citizen of torch."""

# B batch, L length, D channels, N state

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.dispatch import ImplementationUnavailable, receipt
from kernels.selective_scan import OPERATION, selective_scan, triton_scan

pytestmark = pytest.mark.gpu

DEVICE = torch.device("cuda")
TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")
OPTIONAL = ("D", "z", "delta_bias", "initial_state", "sequence_starts")


@pytest.fixture(autouse=True)
def _needs_a_gpu() -> None:
    if not torch.cuda.is_available() or triton_scan.unavailable(DEVICE):
        pytest.skip(f"no GPU to test on: {triton_scan.unavailable(DEVICE)}")


def make(
    batch: int, length: int, channels: int, state: int, dtype: torch.dtype, without: tuple[str, ...] = ()
) -> dict[str, Any]:
    generator = torch.Generator(DEVICE).manual_seed(length * 1009 + channels * 31 + state)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, device=DEVICE)

    inputs = {
        "u": normal(batch, length, channels).to(dtype),
        "delta": (normal(batch, length, channels) - 2).to(dtype),
        "A": -torch.exp(normal(channels, state)),
        "B": normal(batch, length, state).to(dtype),
        "C": normal(batch, length, state).to(dtype),
        "D": normal(channels),
        "z": normal(batch, length, channels).to(dtype),
        "delta_bias": normal(channels),
        "initial_state": normal(batch, channels, state),
        "sequence_starts": torch.rand(batch, length, generator=generator, device=DEVICE) < 0.05,
    }
    return {name: x for name, x in inputs.items() if name not in without}


def run(
    implementation: str, inputs: Mapping[str, Tensor], softplus: bool = True, double: bool = False
) -> dict[str, Tensor]:
    """y, the final state and every gradient by name, of a loss that looks at both outputs."""
    leaves = {name: inputs[name] for name in NAMES if name in inputs}
    leaves = {name: (x.double() if double else x).detach().requires_grad_() for name, x in leaves.items()}
    y, final = selective_scan(
        **leaves,
        delta_softplus=softplus,
        sequence_starts=inputs.get("sequence_starts"),
        return_final_state=True,
        implementation=implementation,
    )
    generator = torch.Generator(DEVICE).manual_seed(1)
    weights = [torch.randn(x.shape, generator=generator, device=DEVICE) for x in (y, final)]
    loss = sum((x * weight.to(x.dtype)).sum() for x, weight in zip((y, final), weights, strict=True))
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    return {"y": y.detach(), "final_state": final.detach(), **dict(zip(leaves, gradients, strict=True))}


def assert_like_the_specification(inputs: Mapping[str, Tensor], softplus: bool = True) -> None:
    got, wanted = run("triton", inputs, softplus), run("reference", inputs, softplus, double=True)
    for name, expected in wanted.items():
        error = float((got[name].double() - expected).norm() / expected.norm().clamp_min(1e-30))
        assert error <= TOLERANCE[inputs["u"].dtype], f"{name}: relative error {error:.1e}"


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("length", [1, 4, 127, 128, 129, 300])
def test_every_length_and_dtype_agrees_with_the_specification(length: int, dtype: torch.dtype) -> None:
    assert_like_the_specification(make(2, length, 40, 16, dtype))


@pytest.mark.parametrize("channels", [1, 7, 33, 130])
def test_any_number_of_channels(channels: int) -> None:
    assert_like_the_specification(make(2, 140, channels, 16, torch.float32))


@pytest.mark.parametrize("state", [1, 2, 3, 8, 17, 32, 64, 256])
def test_any_number_of_states(state: int) -> None:
    assert_like_the_specification(make(2, 140, 20, state, torch.float32))


@pytest.mark.parametrize(
    "without", [("z",), ("D", "delta_bias"), ("initial_state", "sequence_starts"), OPTIONAL], ids=str
)
@pytest.mark.parametrize("softplus", [False, True])
def test_optional_inputs_can_be_left_out(without: tuple[str, ...], softplus: bool) -> None:
    inputs = make(2, 140, 20, 16, torch.float32, without)
    if not softplus:
        inputs["delta"] = inputs["delta"].abs() * 0.1
        if "delta_bias" in inputs:
            inputs["delta_bias"] = inputs["delta_bias"].abs() * 0.1
    assert_like_the_specification(inputs, softplus)


def test_a_sequence_that_goes_backward_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_scan, "_PARTS_BUDGET_BYTES", 1)
    assert_like_the_specification(make(2, 601, 100, 16, torch.float32))


def test_few_chunks_and_many_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = make(2, 700, 100, 16, torch.float32)
    for chunk in (128, 256, 1024):
        monkeypatch.setattr(triton_scan, "forward_chunk", lambda *_, chunk=chunk: chunk)
        assert_like_the_specification(inputs)


def test_slices_of_a_projection_and_transposed_views_are_read_in_place() -> None:
    inputs = make(2, 140, 24, 16, torch.bfloat16)
    plain = run("triton", inputs)
    u, z = torch.cat([inputs["u"], inputs["z"]], dim=-1).chunk(2, dim=-1)
    _, B, C = torch.cat([inputs["B"][..., :4], inputs["B"], inputs["C"]], dim=-1).split([4, 16, 16], dim=-1)
    sliced = run("triton", {**inputs, "u": u, "z": z, "B": B, "C": C})
    transposed = {name: inputs[name].mT.contiguous().mT for name in ("u", "delta", "z", "B", "C")}
    across = run("triton", {**inputs, **transposed})
    for name, expected in plain.items():
        for other in (sliced, across):
            torch.testing.assert_close(other[name], expected, rtol=2e-2, atol=2e-2 * float(expected.abs().max()))


def test_dtypes_may_be_mixed() -> None:
    inputs = make(2, 140, 20, 16, torch.bfloat16)
    assert_like_the_specification({**inputs, "delta": inputs["delta"].float(), "C": inputs["C"].half()})


def test_gradients_repeat_bit_for_bit() -> None:
    inputs = make(4, 500, 300, 16, torch.bfloat16)
    first, second = run("triton", inputs), run("triton", inputs)
    for name in first:
        assert torch.equal(first[name], second[name]), name


@pytest.mark.parametrize("without", [(), OPTIONAL], ids=["everything", "the least"])
def test_torch_accepts_the_operator(without: tuple[str, ...]) -> None:
    inputs = make(2, 20, 8, 4, torch.float32, without)
    leaves = [inputs[name].requires_grad_() if name in inputs else None for name in NAMES[:8]]
    state = inputs.get("initial_state")
    state = None if state is None else state.mT.contiguous().requires_grad_()
    OPERATION.choose("triton", DEVICE)
    operator = torch.ops.seqsuite.selective_scan_triton.default
    torch.library.opcheck(operator, (*leaves, state, inputs.get("sequence_starts"), True, True))


def test_it_can_be_compiled_with_what_surrounds_it() -> None:
    inputs = make(2, 140, 24, 16, torch.float32, without=("sequence_starts",))
    scan = partial(selective_scan, implementation="triton", delta_softplus=True)
    expected = scan(**inputs)
    torch.testing.assert_close(torch.compile(scan)(**inputs), expected, rtol=1e-5, atol=1e-5)


def test_offsets_beyond_32_bits() -> None:
    length, channels = 2**17, 2**14 + 2**12
    if torch.cuda.mem_get_info()[0] < 40 * 2**30:
        pytest.skip("needs 40 GiB of free GPU memory")
    u = torch.zeros(1, length, channels, device=DEVICE, dtype=torch.bfloat16)
    u[:, -1] = 1
    ones = torch.ones(1, length, 1, device=DEVICE, dtype=torch.bfloat16)
    leaves = [x.requires_grad_() for x in (u, torch.ones_like(u))]
    y = selective_scan(*leaves, -torch.ones(channels, 1, device=DEVICE), ones, ones, implementation="triton")
    assert bool((y[:, -1] == 1).all()) and bool((y[:, :-1] == 0).all())
    (du,) = torch.autograd.grad(y[:, -1].sum(), [u])
    assert bool((du[:, -1] == 1).all()) and float(du[0, -2, -1]) == pytest.approx(0.3679, rel=1e-2)


def test_auto_prefers_the_cuda_kernels_and_takes_triton_where_they_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = make(1, 4, 3, 2, torch.float32, OPTIONAL)
    cuda = OPERATION.module("cuda")
    monkeypatch.setattr(cuda, "unavailable", lambda device: "the test says so")
    with receipt() as ran:
        selective_scan(**inputs)
    assert ran == {"selective_scan": {"triton"}}
    with pytest.raises(ImplementationUnavailable, match="the test says so"):
        selective_scan(**inputs, implementation="cuda")
