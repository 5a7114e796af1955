"""How each model starts, what it refuses, and that the receipt names what really ran."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.profiler import profile

from kernels.dispatch import ImplementationUnavailable, receipt
from kernels.rotary import rotate
from models.composition import model_class
from models.mixers.hyena import HyenaConv
from models.mixers.positions import turns_at
from models.mixers.s4_dplr import hippo_legs
from models.mixers.s4d import initial_eigenvalues
from models.mixers.s6 import S6
from models.mixers.ssd import StateSpace
from models.presets import GRU, LSTM, S4, Mamba, Transformer
from models.shell import Shell
from suite.errors import UsageError
from suite.plugin import Model
from suite.spec import ShellSettings


def build(model: Model, *, width: int = 32) -> Shell:
    torch.manual_seed(0)
    return Shell(ShellSettings(width=width, num_layers=1), 16, model)


def branch_of(model: Model, *, width: int = 32) -> nn.Module:
    return build(model, width=width).branches[0]


def test_mamba_starts_as_published() -> None:
    branch = branch_of(Mamba(), width=512).mixer
    assert isinstance(branch, S6)
    A, delta = -branch.A_log.exp(), softplus(branch.delta_projection.bias)
    assert torch.allclose(A, -torch.arange(1.0, 17.0).expand(1024, 16))
    assert delta.min() >= 0.999e-3
    assert delta.max() <= 1.001e-1
    # Log-uniform: half of the step sizes lie below the geometric mean.
    assert (delta < 1e-2).float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert (branch.D == 1).all()
    assert branch.delta_projection.in_features == 32
    assert branch.delta_projection.weight.abs().max().item() == pytest.approx(32**-0.5, rel=1e-2)


def test_the_rank_of_delta_is_rounded_up() -> None:
    branch = branch_of(Mamba(), width=17).mixer
    assert isinstance(branch, S6)
    assert branch.delta_projection.in_features == 2


def test_s4d_lin_and_inv_are_the_published_formulas() -> None:
    n = torch.arange(4)
    assert torch.allclose(initial_eigenvalues(8, "lin"), torch.complex(torch.full((4,), -0.5), math.pi * n))
    inv = 8 / math.pi * (8 / (2 * n + 1) - 1)
    assert torch.allclose(initial_eigenvalues(8, "inv"), torch.complex(torch.full((4,), -0.5), inv))


def test_s4d_legs_has_the_eigenvalues_of_the_normal_part_of_hippo() -> None:
    """A + P P^T with A_nk = -sqrt(2n+1) sqrt(2k+1) below the diagonal, -(n+1) on it, and P_n = sqrt(n + 1/2)."""
    size = 16
    n = torch.arange(size, dtype=torch.float64)
    root = (2 * n + 1).sqrt()
    hippo = -torch.outer(root, root).tril(-1) - torch.diag(n + 1)
    P = (n + 0.5).sqrt()
    expected = torch.linalg.eigvals(hippo + torch.outer(P, P))
    found = initial_eigenvalues(size, "legs").to(torch.complex128)
    both = torch.cat([found, found.conj()])
    assert torch.allclose(both[both.imag.argsort()], expected[expected.imag.argsort()], atol=1e-4)


@pytest.mark.parametrize("size", [2, 16, 64])
def test_s4_starts_as_hippo_legs(size: int) -> None:
    """Lambda - P P^* is A_nk = -sqrt(2n+1) sqrt(2k+1) below the diagonal, -(n+1) on it, in another basis."""
    n = torch.arange(size, dtype=torch.float64)
    root = (2 * n + 1).sqrt()
    hippo = -torch.outer(root, root).tril(-1) - torch.diag(n + 1)
    Lambda, P, B = (torch.cat([part, part.conj()]).to(torch.complex128) for part in hippo_legs(size))
    ours = torch.diag(Lambda) - P[:, None] * P.conj()
    # What does not depend on the basis: the eigenvalues are -(n + 1), too ill-conditioned to compute; but the
    # characteristic polynomial's coefficients, here traces of powers, and B^* A^k B are the same.
    power, our_power = torch.eye(size, dtype=torch.float64), torch.eye(size, dtype=torch.complex128)
    for _ in range(3):
        assert torch.allclose(our_power.trace().real, power.trace(), rtol=1e-4)
        assert torch.allclose((B.conj() @ our_power @ B).real, root @ power @ root, rtol=1e-4)
        power, our_power = power @ hippo, our_power @ ours
    assert torch.allclose(Lambda.real, torch.full_like(n, -0.5))


def test_the_eigenvalues_of_hippo_legs_are_minus_one_two_three() -> None:
    Lambda, P, _ = (torch.cat([part, part.conj()]).to(torch.complex128) for part in hippo_legs(6))
    found = torch.linalg.eigvals(torch.diag(Lambda) - P[:, None] * P.conj())
    assert torch.allclose(found.real.sort().values, -torch.arange(6.0, 0, -1, dtype=torch.float64), atol=1e-3)
    assert found.imag.abs().max() < 1e-3


@pytest.mark.parametrize("name", ["mamba2", "mamba:ssd"])
def test_mamba_2_starts_as_published(name: str) -> None:
    options = model_class(name).Options.parse({"head_size": 2}, where=name)
    space = next(m for m in branch_of(model_class(name)(options), width=512).modules() if isinstance(m, StateSpace))
    rates, delta = space.A_log.exp(), softplus(space.delta_bias)
    assert rates.min() >= 1
    assert rates.max() <= 16
    assert rates.mean().item() == pytest.approx(8.5, rel=0.1)
    assert delta.min() >= 0.999e-3
    assert delta.max() <= 1.001e-1
    assert (delta < 1e-2).float().mean().item() == pytest.approx(0.5, abs=0.08)
    assert (space.D == 1).all()


def test_hyenas_windows_fall_to_a_hundredth_within_what_was_published() -> None:
    """A network that writes ones leaves the windows alone to be seen."""
    mixer = branch_of(model_class("hyena")(), width=64).get_submodule("mixer")
    assert isinstance(mixer, HyenaConv)
    with torch.no_grad():
        last_hidden = mixer.hidden[-1]
        assert isinstance(last_hidden, nn.Linear)
        last_hidden.weight.zero_()
        last_hidden.bias.fill_(math.pi / 2)
        mixer.last.weight.fill_(1 / mixer.last.in_features)
        windows = mixer.filter(1537)
    assert torch.allclose(windows[:, 0], torch.ones(64))
    assert windows[0, 1536].item() == pytest.approx(0.01, rel=1e-3)
    assert windows[-1, 307].item() == pytest.approx(0.01, rel=1e-2)
    assert (windows[:-1] >= windows[1:]).all()


def test_s4_starts_with_log_uniform_step_sizes() -> None:
    delta = branch_of(S4(), width=1024).get_parameter("mixer.log_delta").exp()
    assert delta.min() >= 0.999e-3
    assert delta.max() <= 1.001e-1
    assert (delta < 1e-2).float().mean().item() == pytest.approx(0.5, abs=0.05)


def test_s4_steps_follow_its_weights() -> None:
    shell, tokens = build(S4()), torch.randint(16, (2, 5))

    def stepped() -> Tensor:
        state, rows = shell.initial_state(2, 5), []
        for column in tokens.unbind(1):
            logits, state = shell.step(column, state)
            rows.append(logits)
        return torch.stack(rows, dim=1)

    with torch.inference_mode():
        first = stepped()
    optimizer = torch.optim.AdamW(shell.parameters(), lr=0.1)
    torch.autograd.backward(shell(tokens).sum())
    optimizer.step()
    with torch.no_grad():
        assert torch.allclose(stepped(), shell(tokens), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(stepped(), first, rtol=1e-2)
    torch.autograd.backward(stepped().sum())
    assert shell.get_parameter("branches.0.mixer.A_imag").grad is not None


def test_an_odd_state_size_has_no_conjugate_pairs() -> None:
    with pytest.raises(UsageError, match=r"s4\.state_size = 7: .*multiple of 2"):
        S4.Options.parse({"state_size": 7}, where="s4")


def test_the_lstm_starts_by_remembering() -> None:
    branch = branch_of(LSTM())
    bias = branch.get_parameter("mixer.cell.bias_ih_l0") + branch.get_parameter("mixer.cell.bias_hh_l0")
    input_gate, forget_gate, cell, output_gate = bias.chunk(4)
    assert (forget_gate == 1).all()
    assert not torch.cat([input_gate, cell, output_gate]).any()


def test_the_gru_starts_without_biases() -> None:
    branch = branch_of(GRU())
    assert not branch.get_parameter("mixer.cell.bias_ih_l0").any()
    assert not branch.get_parameter("mixer.cell.bias_hh_l0").any()


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(UsageError, match="width 100 is not a multiple of num_heads 3"):
        build(Transformer(Transformer.Options(num_heads=3)), width=100)


def test_rope_needs_an_even_head() -> None:
    with pytest.raises(UsageError, match="head_size 25 is odd"):
        build(Transformer(Transformer.Options(num_heads=4)), width=100)
    build(Transformer(Transformer.Options(num_heads=4, position="none")), width=100)


def test_a_head_may_have_a_size_of_its_own() -> None:
    branch = branch_of(Transformer(Transformer.Options(num_heads=3, head_size=4)), width=100)
    assert branch.get_parameter("output_projection.weight").shape == (100, 12)


def test_a_full_cache_refuses_another_token() -> None:
    shell = build(Transformer())
    state, token = shell.initial_state(1, 2), torch.zeros(1, dtype=torch.int64)
    with torch.no_grad():
        for _ in range(2):
            _, state = shell.step(token, state)
        with pytest.raises(ValueError, match="room for 2 tokens, and this makes 3; ask for a larger max_length"):
            shell.step(token, state)


def test_the_cache_takes_the_precision_of_autocast() -> None:
    shell = build(Transformer())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, (keys, values, num_tokens) = shell.initial_state(1, 2).branches[0]
    assert keys.dtype == values.dtype == torch.bfloat16
    assert num_tokens.item() == 0


def test_rope_sees_distances_and_not_places() -> None:
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)

    def score(query_at: int, key_at: int) -> Tensor:
        turns = turns_at(torch.tensor([query_at, key_at]), 8)
        return (rotate(q, turns[:1]) * rotate(k, turns[1:])).sum()

    assert torch.allclose(score(7, 3), score(1_000_007, 1_000_003), rtol=1e-8)
    assert not torch.allclose(score(7, 3), score(7, 4), rtol=1e-3)


@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize(("model", "torch_operation"), [(LSTM, "aten::lstm"), (GRU, "aten::gru")])
def test_the_receipt_of_an_rnn_names_what_the_profiler_saw(
    model: type[Model], torch_operation: str, is_training: bool
) -> None:
    shell, tokens = build(model()), torch.randint(16, (2, 9))
    with receipt() as ran, profile() as seen, torch.set_grad_enabled(is_training):
        shell(tokens)
    operations = {event.key for event in seen.key_averages()}
    assert torch_operation in operations
    assert ran[model.name] == {"onednn" if "aten::mkldnn_rnn_layer" in operations else "torch"}


@pytest.mark.parametrize(
    ("model", "operations"),
    [
        (Mamba, {"causal_conv1d", "selective_scan"}),
        (S4, {"s4d_conv", "s4d_kernel", "long_conv"}),
        (Transformer, {"attention", "rotary"}),
        (LSTM, {"lstm"}),
        (GRU, {"gru"}),
    ],
)
def test_the_receipt_names_every_operation(model: type[Model], operations: set[str]) -> None:
    shell = build(model())
    with receipt() as ran:
        shell(torch.randint(16, (2, 9)))
    assert set(ran) - {"embedding", "rms_norm"} == operations, "beside what the shell runs itself"


def test_the_scan_asked_for_is_the_scan_that_runs() -> None:
    shell, tokens = build(Mamba(Mamba.Options(implementation="reference"))), torch.randint(16, (2, 9))
    with receipt() as ran:
        shell(tokens)
    assert ran["selective_scan"] == {"reference"}


def test_a_scan_that_nobody_knows_is_an_error() -> None:
    shell = build(Mamba(Mamba.Options(implementation="fastest")))
    with pytest.raises(ValueError, match=r"no implementation 'fastest'\. Known: auto, "):
        shell(torch.randint(16, (2, 9)))


def test_a_scan_that_cannot_run_here_is_an_error() -> None:
    shell = build(Mamba(Mamba.Options(implementation="cuda")))
    with pytest.raises(ImplementationUnavailable, match="cannot run its 'cuda' implementation on cpu"):
        shell(torch.randint(16, (2, 9)))
