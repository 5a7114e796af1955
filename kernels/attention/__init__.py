"""Causal softmax attention, by the fastest implementation that takes the inputs, which is named on the receipt.

    y_t = sum_{s <= t} softmax_s(<q_t, k_s> / sqrt(head_size)) v_s,   s > t - window if there is a window

Vaswani et al. 2017 (arXiv:1706.03762); the fast implementations descend from Dao et al. 2022 (arXiv:2205.14135). Fewer
key heads than query heads: each serves a group of query heads (Ainslie et al. 2023, arXiv:2305.13245).
`reference.py` is the specification.
"""

from __future__ import annotations

import importlib

import torch
from jaxtyping import Float
from torch import Tensor

from kernels.arguments import expect_axes, expect_floating, expect_one_device, expect_shape
from kernels.dispatch import ImplementationUnavailable, Operation, note

__all__ = ["OPERATION", "attention_step", "causal_attention"]

OPERATION = Operation(
    "attention",
    {
        "flash_attn": "kernels.attention.flash_attn_package",
        "cudnn": "kernels.attention.sdpa_cudnn",
        "flash": "kernels.attention.sdpa_flash",
        "efficient": "kernels.attention.sdpa_efficient",
        "math": "kernels.attention.sdpa_math",
        "reference": "kernels.attention.reference",
    },
)


def causal_attention(
    q: Float[Tensor, "batch length heads head_size"],
    k: Float[Tensor, "batch length key_heads head_size"],
    v: Float[Tensor, "batch length key_heads head_size"],
    *,
    window: int | None = None,
    implementation: str = "auto",
) -> Float[Tensor, "batch length heads head_size"]:
    """Each position attends to itself and what came before; differentiable in q, k and v.

    Under autocast the inputs are cast first, so that the implementation is chosen for the dtype that it will see.

    Args:
        q: queries.
        k: keys; the number of key heads divides the number of heads.
        v: values.
        window: how many positions one sees, itself included; all earlier ones if not given.
        implementation: a name in `OPERATION.implementations`, or "auto".

    Returns:
        The attended values, in the dtype of the (cast) inputs.

    Raises:
        ValueError: a shape, dtype or device disagrees with the others, or the window is below 1.
        ImplementationUnavailable: the implementation cannot run on this device or with this dtype or head size.
    """
    expect_axes("q", q, "batch length heads head_size")
    batch, length, _, head_size = q.shape
    _check(q, k, v, "k", "v", (batch, length), head_size)
    _check_window(window)
    q, k, v = _autocast(q), _autocast(k), _autocast(v)
    return _attend(implementation, q, k, v, True, window)


def attention_step(
    q: Float[Tensor, "batch heads head_size"],
    k_cache: Float[Tensor, "batch capacity key_heads head_size"],
    v_cache: Float[Tensor, "batch capacity key_heads head_size"],
    length: int,
    *,
    window: int | None = None,
    implementation: str = "auto",
) -> Float[Tensor, "batch heads head_size"]:
    """The attended values for the newest of the first `length` positions in the caches, those that are filled.

    Raises:
        ValueError: a shape, dtype or device disagrees with the others, the window is below 1, or the caches do not hold
            `length` positions.
        ImplementationUnavailable: as for `causal_attention`.
    """
    expect_axes("q", q, "batch heads head_size")
    batch, _, head_size = q.shape
    expect_axes("k_cache", k_cache, "batch capacity key_heads head_size")
    capacity = k_cache.shape[1]
    _check(q, k_cache, v_cache, "k_cache", "v_cache", (batch, capacity), head_size)
    _check_window(window)
    if not 1 <= length <= capacity:
        raise ValueError(f"length is {length}; it must be from 1 to the capacity of the caches, {capacity}")
    first = 0 if window is None else max(0, length - window)
    q, k, v = _autocast(q.unsqueeze(1)), _autocast(k_cache[:, first:length]), _autocast(v_cache[:, first:length])
    return _attend(implementation, q, k, v, False, None).squeeze(1)


def _attend(implementation: str, q: Tensor, k: Tensor, v: Tensor, is_causal: bool, window: int | None) -> Tensor:
    # Unlike other operations, one that runs on the device may still refuse the dtype, the head size or the window.
    if implementation != "auto" and implementation not in OPERATION.implementations:
        OPERATION.choose(implementation, q.device)
    names = list(OPERATION.implementations) if implementation == "auto" else [implementation]
    reasons = []
    for name in names:
        module = importlib.import_module(OPERATION.implementations[name])
        reason = module.unavailable(q.device) or module.unsuited(q, k, v, is_causal, window)
        if reason is None:
            note(OPERATION.name, name)
            y: Tensor = module.attention(q, k, v, is_causal, window)
            return y
        reasons.append(f"{name}: {reason}")
    raise ImplementationUnavailable(f"attention cannot run here as {implementation!r}. {'; '.join(reasons)}")


def _autocast(tensor: Tensor) -> Tensor:
    kind = tensor.device.type
    return tensor.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else tensor


def _check_window(window: int | None) -> None:
    if window is not None and window < 1:
        raise ValueError(f"window is {window}; it must be at least 1, or None to see all earlier positions")


def _check(q: Tensor, k: Tensor, v: Tensor, k_name: str, v_name: str, rows: tuple[int, int], head_size: int) -> None:
    axes = "batch length key_heads head_size"
    expect_axes(k_name, k, axes)
    heads, key_heads = q.shape[-2], k.shape[2]
    if heads % key_heads != 0:
        raise ValueError(f"{k_name} has {key_heads} heads; their number must divide that of q, {heads}")
    for name, tensor in {k_name: k, v_name: v}.items():
        expect_shape(name, tensor, axes, (*rows, key_heads, head_size))
    for name, tensor in {"q": q, k_name: k, v_name: v}.items():
        expect_floating(name, tensor)
        if tensor.dtype != q.dtype:
            raise ValueError(f"{name} is {tensor.dtype}; it must be {q.dtype}, like q")
    expect_one_device(**{"q": q, k_name: k, v_name: v})
