"""Logits and every gradient of every model, against the loops over time in `references`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from models.mamba import Mamba
from models.rnn import GRU, LSTM
from models.s4 import S4D
from models.shell import Shell
from models.transformer import Transformer
from suite.plugin import Model
from suite.spec import ShellSettings
from tests.models import references

WIDTH, NUM_LAYERS, VOCAB_SIZE = 12, 2, 7
TOLERANCES = {torch.float64: 1e-9, torch.float32: 2e-4}
"""Of a difference, relative to the largest entry."""

MODELS: dict[str, tuple[Callable[[], Model], list[references.Branch]]] = {
    "lstm": (LSTM, [references.lstm]),
    "lstm-expanded": (lambda: LSTM(LSTM.Options(expand=2)), [references.lstm]),
    "gru": (GRU, [references.gru]),
    "mamba": (Mamba, [references.mamba]),
    "mamba-odd": (lambda: Mamba(Mamba.Options(state_size=3, conv_width=2, expand=3)), [references.mamba]),
    "mamba-without-past": (lambda: Mamba(Mamba.Options(conv_width=1)), [references.mamba]),
    "s4": (S4D, [references.s4]),
    "s4-inv": (lambda: S4D(S4D.Options(state_size=10, init="inv")), [references.s4]),
    "s4-legs": (lambda: S4D(S4D.Options(state_size=2, init="legs")), [references.s4]),
    "transformer": (
        lambda: Transformer(Transformer.Options(num_heads=3)),
        [references.attention(3, rope=True), references.mlp],
    ),
    "transformer-nope": (
        lambda: Transformer(Transformer.Options(num_heads=2, head_size=5, position="none")),
        [references.attention(2, rope=False), references.mlp],
    ),
}


def assert_close(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    scale = max(expected.abs().max().item(), 1e-6)
    assert (found.double() - expected).abs().max().item() <= TOLERANCES[dtype] * scale


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("length", [1, 2, 37])
@pytest.mark.parametrize("name", MODELS)
def test_logits_and_gradients_are_those_of_the_equations(name: str, length: int, dtype: torch.dtype) -> None:
    build, branches = MODELS[name]
    torch.manual_seed(0)
    shell = Shell(ShellSettings(width=WIDTH, num_layers=NUM_LAYERS), VOCAB_SIZE, build())
    with torch.no_grad():
        for parameter in shell.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    shell.to(dtype)
    tokens = torch.randint(VOCAB_SIZE, (3, length))
    weights = {name: value.detach().double().requires_grad_() for name, value in shell.named_parameters()}
    readout = torch.randn(3, length, VOCAB_SIZE, dtype=torch.float64)

    logits, expected = shell(tokens), references.shell(weights, tokens, branches * NUM_LAYERS)
    torch.autograd.backward([(logits * readout.to(dtype)).sum(), (expected * readout).sum()])

    assert_close(logits, expected, dtype)
    for parameter_name, parameter in shell.named_parameters():
        gradient = weights[parameter_name].grad
        assert parameter.grad is not None and gradient is not None
        assert_close(parameter.grad, gradient, dtype)


@pytest.mark.parametrize("name", MODELS)
def test_steps_in_float64_are_those_of_the_equations(name: str) -> None:
    build, branches = MODELS[name]
    torch.manual_seed(0)
    shell = Shell(ShellSettings(width=WIDTH, num_layers=NUM_LAYERS), VOCAB_SIZE, build()).double()
    tokens = torch.randint(VOCAB_SIZE, (3, 9))
    with torch.no_grad():
        state, stepped = shell.initial_state(3, 9), []
        for column in tokens.unbind(1):
            logits, state = shell.step(column, state)
            stepped.append(logits)
        expected = references.shell(dict(shell.named_parameters()), tokens, branches * NUM_LAYERS)
    assert_close(torch.stack(stepped, dim=1), expected, torch.float64)
