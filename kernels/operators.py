"""Kernels as torch operators, so that torch.compile and its kin can trace them, and calls that need none of that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def register(
    name: str,
    function: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    mutates: tuple[str, ...] = (),
    devices: tuple[str, ...] = ("cuda",),
) -> Callable[..., Any]:
    """The operator `seqsuite::name`, which runs `function`; `fake` gives outputs of its shapes and strides.

    What `torch.library.custom_op` would do, less its search of every call for aliases, which costs more than a launch.

    Args:
        mutates: the arguments that are changed in place.
        devices: where it runs: Triton's kernels on a CPU as well, in their interpreter.
    """
    qualified = f"seqsuite::{name}"
    torch.library.define(qualified, torch.library.infer_schema(function, mutates_args=mutates))
    torch.library.impl(qualified, devices, function)
    torch.library.register_fake(qualified, fake)
    operator: Callable[..., Any] = getattr(torch.ops.seqsuite, name).default
    return operator


def runs_at_once(tensor: Tensor) -> bool:
    """Whether nobody traces or intercepts operators: then the function itself does, without torch's dispatcher."""
    return (
        not torch.compiler.is_compiling()
        and type(tensor) in (Tensor, torch.nn.Parameter)
        and torch._C._len_torch_dispatch_stack() == 0
    )
