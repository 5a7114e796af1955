"""Transformer: causal softmax attention and an MLP (Vaswani et al. 2017, arXiv:1706.03762), as built today.

    q, k, v = W_q x, W_k x, W_v x;   q, k turned by their position          (rope)
    y_t     = sum_{s <= t} softmax_s(q_t . k_s / sqrt(S)) v_s;  out = W_o y  for each head of size S
    out     = W_2 (silu(W_g x) * W_1 x)                                      the second branch

What differs from 2017: pre-norm, rotary positions (Su et al. 2021, arXiv:2104.09864), a SwiGLU MLP (Shazeer 2020,
arXiv:2002.05202) and no biases. The state is the keys and values of all tokens so far: it grows with the length.

Glossary: `input_projection` W_q, W_k, W_v in one (attention), W_g and W_1 in one (MLP); `output_projection` W_o, W_2.
"""

# B batch, L length, M max_length, D width, H heads, S head size, F frequencies (S / 2)

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import silu

from kernels.attention import attention_step, causal_attention
from suite.errors import UsageError
from suite.plugin import Model
from suite.spec import PositiveFloat, PositiveInt, Settings, ShellSettings

_ROPE_BASE = 10_000.0
_HIDDEN_MULTIPLE = 8

Position = Literal["rope", "none"]


class Transformer(Model):
    """Causal attention and MLP: every token looks at all before it."""

    name = "transformer"

    class Options(Settings):
        """Settings of the Transformer."""

        num_heads: PositiveInt = 4
        head_size: PositiveInt | None = None
        """Channels of a head; the shell's width over `num_heads` if not given."""
        mlp_ratio: PositiveFloat = 8 / 3
        """Hidden units of the MLP per channel of the shell, rounded up to a multiple of 8."""
        position: Position = "rope"

    def branches(self, shell: ShellSettings) -> Sequence[nn.Module]:
        """Attention, then the MLP."""
        num_heads, head_size = self.options.num_heads, self.options.head_size
        if head_size is None:
            if shell.width % num_heads:
                raise UsageError(f"transformer: width {shell.width} is not a multiple of num_heads {num_heads}")
            head_size = shell.width // num_heads
        if self.options.position == "rope" and head_size % 2:
            raise UsageError(f"transformer: head_size {head_size} is odd; rope turns pairs of channels")
        return [
            AttentionBranch(shell.width, num_heads, head_size, self.options.position),
            MLPBranch(shell.width, self.options.mlp_ratio),
        ]


class AttentionBranch(nn.Module):
    """Causal attention. Its state is the keys, the values and how many tokens are in them."""

    def __init__(self, width: int, num_heads: int, head_size: int, position: Position) -> None:
        super().__init__()
        self._heads = (num_heads, head_size)
        self._position = position
        self.input_projection = nn.Linear(width, 3 * num_heads * head_size, bias=False)
        self.output_projection = nn.Linear(num_heads * head_size, width, bias=False)

    def forward(self, x_BLD: Float[Tensor, "batch length width"]) -> Float[Tensor, "batch length width"]:
        """The whole sequence."""
        q_BLHS, k_BLHS, v_BLHS = self._project(x_BLD, torch.arange(x_BLD.shape[1], device=x_BLD.device))
        y_BLHS = causal_attention(q_BLHS, k_BLHS, v_BLHS)
        return cast(Tensor, self.output_projection(y_BLHS.flatten(2)))

    def initial_state(self, batch_size: int, max_length: int) -> tuple[Tensor, Tensor, Tensor]:
        """Room for the keys and values of `max_length` tokens, in the dtype that autocast gives them, and zero tokens.

        The number of tokens stays on the host, so that a step need not wait for the device.
        """
        weight = self.input_projection.weight
        device = weight.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        keys_BMHS = weight.new_zeros(batch_size, max_length, *self._heads, dtype=dtype)
        return keys_BMHS, keys_BMHS.clone(), torch.zeros((), dtype=torch.int64, device="cpu")

    def step(
        self, x_BD: Float[Tensor, "batch width"], state: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Float[Tensor, "batch width"], tuple[Tensor, Tensor, Tensor]]:
        """One token: its key and value join the others, and its query sees them all.

        Raises:
            ValueError: the state already holds `max_length` tokens.
        """
        keys_BMHS, values_BMHS, num_tokens = state
        position, max_length = int(num_tokens), keys_BMHS.shape[1]
        if position == max_length:
            raise ValueError(f"the state has room for {max_length} tokens and is full; ask for a larger max_length")
        q_B1HS, k_B1HS, v_B1HS = self._project(x_BD[:, None], torch.full((1,), position, device=x_BD.device))
        keys_BMHS[:, position], values_BMHS[:, position] = k_B1HS[:, 0], v_B1HS[:, 0]
        y_BHS = attention_step(q_B1HS[:, 0].to(keys_BMHS.dtype), keys_BMHS, values_BMHS, position + 1)
        return self.output_projection(y_BHS.flatten(1)), (keys_BMHS, values_BMHS, num_tokens + 1)

    def _project(self, x_BLD: Tensor, positions_L: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values as (batch, length, heads, size), turned by their positions."""
        qkv_BL3HS = self.input_projection(x_BLD).unflatten(-1, (3, *self._heads))
        q_BLHS, k_BLHS, v_BLHS = qkv_BL3HS.unbind(2)
        if self._position == "rope":
            q_BLHS, k_BLHS = rotate(qkv_BL3HS[:, :, :2], positions_L).unbind(2)
        return q_BLHS, k_BLHS, v_BLHS


class MLPBranch(nn.Module):
    """A gated MLP on each token by itself. It has no state."""

    def __init__(self, width: int, ratio: float) -> None:
        super().__init__()
        hidden = _HIDDEN_MULTIPLE * math.ceil(ratio * width / _HIDDEN_MULTIPLE)
        self.input_projection = nn.Linear(width, 2 * hidden, bias=False)
        self.output_projection = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Float[Tensor, "... width"]) -> Float[Tensor, "... width"]:
        """Each token by itself."""
        gate, value = self.input_projection(x).chunk(2, dim=-1)
        return cast(Tensor, self.output_projection(silu(gate) * value))

    def initial_state(self, batch_size: int, max_length: int) -> None:
        """Nothing to remember."""

    def step(self, x_BD: Float[Tensor, "batch width"], state: None) -> tuple[Float[Tensor, "batch width"], None]:
        """The same map."""
        return self(x_BD), None


def rotate(
    x: Float[Tensor, "batch length two heads size"], positions: Int[Tensor, " length"]
) -> Float[Tensor, "batch length two heads size"]:
    """Turns the pair of channels (2i, 2i + 1), a complex number, at position p by the angle p * base^(-2i / size)."""
    num_pairs = x.shape[-1] // 2
    # Float32 angles would be off by a tenth of a radian a million tokens in.
    frequencies_F = _ROPE_BASE ** (-torch.arange(num_pairs, device=x.device, dtype=torch.float64) / num_pairs)
    angles_L11F = torch.outer(positions, frequencies_F)[:, None, None]
    precision = torch.promote_types(x.dtype, torch.float32)
    turn_L11F = torch.polar(torch.ones_like(angles_L11F), angles_L11F).to(precision.to_complex())
    pairs = torch.view_as_complex(x.to(precision).reshape(*x.shape[:-1], num_pairs, 2))
    return torch.view_as_real(pairs * turn_L11F).flatten(-2).to(x.dtype)
