"""Norm, loss and training step on a GPU: against the specifications in float64, and as citizens of torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from kernels.cross_entropy import chunks, linear_cross_entropy, triton_chunked
from kernels.dispatch import receipt
from kernels.embedding import embedding
from kernels.rms_norm import add_rms_norm, triton_norm
from suite.registry import Registry
from suite.spec import Budget, ShellSettings
from suite.trainee import Learner
from suite.training_steps import TrainingSteps
from tests.kernels.comparison import assert_agrees

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda")
EPSILON = 1e-5


@pytest.fixture(autouse=True)
def _needs_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU to test on")


def norm_inputs(*shape: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    x, y = (torch.randn(*shape, device=CUDA, dtype=dtype) for _ in range(2))
    return {"x": x, "y": y, "weight": torch.randn(shape[-1], device=CUDA)}


def loss_inputs(rows: int, vocab: int, width: int = 64) -> tuple[dict[str, Tensor], Tensor]:
    inputs = {"x": torch.randn(rows, width, device=CUDA), "weight": torch.randn(vocab, width, device=CUDA) / width**0.5}
    targets = torch.randint(vocab, (rows,), device=CUDA)
    targets[1::5] = -100
    return inputs, targets


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [1, 64, 100, 768, 1024, 5000, 16384])
@pytest.mark.parametrize("rows", [1, 3, 700])
def test_the_norm_agrees_with_its_reference(rows: int, width: int, dtype: torch.dtype) -> None:
    norm = partial(add_rms_norm, epsilon=EPSILON)
    assert_agrees(
        partial(norm, implementation="triton"),
        partial(norm, implementation="reference"),
        norm_inputs(rows, width, dtype=dtype),
        dtype,
    )


def test_an_input_may_begin_anywhere_in_memory() -> None:
    aligned = norm_inputs(33, 64)
    shifted = {name: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape) for name, x in aligned.items()}
    assert all(x.data_ptr() % 16 for x in shifted.values())
    norm = partial(add_rms_norm, epsilon=EPSILON)
    for inputs in (aligned, shifted, aligned):
        assert_agrees(
            partial(norm, implementation="triton"), partial(norm, implementation="reference"), inputs, torch.float32
        )


def test_the_norms_gradients_repeat_bit_for_bit() -> None:
    inputs = {name: tensor.requires_grad_() for name, tensor in norm_inputs(5000, 300).items()}

    def gradients() -> tuple[Tensor, ...]:
        total, normed = add_rms_norm(**inputs, epsilon=EPSILON)
        return torch.autograd.grad((total.square() + normed.square()).sum(), list(inputs.values()))

    for first, second in zip(gradients(), gradients(), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("implementation", ["triton", "chunked"])
@pytest.mark.parametrize(("rows", "vocab"), [(1, 1), (300, 5), (129, 64), (700, 1001), (400, 50_277)])
def test_the_loss_agrees_with_its_reference(
    rows: int, vocab: int, implementation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "_CHUNK_BYTES", 1)
    inputs, targets = loss_inputs(rows, vocab)
    loss = partial(linear_cross_entropy, targets=targets)
    assert_agrees(
        partial(loss, implementation=implementation), partial(loss, implementation="whole"), inputs, torch.float32
    )


def test_under_autocast_the_weights_gradient_is_added_up_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, targets = loss_inputs(4096, 1000)
    leaves = [tensor.requires_grad_() for tensor in inputs.values()]

    def gradient(chunk_bytes: int) -> Tensor:
        monkeypatch.setattr(chunks, "_CHUNK_BYTES", chunk_bytes)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = linear_cross_entropy(*leaves, targets, implementation="triton")
        return torch.autograd.grad(loss, leaves)[1]

    many_chunks, one_chunk = gradient(1), gradient(2**30)
    assert float((many_chunks - one_chunk).norm()) < 1e-5 * float(one_chunk.norm())


def test_the_loss_never_holds_all_logits() -> None:
    rows, vocab = 16_384, 50_277
    inputs, targets = loss_inputs(rows, vocab)
    leaves = [tensor.requires_grad_() for tensor in inputs.values()]
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with torch.autocast("cuda", dtype=torch.bfloat16), receipt() as ran:
        loss = linear_cross_entropy(*leaves, targets)
    torch.autograd.grad(loss, leaves)
    assert ran == {"cross_entropy": {"triton"}}
    assert torch.cuda.max_memory_allocated() - before < rows * vocab * 2 / 2


def _norm_and_loss(x: Tensor, y: Tensor, weight: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    _, normed = triton_norm.add_rms_norm(x, y, weight, EPSILON, x.dtype)
    return triton_chunked.linear_cross_entropy(normed, head, targets, -100)


def _training(inputs: dict[str, Tensor], targets: Tensor, run: Callable[..., Tensor]) -> list[Tensor]:
    leaves = list(inputs.values())
    loss = run(*leaves, targets)
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


def _norm_and_loss_inputs() -> tuple[dict[str, Tensor], Tensor]:
    losses, targets = loss_inputs(300, 1000)
    inputs = norm_inputs(300, 64) | {"head": losses["weight"]}
    return {name: tensor.requires_grad_() for name, tensor in inputs.items()}, targets


def test_both_can_be_compiled_without_a_break() -> None:
    inputs, targets = _norm_and_loss_inputs()
    compiled = torch.compile(_norm_and_loss, fullgraph=True)
    expected, actual = _training(inputs, targets, _norm_and_loss), _training(inputs, targets, compiled)
    for plain, fused in zip(expected, actual, strict=True):
        assert torch.allclose(plain, fused, rtol=1e-4, atol=1e-6)


def test_both_can_be_captured_in_a_graph() -> None:
    inputs, targets = _norm_and_loss_inputs()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        expected = _training(inputs, targets, _norm_and_loss)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = _training(inputs, targets, _norm_and_loss)
    graph.replay()
    for plain, replayed in zip(expected, captured, strict=True):
        assert torch.equal(plain, replayed)


def _learner(vocab_size: int) -> Learner:
    return Learner(
        Registry().model("mamba")(),
        ShellSettings(width=64, num_layers=2),
        vocab_size,
        device=CUDA,
        precision="bf16",
        budget=Budget(warmup_steps=4),
        learning_rate=1e-3,
        seed=0,
    )


def _random_tokens(vocab_size: int) -> tuple[Tensor, Tensor]:
    inputs, targets = torch.randint(vocab_size, (2, 4, 256), device=CUDA).unbind()
    return inputs, targets


@pytest.mark.parametrize("vocab_size", [16, 30_000])
def test_a_training_step_never_waits_for_the_device(vocab_size: int) -> None:
    learner, tokens = _learner(vocab_size), _random_tokens(vocab_size)
    learner.training_step(*tokens)
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss = learner.training_step(*tokens)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert bool(loss.isfinite())


def _assert_same_weights(one: Learner, other: Learner) -> None:
    others = other.shell.state_dict()
    for name, weight in one.shell.state_dict().items():
        assert float((weight - others[name]).norm()) <= 1e-3 * float(weight.norm()), name


@pytest.mark.parametrize("vocab_size", [16, 30_000])
def test_replayed_steps_train_like_called_ones_on_every_batch_and_at_every_rate(vocab_size: int) -> None:
    called, replayed = _learner(vocab_size), _learner(vocab_size)
    steps = TrainingSteps(replayed)
    for step in range(5):
        tokens = _random_tokens(vocab_size)
        for learner in (called, replayed):
            learner.set_learning_rate(step)
        loss = called.training_step(*tokens)
        replayed_loss = steps(torch.stack(tokens).cpu().pin_memory())
        assert float(replayed_loss) == pytest.approx(float(loss), rel=1e-4)
    assert steps.not_graphed is None
    _assert_same_weights(called, replayed)


def test_a_step_that_waits_for_the_device_is_called_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    called, waiting = _learner(16), _learner(16)
    original = waiting.training_step

    def training_step(inputs: Tensor, targets: Tensor) -> Tensor:
        float(inputs.sum())
        return original(inputs, targets)

    monkeypatch.setattr(waiting, "training_step", training_step)
    steps = TrainingSteps(waiting)
    for _ in range(4):
        tokens = _random_tokens(16)
        called.training_step(*tokens)
        steps(torch.stack(tokens))
    assert steps.not_graphed is not None
    _assert_same_weights(called, waiting)
    assert bool(torch.randn(3, device=CUDA).isfinite().all()), "the device still draws"


def _embed(weight: Tensor, tokens: Tensor, implementation: str) -> Tensor:
    return embedding(tokens, weight, implementation=implementation)


@pytest.mark.parametrize(("rows", "vocab"), [(1, 1), (700, 16), (30_000, 256)])
def test_an_embeddings_gradient_agrees_with_its_specification(rows: int, vocab: int) -> None:
    tokens = torch.randint(vocab, (rows,), device=CUDA)
    weight = torch.randn(vocab, 64, device=CUDA)
    one_hot, torch_s = (partial(_embed, tokens=tokens, implementation=name) for name in ("one_hot", "torch"))
    assert_agrees(one_hot, torch_s, {"weight": weight}, torch.float32)
