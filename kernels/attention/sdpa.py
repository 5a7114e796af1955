"""torch's scaled_dot_product_attention with exactly one backend enabled: it runs or raises, it never falls back."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.backends.cuda import SDPAParams
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import pad, scaled_dot_product_attention

_BASE = 128
_SLOPE_CHANNELS = 8
"""Four would do; the kernels want head sizes in eights."""


def attention(
    backend: SDPBackend, q: Tensor, k: Tensor, v: Tensor, is_causal: bool, window: int | None, slopes: Tensor | None
) -> Tensor:
    """Values (batch, length, heads, head_size) from q, k and v of such shapes; k and v may have fewer heads."""
    head_size = q.shape[-1]
    scale = 1 / math.sqrt(head_size)
    if slopes is not None:
        q, k, v = _with_slopes(q, k, v, slopes, scale)
    with sdpa_kernel(backend):
        if window is None or window >= q.shape[1]:
            y = _attend(q, k, v, scale, is_causal=is_causal)
        else:
            y = _attend_in_window(q, k, v, scale, window)
    return y[..., :head_size]


def unsuited(
    can_use: Callable[[SDPAParams], bool],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    is_causal: bool,
    window: int | None,
    slopes: Tensor | None,
) -> str | None:
    """Why a backend does not take these inputs, by torch's own test of it."""
    wanted = f"{q.dtype} with head size {q.shape[-1]}" + ("" if window is None else " and a window")
    if slopes is not None:
        wanted += " and slopes"
        q, k, v = (pad(tensor, (0, _SLOPE_CHANNELS)) for tensor in (q, k, v))
    if window is None or window >= q.shape[1]:
        is_taken = can_use(_parameters(q, k, v, is_causal, None))
    else:
        mask = _window_mask(window, q.device)[:, : k.shape[1]]
        first, both = slice(0, window), slice(0, 2 * window)
        is_taken = can_use(_parameters(q[:, first], k[:, first], v[:, first], True, None)) and can_use(
            _parameters(q[:, first], k[:, both], v[:, both], False, mask)
        )
    return None if is_taken else f"it does not take {wanted} here"


def _with_slopes(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v with further channels, whose products are the slopes' part of the scores.

    A softmax does not see what a whole row has in common, so that -m (t - s) may be m s, a product of the query's m and
    the key's s, counted from the middle. The digits of s to the base 128 are exact in bfloat16, where s itself is not.
    Scores then are as large as m times half the length, and float32 rounds them by a part of that.
    """
    batch, length, heads, _ = q.shape
    digit_values = _BASE ** torch.arange(_SLOPE_CHANNELS, device=q.device)
    positions_L1 = torch.arange(length, device=q.device).unsqueeze(1) - length // 2
    digits_LC = torch.fmod(torch.div(positions_L1, digit_values, rounding_mode="trunc"), _BASE)
    # Beyond the fourth digit, 2^28 positions, the weight of a digit is of no use and of no meaning.
    precision = torch.promote_types(q.dtype, torch.float32)
    weights_C = torch.where(digit_values <= _BASE**3, digit_values, 0).to(precision)
    # Rounded first, so that all digits of a head agree on its slope.
    slopes_H = (slopes.to(precision) / scale).to(q.dtype).to(precision)
    q_more = torch.outer(slopes_H, weights_C).to(q.dtype).expand(batch, length, heads, -1)
    k_more = digits_LC.to(k.dtype)[None, :, None].expand(batch, length, k.shape[2], -1)
    return torch.cat([q, q_more], -1), torch.cat([k, k_more], -1), pad(v, (0, _SLOPE_CHANNELS))


def _parameters(q: Tensor, k: Tensor, v: Tensor, is_causal: bool, mask: Tensor | None) -> SDPAParams:
    q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
    return SDPAParams(q, k, v, mask, 0.0, is_causal, q.shape[1] != k.shape[1])


def _attend(
    q: Tensor, k: Tensor, v: Tensor, scale: float, *, is_causal: bool = False, mask: Tensor | None = None
) -> Tensor:
    q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
    is_grouped = q.shape[1] != k.shape[1]
    y = scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal, scale=scale, enable_gqa=is_grouped)
    return y.transpose(1, 2)


def _attend_in_window(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int) -> Tensor:
    # In blocks as long as the window a position sees into its own block and the one before, and nowhere else. The
    # first block has none before and is plainly causal.
    length = q.shape[1]
    end = -length % window
    first = _attend(q[:, :window], k[:, :window], v[:, :window], scale, is_causal=True)
    later = _attend(
        _blocks(pad(q[:, window:], (0, 0, 0, 0, 0, end)), window, window),
        _blocks(pad(k, (0, 0, 0, 0, 0, end)), 2 * window, window),
        _blocks(pad(v, (0, 0, 0, 0, 0, end)), 2 * window, window),
        scale,
        mask=_window_mask(window, q.device),
    )
    return torch.cat([first, later.reshape(q.shape[0], -1, *q.shape[2:])], dim=1)[:, :length]


def _window_mask(window: int, device: torch.device) -> Tensor:
    """(window, 2 window): which keys of its own block and the one before a query of the block sees."""
    first_key = torch.arange(1, window + 1, device=device).unsqueeze(1)
    key = torch.arange(2 * window, device=device)
    return (key >= first_key) & (key < first_key + window)


def _blocks(tensor: Tensor, size: int, step: int) -> Tensor:
    """(batch, length, heads, head_size) to (batch * blocks, size, heads, head_size), a block beginning every `step`."""
    return tensor.unfold(1, size, step).movedim(-1, 2).flatten(0, 1)
