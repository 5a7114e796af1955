"""What a public operation asks of its tensors, said in one voice: the argument, what it was, what it must be."""

from __future__ import annotations

import torch
from torch import Tensor

_KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def expect_axes(name: str, tensor: Tensor, axes: str) -> None:
    """Refuses a tensor with more or fewer axes than `axes` ("batch length channels") names, or with an empty one."""
    names = axes.split()
    if tensor.ndim != len(names):
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; it must be ({', '.join(names)})")
    for axis, size in zip(names, tensor.shape, strict=True):
        if size == 0:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; its {axis} must be at least 1")


def expect_shape(name: str, tensor: Tensor, axes: str, sizes: tuple[int, ...]) -> None:
    """Refuses a tensor whose shape is not `sizes`, given in the order that `axes` names."""
    if tensor.shape != sizes:
        wanted = ", ".join(axes.split())
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; it must be ({wanted}) = {tuple(sizes)}")


def expect_floating(name: str, tensor: Tensor) -> None:
    """Refuses whole numbers, booleans, complex numbers and the 8-bit formats."""
    if tensor.dtype not in _KERNEL_DTYPES:
        wanted = ", ".join(str(dtype).removeprefix("torch.") for dtype in _KERNEL_DTYPES)
        raise ValueError(f"{name} is {tensor.dtype}; it must be one of {wanted}")


def expect_boolean(name: str, tensor: Tensor) -> None:
    """Refuses everything but booleans."""
    if tensor.dtype != torch.bool:
        raise ValueError(f"{name} is {tensor.dtype}; it must be torch.bool")


def expect_complex(name: str, tensor: Tensor) -> None:
    """Refuses real tensors."""
    if not tensor.dtype.is_complex:
        raise ValueError(f"{name} is {tensor.dtype}; it must be complex")


def expect_one_device(**tensors: Tensor | None) -> None:
    """Refuses tensors that do not all lie on the device of the first."""
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    first, device = next((name, tensor.device) for name, tensor in given.items())
    for name, tensor in given.items():
        if tensor.device != device:
            raise ValueError(f"{name} is on {tensor.device} and {first} on {device}; all must be on one device")
