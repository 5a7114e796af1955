"""Causal depthwise convolution over a few positions: each channel mixes its own recent past.

    y_t = sum_{k < W} weight_{W-1-k} x_{t-k} + bias,   then   silu(y_t)   if so asked

The short convolution of H3 (Fu et al. 2022, arXiv:2212.14052) and Mamba (Gu and Dao 2023, arXiv:2312.00752).
`reference.py` is the specification.
"""

from __future__ import annotations

from typing import Literal, overload

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kernels.arguments import expect_axes, expect_boolean, expect_floating, expect_one_device, expect_shape
from kernels.dispatch import Operation
from kernels.documents import is_of_last_document

__all__ = ["OPERATION", "causal_conv1d", "causal_conv1d_step"]

OPERATION = Operation(
    "causal_conv1d",
    {
        "cuda": "kernels.causal_conv1d.cuda",
        "cpu": "kernels.causal_conv1d.cpu",
        "torch": "kernels.causal_conv1d.torch_conv",
        "reference": "kernels.causal_conv1d.reference",
    },
)

STEP = Operation(
    "causal_conv1d_step",
    {"cuda": "kernels.causal_conv1d.step_cuda", "torch": "kernels.causal_conv1d.step_torch"},
)

_FLOAT64_IMPLEMENTATIONS = ("torch", "reference")
_MAX_CUDA_WIDTH = 32
"""A thread of the kernel holds the taps of its channels in registers."""


@overload
def causal_conv1d(
    x: Float[Tensor, "batch length channels"],
    weight: Float[Tensor, "channels width"],
    bias: Float[Tensor, " channels"] | None = None,
    *,
    activation: Literal["silu"] | None = None,
    initial_state: Float[Tensor, "batch channels past"] | None = None,
    sequence_starts: Bool[Tensor, "batch length"] | None = None,
    return_final_state: Literal[False] = False,
    implementation: str = "auto",
) -> Float[Tensor, "batch length channels"]: ...


@overload
def causal_conv1d(
    x: Float[Tensor, "batch length channels"],
    weight: Float[Tensor, "channels width"],
    bias: Float[Tensor, " channels"] | None = None,
    *,
    activation: Literal["silu"] | None = None,
    initial_state: Float[Tensor, "batch channels past"] | None = None,
    sequence_starts: Bool[Tensor, "batch length"] | None = None,
    return_final_state: Literal[True],
    implementation: str = "auto",
) -> tuple[Float[Tensor, "batch length channels"], Float[Tensor, "batch channels past"]]: ...


def causal_conv1d(
    x: Float[Tensor, "batch length channels"],
    weight: Float[Tensor, "channels width"],
    bias: Float[Tensor, " channels"] | None = None,
    *,
    activation: Literal["silu"] | None = None,
    initial_state: Float[Tensor, "batch channels past"] | None = None,
    sequence_starts: Bool[Tensor, "batch length"] | None = None,
    return_final_state: bool = False,
    implementation: str = "auto",
) -> (
    Float[Tensor, "batch length channels"]
    | tuple[Float[Tensor, "batch length channels"], Float[Tensor, "batch channels past"]]
):
    """Convolves every channel with its own taps; differentiable in every floating-point input.

    Inputs may have any strides and mix float32, bfloat16 and float16; the arithmetic is float32, and x's dtype in the
    `torch` implementation, which alone with `reference` takes float64. The `cuda` implementation has at most 32 taps;
    with more, `auto` takes `torch`.

    Args:
        x: the input.
        weight: the taps of each channel, the one for the present position last.
        bias: added to every position.
        activation: "silu", or None for the plain sum.
        initial_state: the width - 1 inputs before the first position, oldest first; zero if not given.
        sequence_starts: True where a new document begins: no tap reaches across, as if zeros stood before it.
        return_final_state: whether the last width - 1 inputs, as `initial_state` takes them, are returned too.
        implementation: a name in `OPERATION.implementations`, or "auto".

    Returns:
        y in x's dtype, or y and the final state, also in x's dtype.

    Raises:
        ValueError: an argument's shape, dtype or device disagrees with the others, or no activation has that name.
        ImplementationUnavailable: the implementation cannot run on x's device.
    """
    _check(x, weight, bias, activation, initial_state, sequence_starts)
    if x.dtype == torch.float64:
        if implementation == "auto":
            implementation = "torch"
        elif implementation not in _FLOAT64_IMPLEMENTATIONS and implementation in OPERATION.implementations:
            raise ValueError(f"x is float64 and {implementation!r} computes in float32; pass float32, or use 'torch'")
    if x.is_cuda and weight.shape[1] > _MAX_CUDA_WIDTH:
        if implementation == "auto":
            implementation = "torch"
        elif implementation == "cuda":
            raise ValueError(f"weight has width {weight.shape[1]}; 'cuda' takes at most {_MAX_CUDA_WIDTH} taps")
    y: Tensor = OPERATION.choose(implementation, x.device).causal_conv1d(
        x, weight, bias, activation == "silu", initial_state, sequence_starts
    )
    if return_final_state:
        return y, _last_inputs(x, weight.shape[1], initial_state, sequence_starts)
    return y


def causal_conv1d_step(
    state: Float[Tensor, "batch channels past"],
    x: Float[Tensor, "batch channels"],
    weight: Float[Tensor, "channels width"],
    bias: Float[Tensor, " channels"] | None = None,
    activation: Literal["silu"] | None = None,
    *,
    implementation: str = "auto",
) -> tuple[Float[Tensor, "batch channels"], Float[Tensor, "batch channels past"]]:
    """The output for one position, in x's dtype, and the state after it, in the dtype of `state`.

    The arguments are those of `causal_conv1d` at one position. `state` may be overwritten, and be what is returned: go
    on with the returned one. A gradient is only there in plain torch, which `auto` takes where one is asked for.

    Raises:
        ValueError: an argument's shape, dtype or device disagrees with the others, or a kernel is to be differentiated.
        ImplementationUnavailable: the implementation cannot run on x's device.
    """
    _check_step(state, x, weight, bias, activation)
    tensors = (state, x, weight, bias)
    needs_gradient = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
    is_double = any(tensor is not None and tensor.dtype == torch.float64 for tensor in tensors)
    if needs_gradient or is_double:
        if implementation == "auto":
            implementation = "torch"
        elif implementation != "torch" and implementation in STEP.implementations:
            why = "an input requires a gradient" if needs_gradient else "an input is float64"
            raise ValueError(f"{why}, which {implementation!r} does not take; use 'torch'")
    y, next_state = STEP.choose(implementation, x.device).causal_conv1d_step(*tensors, activation == "silu")
    return y, next_state


def _last_inputs(x: Tensor, width: int, initial_state: Tensor | None, sequence_starts: Tensor | None) -> Tensor:
    batch, length, channels = x.shape
    past = width - 1
    missing = max(0, past - length)
    last = x[:, max(0, length - past) :].transpose(1, 2)
    if sequence_starts is not None:
        is_of_another_document = ~is_of_last_document(sequence_starts)[:, max(0, length - past) :]
        last = last.masked_fill(is_of_another_document.unsqueeze(1), 0.0)
    if missing == 0:
        # A tensor of its own, for a step may overwrite it.
        return last.clone(memory_format=torch.contiguous_format)
    if initial_state is None:
        earlier = x.new_zeros(batch, channels, missing)
    else:
        earlier = initial_state[:, :, past - missing :].to(x.dtype)
        if sequence_starts is not None:
            earlier = earlier.masked_fill(sequence_starts.any(1)[:, None, None], 0.0)
    return torch.cat([earlier, last], dim=-1)


def _check_activation(activation: str | None) -> None:
    if activation not in (None, "silu"):
        raise ValueError(f"activation is {activation!r}; it must be 'silu' or None")


def _check_step(state: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> None:
    _check_activation(activation)
    expect_axes("x", x, "batch channels")
    expect_axes("weight", weight, "channels width")
    batch, channels = x.shape
    width = weight.shape[1]
    wanted = {
        "state": (state, "batch channels width-1", (batch, channels, width - 1)),
        "x": (x, "batch channels", (batch, channels)),
        "weight": (weight, "channels width", (channels, width)),
        "bias": (bias, "channels", (channels,)),
    }
    for name, (tensor, axes, sizes) in wanted.items():
        if tensor is not None:
            expect_shape(name, tensor, axes, sizes)
            expect_floating(name, tensor)
    expect_one_device(**{name: tensor for name, (tensor, *_) in wanted.items()})


def _check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    initial_state: Tensor | None,
    sequence_starts: Tensor | None,
) -> None:
    _check_activation(activation)
    expect_axes("x", x, "batch length channels")
    expect_axes("weight", weight, "channels width")
    batch, length, channels = x.shape
    width = weight.shape[1]
    for name, tensor, axes, sizes in (
        ("x", x, "batch length channels", (batch, length, channels)),
        ("weight", weight, "channels width", (channels, width)),
        ("bias", bias, "channels", (channels,)),
        ("initial_state", initial_state, "batch channels width-1", (batch, channels, width - 1)),
    ):
        if tensor is not None:
            expect_shape(name, tensor, axes, sizes)
            expect_floating(name, tensor)
    if sequence_starts is not None:
        expect_shape("sequence_starts", sequence_starts, "batch length", (batch, length))
        expect_boolean("sequence_starts", sequence_starts)
    expect_one_device(x=x, weight=weight, bias=bias, initial_state=initial_state, sequence_starts=sequence_starts)
