"""The operations that a model says it does for a token are those that a step of it really does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from models.flops import flops_per_token
from models.shell import Shell
from suite.errors import UsageError
from suite.registry import Registry
from suite.spec import ShellSettings

REGISTRY = Registry()
WIDTH, LENGTH, VOCAB_SIZE = 64, 128, 16


class Counter(TorchDispatchMode):
    """Adds up what torch does: matrix products by its own formulas, products and sums of real and complex numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.num_operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = func.overloadpacket
        are_complex = [arg.is_complex() for arg in args if isinstance(arg, Tensor)]
        if packet in flop_registry:
            self.num_operations += flop_registry[packet](*args, **(kwargs or {}), out_val=out)
        elif packet is torch.ops.aten.mul:
            each = 1 if not any(are_complex) else 6 if are_complex == [True, True] else 2
            self.num_operations += each * out.numel()
        elif packet in (torch.ops.aten.add, torch.ops.aten.sub):
            self.num_operations += (2 if any(are_complex) else 1) * out.numel()
        elif packet is torch.ops.aten.sum:
            self.num_operations += (2 if any(are_complex) else 1) * args[0].numel()
        return out


def build(name: str) -> Shell:
    return Shell(ShellSettings(width=WIDTH, num_layers=1), VOCAB_SIZE, REGISTRY.model(name)())


def operations_of_a_step(shell: Shell) -> int:
    """Of the branches alone."""
    state, token = shell.initial_state(1, LENGTH), torch.zeros(1, dtype=torch.int64)
    with torch.no_grad():
        shell.step(token, shell.initial_state(1, LENGTH))
        with Counter() as counter:
            shell.step(token, state)
    return counter.num_operations - 2 * WIDTH * VOCAB_SIZE


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("mamba", 1.03),
        ("mamba2", 1.03),
        ("h3:s6", 1.03),
        ("plain:ssd", 1.03),
        ("gru", 1.03),
        ("mingru", 1.03),
        ("minlstm", 1.03),
        # A step computes the imaginary parts of the output too, which nobody asks for.
        ("s4", 1.25),
        ("plain:s4-dplr", 1.4),
    ],
)
def test_a_step_does_what_the_model_says_and_hardly_more(name: str, most: float) -> None:
    shell = build(name)
    said = flops_per_token(shell.branches, LENGTH)
    assert said <= operations_of_a_step(shell) <= most * said


def test_attention_looks_at_half_of_the_tokens_on_average_and_at_a_window_of_them_at_most() -> None:
    shell = build("plain:attention")
    maps = 2 * 4 * WIDTH * WIDTH
    assert flops_per_token(shell.branches, LENGTH) == maps + 4 * WIDTH * (LENGTH + 1) / 2
    model = REGISTRY.model("plain:attention")
    windowed = Shell(ShellSettings(width=WIDTH, num_layers=1), VOCAB_SIZE, model(model.Options(window=2)))
    assert flops_per_token(windowed.branches, 3) == pytest.approx(maps + 4 * WIDTH * (1 + 2 + 2) / 3)


def test_linear_maps_are_counted_as_torch_counts_them() -> None:
    shell = build("transformer:mingru")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        shell(torch.zeros(1, LENGTH, dtype=torch.int64))
    head = 2 * WIDTH * VOCAB_SIZE
    assert flops_per_token(shell.branches, LENGTH) == counter.get_total_flops() / LENGTH - head


def test_the_operations_of_every_built_in_model_are_known() -> None:
    for name in (*REGISTRY.composition_names(), "mamba2", "hybrid"):
        with torch.device("meta"):
            model = REGISTRY.model(name)()
            branches = Shell(ShellSettings(width=WIDTH, num_layers=2), VOCAB_SIZE, model).branches
        assert flops_per_token(branches, LENGTH) > 2 * 2 * WIDTH * WIDTH, name


def test_a_module_with_weights_that_says_nothing_is_not_passed_over() -> None:
    with pytest.raises(UsageError, match="Bilinear does not say how many operations it does"):
        flops_per_token(nn.ModuleList([nn.Linear(3, 3), nn.Bilinear(3, 3, 3)]), LENGTH)
