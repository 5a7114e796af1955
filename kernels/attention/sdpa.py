"""torch's scaled_dot_product_attention with exactly one backend enabled: it runs or raises, it never falls back."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import pad, scaled_dot_product_attention


def attention(backend: SDPBackend, q: Tensor, k: Tensor, v: Tensor, is_causal: bool, window: int | None) -> Tensor:
    """Values (batch, length, heads, head_size) from q, k and v of such shapes; k and v may have fewer heads."""
    with sdpa_kernel(backend):
        if window is None or window >= q.shape[1]:
            return _attend(q, k, v, is_causal=is_causal)
        return _attend_in_window(q, k, v, window)


def parameters(q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> torch.backends.cuda.SDPAParams:
    """What torch's own tests of whether a backend takes the inputs want to know."""
    q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
    return torch.backends.cuda.SDPAParams(q, k, v, None, 0.0, is_causal, q.shape[1] != k.shape[1])


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
    start_of_window = torch.arange(1, window + 1, device=q.device).unsqueeze(1)
    key = torch.arange(2 * window, device=q.device)
    mask = (key >= start_of_window) & (key < start_of_window + window)

    first = _attend(q[:, :window], k[:, :window], v[:, :window], is_causal=True)
    later = _attend(
        _blocks(pad(q[:, window:], (0, 0, 0, 0, 0, end)), window, window),
        _blocks(pad(k, (0, 0, 0, 0, 0, end)), 2 * window, window),
        _blocks(pad(v, (0, 0, 0, 0, 0, end)), 2 * window, window),
        mask=mask,
    )
    return torch.cat([first, later.reshape(q.shape[0], -1, *q.shape[2:])], dim=1)[:, :length]


def _blocks(tensor: Tensor, size: int, step: int) -> Tensor:
    """(batch, length, heads, head_size) to (batch * blocks, size, heads, head_size), a block beginning every `step`."""
    return tensor.unfold(1, size, step).movedim(-1, 2).flatten(0, 1)
