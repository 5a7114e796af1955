"""Logits and every gradient of every model, against the loops over time in `references`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from models.composition import model_class
from models.shell import Shell
from suite.plugin import Model
from suite.spec import ShellSettings
from tests.models import references

WIDTH, NUM_LAYERS, VOCAB_SIZE = 12, 2, 7
TOLERANCES = {torch.float64: 1e-9, torch.float32: 2e-4}
"""Of a difference, relative to the largest entry."""

ATTENTION: dict[str, dict[str, Any]] = {
    "none": {"num_heads": 2, "position": "none"},
    "learned": {"num_heads": 3, "position": "learned"},
    "rope": {"num_heads": 3, "position": "rope"},
    "xpos": {"num_heads": 3, "position": "xpos"},
    "alibi": {"num_heads": 4, "position": "alibi"},
    "grouped": {"num_heads": 6, "num_kv_heads": 2},
    "window": {"num_heads": 3, "num_kv_heads": 1, "window": 5},
    "alibi-window": {"num_heads": 4, "num_kv_heads": 2, "position": "alibi", "window": 7},
}
MODELS: dict[str, tuple[str, dict[str, Any], list[references.Branch]]] = {
    "lstm": ("lstm", {}, [references.lstm]),
    "lstm-expanded": ("lstm", {"expand": 2}, [references.lstm]),
    "gru": ("gru", {}, [references.gru]),
    "minlstm": ("minlstm", {}, [references.plain(references.min_lstm)]),
    "mingru": ("mingru", {"expand": 2}, [references.plain(references.min_gru)]),
    "mamba": ("mamba", {}, [references.mamba]),
    "mamba-odd": ("mamba", {"state_size": 3, "conv_width": 2, "expand": 3}, [references.mamba]),
    "mamba-without-past": ("mamba", {"conv_width": 1}, [references.mamba]),
    "mamba2": ("mamba2", {"state_size": 5, "head_size": 6}, [references.mamba2]),
    "mamba:ssd": ("mamba:ssd", {"state_size": 5}, [references.mamba_block(references.ssd_mixer)]),
    "mamba:s4d": ("mamba:s4d", {"state_size": 4}, [references.mamba_block(references.s4d)]),
    "s4": ("s4", {}, [references.glu(references.s4d)]),
    "s4-inv": ("s4", {"state_size": 10, "init": "inv"}, [references.glu(references.s4d)]),
    "s4-legs": ("s4", {"state_size": 2, "init": "legs"}, [references.glu(references.s4d)]),
    "s4-dplr": ("plain:s4-dplr", {"state_size": 8}, [references.glu(references.s4_dplr)]),
    "h3": ("h3", {"state_size": 4, "conv_width": 5}, [references.h3(references.s4d)]),
    "hyena": ("hyena", {"filter_size": 6}, [references.h3(references.hyena(1024, 1), shifts_all=True)]),
    "hyena-rich": (
        "hyena",
        {"filter_size": 5, "num_frequencies": 3, "filter_length": 10, "sine_frequency": 2.0},
        [references.h3(references.hyena(10, 3), shifts_all=True)],
    ),
    "transformer-wide": (
        "transformer",
        {"num_heads": 2, "head_size": 5, "position": "none"},
        [references.plain(references.attention(2, position="none")), references.mlp],
    ),
} | {
    f"transformer-{name}": (
        "transformer",
        settings,
        [references.plain(references.attention(**settings)), references.mlp],
    )
    for name, settings in ATTENTION.items()
}


def build(name: str) -> tuple[Model, list[references.Branch]]:
    model_name, settings, branches = MODELS[name]
    model = model_class(model_name)
    return model(model.Options.parse(settings, where=name)), branches


def assert_close(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    scale = max(expected.abs().max().item(), 1e-6)
    assert (found.double() - expected).abs().max().item() <= TOLERANCES[dtype] * scale


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("length", [1, 2, 37])
@pytest.mark.parametrize("name", MODELS)
def test_logits_and_gradients_are_those_of_the_equations(name: str, length: int, dtype: torch.dtype) -> None:
    model, branches = build(name)
    torch.manual_seed(0)
    shell = Shell(ShellSettings(width=WIDTH, num_layers=NUM_LAYERS), VOCAB_SIZE, model)
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
    model, branches = build(name)
    torch.manual_seed(0)
    shell = Shell(ShellSettings(width=WIDTH, num_layers=NUM_LAYERS), VOCAB_SIZE, model).double()
    tokens = torch.randint(VOCAB_SIZE, (3, 9))
    with torch.no_grad():
        state, stepped = shell.initial_state(3, 9), []
        for column in tokens.unbind(1):
            logits, state = shell.step(column, state)
            stepped.append(logits)
        expected = references.shell(dict(shell.named_parameters()), tokens, branches * NUM_LAYERS)
    assert_close(torch.stack(stepped, dim=1), expected, torch.float64)
