"""Causal softmax attention, by the fastest implementation that takes the inputs, which is named on the receipt.

    y_t = sum_{s <= t} softmax_s(<q_t, k_s> / sqrt(head_size) - m (t - s)) v_s,   s > t - window if there is a window

Vaswani et al. 2017 (arXiv:1706.03762); the fast implementations descend from Dao et al. 2022 (arXiv:2205.14135). Fewer
key heads than query heads: each serves a group of query heads (Ainslie et al. 2023, arXiv:2305.13245). The slope m of a
head is that of ALiBi (Press et al. 2021, arXiv:2108.12409), 0 if none are given. `reference.py` is the specification.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kernels.arguments import expect_axes, expect_boolean, expect_floating, expect_one_device, expect_shape
from kernels.dispatch import ImplementationUnavailable, Operation, note
from kernels.documents import run_documents

__all__ = ["OPERATION", "attention_step", "causal_attention"]

OPERATION = Operation(
    "attention",
    {
        "flash_attn_3": "kernels.attention.flash_attn_3",
        "flash_attn_4": "kernels.attention.flash_attn_4",
        "cudnn": "kernels.attention.sdpa_cudnn",
        "flash_attn": "kernels.attention.flash_attn_2",
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
    alibi_slopes: Float[Tensor, " heads"] | None = None,
    sequence_starts: Bool[Tensor, "batch length"] | None = None,
    implementation: str = "auto",
) -> Float[Tensor, "batch length heads head_size"]:
    """Each position attends to itself and what came before; differentiable in q, k and v.

    Under autocast the inputs are cast first, so that the implementation is chosen for the dtype that it will see.

    Args:
        q: queries.
        k: keys; the number of key heads divides the number of heads.
        v: values.
        window: how many positions one sees, itself included; all earlier ones if not given.
        alibi_slopes: what each head takes off a score per position of distance; constants, without a gradient.
        sequence_starts: True where a new document begins, which sees nothing before. Documents of like length run side
            by side (`kernels.documents`), so that any implementation takes them.
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
    _check_slopes(alibi_slopes, q)
    q, k, v = _autocast(q), _autocast(k), _autocast(v)
    if sequence_starts is None:
        return _attend(implementation, q, k, v, True, window, alibi_slopes)
    expect_shape("sequence_starts", sequence_starts, "batch length", (batch, length))
    expect_boolean("sequence_starts", sequence_starts)
    expect_one_device(q=q, sequence_starts=sequence_starts)
    num_heads = [tensor.shape[2] for tensor in (q, k, v)]

    def attend(qkv: Tensor) -> Tensor:
        q, k, v = torch.split(qkv, num_heads, dim=2)
        return _attend(implementation, q, k, v, True, window, alibi_slopes)

    return run_documents(attend, torch.cat([q, k, v], dim=2), sequence_starts)


def attention_step(
    q: Float[Tensor, "batch heads head_size"],
    k_cache: Float[Tensor, "batch capacity key_heads head_size"],
    v_cache: Float[Tensor, "batch capacity key_heads head_size"],
    length: int | Int[Tensor, ""] | Int[Tensor, " batch"],
    *,
    window: int | None = None,
    alibi_slopes: Float[Tensor, " heads"] | None = None,
    implementation: str = "auto",
) -> Float[Tensor, "batch heads head_size"]:
    """The attended values for the newest of `length` positions, the last of which lie in the caches.

    The caches are rings: position p lies in slot p modulo the capacity, so that they hold all positions, or the last
    `capacity` of them. A length on the device, one for all rows or one for each, keeps the host out of it: the step
    reads the whole cache, what is not filled must be finite, and it may stand in a CUDA graph.

    Raises:
        ValueError: a shape, dtype or device disagrees with the others, the window is below 1, or the length is a number
            that the caches do not hold.
        ImplementationUnavailable: as for `causal_attention`; a length on the device has the one implementation `torch`.
    """
    expect_axes("q", q, "batch heads head_size")
    batch, _, head_size = q.shape
    expect_axes("k_cache", k_cache, "batch capacity key_heads head_size")
    capacity = k_cache.shape[1]
    _check(q, k_cache, v_cache, "k_cache", "v_cache", (batch, capacity), head_size)
    _check_window(window)
    _check_slopes(alibi_slopes, q)
    q, k_cache, v_cache = _autocast(q), _autocast(k_cache), _autocast(v_cache)
    if isinstance(length, Tensor):
        if implementation not in ("auto", "torch"):
            raise ImplementationUnavailable(
                f"a step whose length is on the device cannot run as {implementation!r}. Use 'auto', or pass a number"
            )
        if length.ndim:
            expect_shape("length", length, "batch", (batch,))
        return _step_in_ring(q, k_cache, v_cache, length, window, alibi_slopes)
    if not 1 <= length <= capacity:
        raise ValueError(f"length is {length}; it must be from 1 to the capacity of the caches, {capacity}")
    if alibi_slopes is not None:
        return _step_in_ring(q, k_cache, v_cache, torch.tensor(length, device=q.device), window, alibi_slopes)
    first = 0 if window is None else max(0, length - window)
    k, v = k_cache[:, first:length], v_cache[:, first:length]
    return _attend(implementation, q.unsqueeze(1), k, v, False, None, None).squeeze(1)


def _attend(
    implementation: str, q: Tensor, k: Tensor, v: Tensor, is_causal: bool, window: int | None, slopes: Tensor | None
) -> Tensor:
    # Unlike other operations, one that runs on the device may still refuse the dtype, the head size or the window.
    if implementation != "auto" and implementation not in OPERATION.implementations:
        OPERATION.choose(implementation, q.device)
    names = list(OPERATION.implementations) if implementation == "auto" else [implementation]
    reasons = []
    for name in names:
        module = OPERATION.module(name)
        reason = module.unavailable(q.device) or module.unsuited(q, k, v, is_causal, window, slopes)
        if reason is None:
            note(OPERATION.name, name)
            y: Tensor = module.attention(q, k, v, is_causal, window, slopes)
            return y
        reasons.append(f"{name}: {reason}")
    raise ImplementationUnavailable(f"attention cannot run here as {implementation!r}. {'; '.join(reasons)}")


def _step_in_ring(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, length: Tensor, window: int | None, slopes: Tensor | None
) -> Tensor:
    """One query against every slot, those masked that it does not see; no size depends on the length."""
    note("attention_step", "torch")
    batch, heads, head_size = q.shape
    capacity, key_heads = k_cache.shape[1:3]
    # X key heads of all sequences, G queries of a key head, S head size, C slots of the cache
    q_XGS = q.reshape(batch * key_heads, -1, head_size)
    k_XCS, v_XCS = (cache.transpose(1, 2).reshape(-1, capacity, head_size) for cache in (k_cache, v_cache))
    slots_C = torch.arange(capacity, device=q.device)
    # The axis B of a length that all rows share has size 1, and so has H where the heads do not differ.
    length_B11 = length.view(-1, 1, 1)
    if window is None and slopes is None:
        bias_BHC = torch.zeros_like(slots_C, dtype=q.dtype).masked_fill(slots_C >= length_B11, -math.inf)
    else:
        distance_B1C = (length_B11 - 1 - slots_C) % capacity
        is_unseen_B1C = distance_B1C >= (length_B11 if window is None else length_B11.clamp(max=window))
        slopes_H1 = q.new_zeros(1, 1) if slopes is None else slopes.to(q.dtype).unsqueeze(1)
        bias_BHC = (-slopes_H1 * distance_B1C).masked_fill(is_unseen_B1C, -math.inf)
    bias_BKGC = torch.unflatten(bias_BHC, 1, (-1, 1) if bias_BHC.shape[1] == 1 else (key_heads, -1))
    bias_XGC = bias_BKGC.expand(batch, key_heads, -1, -1).flatten(0, 1)
    scores_XGC = torch.baddbmm(bias_XGC, q_XGS, k_XCS.transpose(1, 2), alpha=1 / math.sqrt(head_size))
    precision = torch.promote_types(q.dtype, torch.float32)
    weights_XGC = torch.softmax(scores_XGC, dim=-1, dtype=precision).to(q.dtype)
    return torch.bmm(weights_XGC, v_XCS).view(batch, heads, head_size)


def _autocast(tensor: Tensor) -> Tensor:
    kind = tensor.device.type
    return tensor.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else tensor


def _check_window(window: int | None) -> None:
    if window is not None and window < 1:
        raise ValueError(f"window is {window}; it must be at least 1, or None to see all earlier positions")


def _check_slopes(slopes: Tensor | None, q: Tensor) -> None:
    if slopes is not None:
        expect_shape("alibi_slopes", slopes, "heads", (q.shape[-2],))
        expect_floating("alibi_slopes", slopes)
        expect_one_device(q=q, alibi_slopes=slopes)


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
