"""torch's scaled_dot_product_attention with exactly one backend enabled: it runs or raises, it never falls back."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.backends.cuda import SDPAParams
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import pad, scaled_dot_product_attention


def attention(backend: SDPBackend, q: Tensor, k: Tensor, v: Tensor, is_causal: bool, window: int | None) -> Tensor:
    """Values (batch, length, heads, head_size) from q, k and v of such shapes; k and v may have fewer heads."""
    with sdpa_kernel(backend):
        if window is None or window >= q.shape[1]:
            return _attend(q, k, v, is_causal=is_causal)
        return _attend_in_window(q, k, v, window)


def unsuited(
    can_use: Callable[[SDPAParams], bool], q: Tensor, k: Tensor, v: Tensor, is_causal: bool, window: int | None
) -> str | None:
    """Why a backend does not take these inputs, by torch's own test of it."""
    if window is None or window >= q.shape[1]:
        is_taken = can_use(_parameters(q, k, v, is_causal, None))
    else:
        mask = _window_mask(window, q.device)[:, : k.shape[1]]
        first, both = slice(0, window), slice(0, 2 * window)
        is_taken = can_use(_parameters(q[:, first], k[:, first], v[:, first], True, None)) and can_use(
            _parameters(q[:, first], k[:, both], v[:, both], False, mask)
        )
    wanted = f"{q.dtype} with head size {q.shape[-1]}" + ("" if window is None else " and a window")
    return None if is_taken else f"it does not take {wanted} here"


def _parameters(q: Tensor, k: Tensor, v: Tensor, is_causal: bool, mask: Tensor | None) -> SDPAParams:
    q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
    return SDPAParams(q, k, v, mask, 0.0, is_causal, q.shape[1] != k.shape[1])


def _attend(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool = False, mask: Tensor | None = None) -> Tensor:
    q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
    is_grouped = q.shape[1] != k.shape[1]
    y = scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal, enable_gqa=is_grouped)
    return y.transpose(1, 2)


def _attend_in_window(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    # In blocks as long as the window a position sees into its own block and the one before, and nowhere else. The
    # first block has none before and is plainly causal.
    length = q.shape[1]
    end = -length % window
    first = _attend(q[:, :window], k[:, :window], v[:, :window], is_causal=True)
    later = _attend(
        _blocks(pad(q[:, window:], (0, 0, 0, 0, 0, end)), window, window),
        _blocks(pad(k, (0, 0, 0, 0, 0, end)), 2 * window, window),
        _blocks(pad(v, (0, 0, 0, 0, 0, end)), 2 * window, window),
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
