"""The CUDA selective scan against the specification in float64, and as a citizen of torch."""

# B batch, L length, D channels, N state

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from kernels import nvrtc
from kernels.selective_scan import cuda, reference

pytestmark = pytest.mark.gpu

DEVICE = torch.device("cuda")
TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")
OPTIONAL = ("D", "z", "delta_bias", "initial_state", "sequence_starts")


@pytest.fixture(autouse=True)
def _needs_a_gpu() -> None:
    if not torch.cuda.is_available() or cuda.unavailable(DEVICE):
        pytest.skip(f"no GPU to test on: {cuda.unavailable(DEVICE)}")


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
    return {name: None if name in without else x for name, x in inputs.items()}


def run(implementation: Any, inputs: dict[str, Any], softplus: bool, double: bool = False) -> dict[str, Tensor]:
    """y, the final state and every gradient by name, of a loss that looks at both outputs."""
    leaves = {name: inputs[name] for name in NAMES if inputs[name] is not None}
    leaves = {name: (x.double() if double else x).detach().requires_grad_() for name, x in leaves.items()}
    y, final = implementation.selective_scan(
        *(leaves.get(name) for name in NAMES[:8]), softplus, leaves.get("initial_state"), inputs["sequence_starts"]
    )
    generator = torch.Generator(DEVICE).manual_seed(1)
    weights = [torch.randn(x.shape, generator=generator, device=DEVICE) for x in (y, final)]
    loss = sum((x * weight.to(x.dtype)).sum() for x, weight in zip((y, final), weights, strict=True))
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    return {"y": y.detach(), "final_state": final.detach(), **dict(zip(leaves, gradients, strict=True))}


def assert_like_the_specification(inputs: dict[str, Any], softplus: bool = True) -> None:
    got, wanted = run(cuda, inputs, softplus), run(reference, inputs, softplus, double=True)
    for name, expected in wanted.items():
        error = float((got[name].double() - expected).norm() / expected.norm().clamp_min(1e-30))
        assert error <= TOLERANCE[inputs["u"].dtype], f"{name}: relative error {error:.1e}"


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("length", [1, 7, 8, 9, 47, 48, 49, 63, 64, 65, 300])
def test_every_length_and_dtype_agrees_with_the_specification(length: int, dtype: torch.dtype) -> None:
    assert_like_the_specification(make(2, length, 24, 16, dtype))


@pytest.mark.parametrize("channels", [1, 2, 7, 8, 9, 31, 33, 130])
def test_any_number_of_channels(channels: int) -> None:
    assert_like_the_specification(make(2, 70, channels, 16, torch.float32))


@pytest.mark.parametrize("state", [1, 2, 3, 4, 5, 8, 9, 15, 16, 17, 32, 40, 64, 256])
def test_any_number_of_states(state: int) -> None:
    assert_like_the_specification(make(2, 70, 20, state, torch.float32))


@pytest.mark.parametrize("without", [*itertools.combinations(OPTIONAL, 1), OPTIONAL, ("sequence_starts", "z")], ids=str)
@pytest.mark.parametrize("softplus", [False, True])
def test_optional_inputs_can_be_left_out(without: tuple[str, ...], softplus: bool) -> None:
    inputs = make(2, 70, 20, 16, torch.float32, without)
    if not softplus:
        inputs["delta"] = inputs["delta"].abs() * 0.1
        if inputs["delta_bias"] is not None:
            inputs["delta_bias"] = inputs["delta_bias"].abs() * 0.1
    assert_like_the_specification(inputs, softplus)


@pytest.mark.parametrize("segments", [1, 2, 4, 8])
@pytest.mark.parametrize("backward", [(4, 1, 1, 2, 3), (8, 1, 1, 1, 1), (4, 2, 2, 1, 3), (4, 1, 2, 2, 1)])
def test_every_plan_computes_the_same(
    segments: int, backward: tuple[int, int, int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    if backward[2] > 1 and torch.cuda.get_device_capability(DEVICE) < (9, 0):
        pytest.skip("the GPU has no thread-block clusters")
    plan = cuda.Plan(segments, max(1, 4 // segments), 1, *backward)
    monkeypatch.setattr(cuda, "plan", lambda *_: plan)
    assert_like_the_specification(make(2, 301, 100, 16, torch.float32))


def test_a_sequence_that_goes_backward_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_PARTS_BUDGET_BYTES", 1)
    assert_like_the_specification(make(2, 301, 100, 16, torch.float32))


def test_many_more_channels_than_the_gpu_has_warps() -> None:
    assert_like_the_specification(make(9, 33, 4096, 16, torch.bfloat16))


def test_slices_of_a_projection_and_transposed_views_are_read_in_place() -> None:
    inputs = make(2, 100, 24, 16, torch.bfloat16)
    plain = run(cuda, inputs, True)
    u, z = torch.cat([inputs["u"], inputs["z"]], dim=-1).chunk(2, dim=-1)
    _, B, C = torch.cat([inputs["B"][..., :4], inputs["B"], inputs["C"]], dim=-1).split([4, 16, 16], dim=-1)
    sliced = run(cuda, {**inputs, "u": u, "z": z, "B": B, "C": C}, True)
    transposed = {name: inputs[name].mT.contiguous().mT for name in ("u", "delta", "z", "B", "C")}
    across = run(cuda, {**inputs, **transposed}, True)
    for name, expected in plain.items():
        for other in (sliced, across):
            error = float((other[name].double() - expected.double()).norm() / expected.double().norm())
            assert error <= TOLERANCE[torch.bfloat16], f"{name}: relative error {error:.1e}"


def test_dtypes_may_be_mixed() -> None:
    inputs = make(2, 70, 20, 16, torch.bfloat16)
    assert_like_the_specification({**inputs, "delta": inputs["delta"].float(), "C": inputs["C"].half()})


def test_a_state_carried_over_equals_one_long_scan() -> None:
    inputs = make(2, 200, 24, 16, torch.float32, without=("sequence_starts",))
    whole = run(cuda, inputs, True)
    pieces, state = [], inputs["initial_state"]
    for start, stop in ((0, 77), (77, 78), (78, 200)):
        part = {name: x[:, start:stop] if name in ("u", "delta", "B", "C", "z") else x for name, x in inputs.items()}
        piece = run(cuda, {**part, "initial_state": state}, True)
        pieces.append(piece["y"])
        state = piece["final_state"]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole["y"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state, whole["final_state"], rtol=1e-5, atol=1e-5)


def test_gradients_repeat_bit_for_bit() -> None:
    inputs = make(4, 500, 300, 16, torch.bfloat16)
    first, second = run(cuda, inputs, True), run(cuda, inputs, True)
    for name in first:
        assert torch.equal(first[name], second[name]), name


@pytest.mark.parametrize("without", [(), OPTIONAL], ids=["everything", "the least"])
def test_torch_accepts_the_operator(without: tuple[str, ...]) -> None:
    inputs = make(2, 20, 8, 4, torch.float32, without)
    leaves = [None if inputs[name] is None else inputs[name].requires_grad_() for name in NAMES]
    torch.library.opcheck(
        torch.ops.seqsuite.selective_scan_cuda.default, (*leaves, inputs["sequence_starts"], True, True)
    )


def test_a_compiled_function_computes_the_same() -> None:
    inputs = make(2, 70, 20, 16, torch.float32)

    class Compiled:
        selective_scan = staticmethod(torch.compile(cuda.selective_scan, backend="aot_eager", fullgraph=True))

    eager, compiled = run(cuda, inputs, True), run(Compiled, inputs, True)
    for name, expected in eager.items():
        torch.testing.assert_close(compiled[name], expected, rtol=0, atol=0, msg=name)


def test_fake_tensors_show_what_a_call_returns() -> None:
    inputs = make(2, 70, 20, 16, torch.bfloat16)
    with FakeTensorMode() as mode:
        fakes = {name: mode.from_tensor(x) for name, x in inputs.items()}
        y, final = cuda.selective_scan(
            *(fakes[name] for name in NAMES[:8]), True, fakes["initial_state"], fakes["sequence_starts"]
        )
    assert (y.shape, y.dtype) == ((2, 70, 20), torch.bfloat16)
    assert (final.shape, final.dtype) == ((2, 20, 16), torch.float32)


def test_a_cuda_graph_replays_on_new_inputs() -> None:
    inputs, others = make(2, 100, 24, 16, torch.float32), make(2, 101, 24, 16, torch.float32)
    arguments = [inputs[name] for name in NAMES[:8]]
    cuda.selective_scan(*arguments, True, None, None)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y, _ = cuda.selective_scan(*arguments, True, None, None)
    inputs["u"].copy_(others["u"][:, :100])
    graph.replay()
    expected, _ = cuda.selective_scan(*arguments, True, None, None)
    torch.testing.assert_close(y, expected, rtol=0, atol=0)


def test_offsets_beyond_32_bits() -> None:
    length, channels = 2**17, 2**14 + 2**12
    if torch.cuda.mem_get_info()[0] < 40 * 2**30:
        pytest.skip("needs 40 GiB of free GPU memory")
    u = torch.zeros(1, length, channels, device=DEVICE, dtype=torch.bfloat16)
    u[:, -1] = 1
    delta = torch.ones_like(u)
    A = -torch.ones(channels, 1, device=DEVICE)
    ones = torch.ones(1, length, 1, device=DEVICE, dtype=torch.bfloat16)
    leaves = [x.requires_grad_() for x in (u, delta)]
    y, _ = cuda.selective_scan(*leaves, A, ones, ones, None, None, None, False, None, None)
    assert bool((y[:, -1] == 1).all()) and bool((y[:, :-1] == 0).all())
    (du,) = torch.autograd.grad(y[:, -1].sum(), [u])
    assert bool((du[:, -1] == 1).all()) and float(du[0, -2, -1]) == pytest.approx(0.3679, rel=1e-2)


def test_steps_that_lie_beyond_32_bits_apart() -> None:
    if torch.cuda.mem_get_info()[0] < 10 * 2**30:
        pytest.skip("needs 10 GiB of free GPU memory")
    inputs = make(1, 3, 8, 16, torch.bfloat16)
    plain = run(cuda, inputs, True)
    stride = 2**31 + 8
    apart = torch.empty(2 * stride + 8, device=DEVICE, dtype=torch.bfloat16).as_strided((1, 3, 8), (1, stride, 1))
    apart.copy_(inputs["u"])
    far = run(cuda, {**inputs, "u": apart}, True)
    for name, expected in plain.items():
        torch.testing.assert_close(far[name], expected, msg=name)


def test_a_damaged_cache_entry_is_compiled_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source, options = 'extern "C" __global__ void nothing() {}', ["--gpu-architecture=sm_80"]
    code = nvrtc.cached_code(source, options)
    (entry,) = nvrtc.cache_directory().glob("*.cubin")
    entry.write_bytes(entry.read_bytes()[:-1])
    assert nvrtc.cached_code(source, options) == code
    assert not list(nvrtc.cache_directory().glob("*.tmp"))


def test_a_compilation_error_shows_the_log() -> None:
    with pytest.raises(nvrtc.CompilationError, match="undeclared_thing"):
        nvrtc.compile_source("__global__ void broken() { undeclared_thing; }", ["--gpu-architecture=sm_80"])
