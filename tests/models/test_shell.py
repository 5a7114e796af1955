"""The shell: what it counts, how it starts, which parameters decay, what a state weighs."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

import jaxtyping
import pytest
import torch
from torch import Tensor, nn

from models.presets import GRU, LSTM, S4, Mamba, Transformer
from models.shell import Shell, parameter_groups
from models.state import state_bytes
from suite.plugin import IGNORED, Model
from suite.spec import ShellSettings

VOCAB_SIZE = 16
ALL_MODELS = [GRU, LSTM, Mamba, S4, Transformer]


def build(model: type[Model], *, width: int = 64, num_layers: int = 2) -> Shell:
    torch.manual_seed(0)
    return Shell(ShellSettings(width=width, num_layers=num_layers), VOCAB_SIZE, model())


def groups_of(shell: Shell, learning_rate: float = 3e-3) -> dict[str, dict[str, Any]]:
    return {name: group for group in parameter_groups(shell, learning_rate, 0.1) for name in group["names"]}


@pytest.mark.parametrize("tokens", [torch.zeros(2, 3, 4, dtype=torch.int64), torch.zeros(2, 3)], ids=["3d", "floats"])
def test_a_call_that_breaks_the_shapes_of_a_signature_is_refused_by_every_test(tokens: Tensor) -> None:
    with pytest.raises(jaxtyping.TypeCheckError, match="tokens"):
        build(GRU)(tokens)


@pytest.mark.parametrize(
    ("model", "num_weights"),
    [
        # 2ED + 5E (taps, bias) + E(R + 2N) + RE + E (bias of Delta) + EN + E (skip) + ED, with E = 2D, R = 4, N = 16.
        (Mamba, 128 * (128 + 5 + 36 + 4 + 1 + 16 + 1 + 64)),
        # Delta, A and C as 32 pairs each, D, and two square maps with bias.
        (S4, 64 * (1 + 4 * 32 + 1) + 2 * 65 * 64),
        # 4 D^2 and three maps to and from 8/3 D, rounded up to 176.
        (Transformer, 4 * 64 * 64 + 3 * 64 * 176),
        (LSTM, 4 * 64 * (128 + 2) + 64 * 64),
        (GRU, 3 * 64 * (128 + 2) + 64 * 64),
    ],
)
def test_the_parameters_are_those_of_the_published_layer(model: type[Model], num_weights: int) -> None:
    shell = build(model)
    num_norms = len(shell.branches) + 1
    assert shell.num_non_embedding_parameters == 2 * num_weights + 64 * num_norms
    assert shell.num_parameters == shell.num_non_embedding_parameters + 2 * VOCAB_SIZE * 64


@pytest.mark.parametrize("model", ALL_MODELS)
def test_every_parameter_is_in_one_group(model: type[Model]) -> None:
    shell = build(model)
    groups = parameter_groups(shell, 3e-3, 0.1)
    names = [name for group in groups for name in group["names"]]
    assert sorted(names) == sorted(name for name, _ in shell.named_parameters())
    by_name = dict(shell.named_parameters())
    for group in groups:
        assert [id(by_name[name]) for name in group["names"]] == [id(parameter) for parameter in group["params"]]
    torch.optim.AdamW(groups)


@pytest.mark.parametrize("model", ALL_MODELS)
def test_weight_decay_leaves_embedding_norms_and_biases_alone(model: type[Model]) -> None:
    for name, group in groups_of(build(model)).items():
        is_spared = name.startswith(("embedding", "norms", "final_norm")) or "bias" in name
        if is_spared:
            assert group["weight_decay"] == 0.0, name
        if name.endswith("projection.weight") or name == "head.weight":
            assert group["weight_decay"] == 0.1, name


def test_weight_decay_leaves_the_recurrences_alone() -> None:
    mamba, s4 = groups_of(build(Mamba)), groups_of(build(S4))
    assert mamba["branches.1.mixer.A_log"]["weight_decay"] == mamba["branches.1.mixer.D"]["weight_decay"] == 0.0
    for name in ("log_delta", "A_real_log", "A_imag", "D"):
        assert s4[f"branches.0.mixer.{name}"]["weight_decay"] == 0.0


def test_s4_learns_its_rates_and_step_sizes_slowly() -> None:
    fast, slow = groups_of(build(S4), 1e-2), groups_of(build(S4), 1e-4)
    for name in ("log_delta", "A_real_log", "A_imag"):
        assert fast[f"branches.0.mixer.{name}"]["lr"] == 1e-3
        assert slow[f"branches.0.mixer.{name}"]["lr"] == 1e-4
    assert fast["branches.0.mixer.C"]["lr"] == fast["head.weight"]["lr"] == 1e-2


def test_marks_survive_a_move() -> None:
    shell = build(S4).to(torch.float64)
    assert groups_of(shell)["branches.0.mixer.A_imag"]["weight_decay"] == 0.0


@pytest.mark.parametrize("model", ALL_MODELS)
def test_output_projections_start_smaller_the_more_branches_there_are(model: type[Model]) -> None:
    shallow, deep = build(model, num_layers=1), build(model, num_layers=9)
    for index in range(len(shallow.branches)):
        weights = [shell.get_parameter(f"branches.{index}.output_projection.weight") for shell in (shallow, deep)]
        one, nine = (weight.std().item() for weight in weights)
        assert nine == pytest.approx(one / 3, rel=0.1)
    assert shallow.head.weight.std().item() == pytest.approx(deep.head.weight.std().item(), rel=0.1)


@pytest.mark.parametrize("model", ALL_MODELS)
def test_an_untrained_model_knows_nothing(model: type[Model]) -> None:
    shell, tokens = build(model), torch.randint(VOCAB_SIZE, (8, 65))
    with torch.no_grad():
        loss = nn.functional.cross_entropy(shell(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(VOCAB_SIZE), abs=0.4)


def test_branches_of_a_layer_follow_each_other() -> None:
    class Add(nn.Module):
        def __init__(self, amount: float) -> None:
            super().__init__()
            self.amount = amount

        def forward(self, x: Tensor) -> Tensor:
            return torch.full_like(x, self.amount)

    class TwoBranches(Model):
        name = "two"

        def branches(self, shell: ShellSettings) -> Sequence[nn.Module]:
            return [Add(1.0), Add(2.0)]

    shell = build(TwoBranches)
    assert [branch.amount for branch in shell.branches] == [1.0, 2.0, 1.0, 2.0]
    streams: list[Tensor] = []
    shell.final_norm.register_forward_hook(lambda _module, _inputs, output: streams.append(output[0]))
    tokens = torch.randint(VOCAB_SIZE, (2, 3))
    shell(tokens)
    assert torch.allclose(streams[0], shell.embedding(tokens) + 6.0)


def packed(*lengths: int) -> Tensor:
    """One row with a document of each length."""
    starts = torch.zeros(1, sum(lengths), dtype=torch.bool)
    starts[0, [sum(lengths[:index]) for index in range(len(lengths))]] = True
    return starts


@pytest.mark.parametrize("model", ALL_MODELS)
def test_the_gradient_of_a_document_is_that_which_it_has_alone(model: type[Model]) -> None:
    shell, tokens = build(model), torch.randint(VOCAB_SIZE, (1, 12))
    targets = torch.where(torch.arange(12) < 7, IGNORED, tokens)
    gradients = []
    for loss in (shell.loss(tokens, targets, packed(7, 5)), shell.loss(tokens[:, 7:], targets[:, 7:])):
        gradients.append(torch.autograd.grad(loss, list(shell.parameters()), allow_unused=True))
    for (name, _), found, expected in zip(shell.named_parameters(), *gradients, strict=True):
        assert found is not None, name
        assert torch.allclose(found, expected, rtol=1e-3, atol=1e-6), name


def test_a_branch_that_knows_no_documents_is_given_each_alone() -> None:
    class Sum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.cumsum(1)

    class Sums(Model):
        name = "sums"

        def branches(self, shell: ShellSettings) -> Sequence[nn.Module]:
            return [Sum()]

    shell, tokens = build(Sums), torch.randint(VOCAB_SIZE, (1, 9))
    found = shell(tokens, packed(4, 5))
    assert torch.allclose(found[:, 4:], shell(tokens[:, 4:]), atol=1e-5)
    with pytest.raises(TypeError, match=r"Sum lacks initial_state or step, .* suite\.Branch says"):
        shell.initial_state(1, 9)


def test_marks_of_another_shape_or_kind_are_refused() -> None:
    shell, tokens = build(GRU), torch.zeros(2, 5, dtype=torch.int64)
    forward, prefill = inspect.unwrap(Shell.forward), inspect.unwrap(Shell.prefill)
    with pytest.raises(
        ValueError, match=r"sequence_starts has shape \(1, 5\); it must be \(batch, length\) = \(2, 5\)"
    ):
        forward(shell, tokens, packed(2, 3))
    with pytest.raises(ValueError, match=r"sequence_starts is torch\.int64; it must be torch\.bool"):
        prefill(shell, tokens, 9, torch.zeros_like(tokens))


def test_rows_of_a_state_are_emptied_where_documents_end() -> None:
    shell, tokens = build(Transformer), torch.randint(VOCAB_SIZE, (2, 5))
    with torch.inference_mode():
        _, state = shell.prefill(tokens, 6)
        state = shell.forget(state, torch.tensor([True, False]))
        ((_, (keys, values, num_tokens)), *_) = state.branches
        assert num_tokens.tolist() == [0, 5]
        assert not keys[0].any()
        assert values[1].any()
        assert state.num_tokens == 5


def test_a_state_weighs_what_its_tensors_weigh() -> None:
    window, h = torch.zeros(2, 3, dtype=torch.bfloat16), torch.zeros(2, 4, dtype=torch.complex64)
    assert state_bytes(None) == 0
    assert state_bytes([(window, h), None, {"h": [h]}]) == 12 + 64 + 64


def test_a_state_that_cannot_be_weighed_is_refused() -> None:
    with pytest.raises(TypeError, match="this one holds a int"):
        state_bytes([torch.zeros(2), 3])


@pytest.mark.parametrize(
    ("model", "bytes_per_sequence"),
    [
        # Two layers each: 4-byte numbers in 3 past inputs and 16 states of 128 channels; 32 complex of 64 channels; ...
        (Mamba, 2 * 4 * 128 * (3 + 16)),
        (S4, 2 * 8 * 32 * 64),
        (GRU, 2 * 4 * 64),
        (LSTM, 2 * 2 * 4 * 64),
        # ... keys and values of 100 tokens, and a counter for all sequences.
        (Transformer, 2 * (2 * 4 * 100 * 64 + 8)),
    ],
)
def test_a_sequence_has_a_state_of_known_size(model: type[Model], bytes_per_sequence: int) -> None:
    assert state_bytes(build(model).initial_state(1, 100)) == bytes_per_sequence
