"""Causal softmax attention (Vaswani et al. 2017, arXiv:1706.03762).

    q, k, v = W_q x, W_k x, W_v x;   q, k turned or the scores lowered by position       (`positions`)
    y_t     = sum_{s <= t} softmax_s(q_t . k_s / sqrt(S)) v_s                            for each head of size S

The map W_o behind it is the block's. With fewer key heads than heads a key serves several queries (Ainslie et al. 2023,
arXiv:2305.13245); with a window a token sees only the last of them (Beltagy et al. 2020, arXiv:2004.05150). The state
is the keys and values of all tokens so far, or of a window of them: without a window it grows with the length.

What differs: learned positions are added to the mixer's input, for each layer anew, since embeddings are the shell's.

Glossary: `input_projection` W_q, W_k, W_v in one.
"""

# B batch, L length, D inputs, H heads, K key heads, S head size, C slots of the cache

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import embedding

from kernels.attention import attention_step, causal_attention
from kernels.documents import longest_document, positions_in_documents
from kernels.rotary import rotate
from models.flops import map_flops
from models.mixer import Mixer, Sizes
from models.mixers.positions import MAX_XPOS_LENGTH, alibi_slopes, growth_at, turn_table, turns_at
from suite.errors import UsageError
from suite.spec import PositiveInt, Settings

_POSITION_STD = 0.02


class Attention(Mixer):
    """Attention: every token looks at all before it."""

    name = "attention"
    has_input_map = True

    class Options(Settings):
        """Settings of attention."""

        num_heads: PositiveInt = 4
        num_kv_heads: PositiveInt | None = None
        """Heads of keys and values, a divisor of `num_heads`, which it is if not given; 1 for one that all share."""
        head_size: PositiveInt | None = None
        """Channels of a head; the channels over `num_heads` if not given."""
        position: Literal["none", "learned", "rope", "xpos", "alibi"] = "rope"
        max_positions: PositiveInt = 1024
        """Tokens that the table of learned positions reaches."""
        window: PositiveInt | None = None
        """Tokens that one sees, itself included; all before it if not given."""
        implementation: str = "auto"
        """Implementation of attention over a whole sequence."""

    def __init__(self, sizes: Sizes, options: Options) -> None:
        super().__init__(sizes, options)
        self._num_heads = options.num_heads
        self._num_key_heads, self._head_size = _heads(sizes, options)
        self._position, self._window = options.position, options.window
        self._implementation = options.implementation
        self.output_size = self._num_heads * self._head_size
        num_maps = self._num_heads + 2 * self._num_key_heads
        self.input_projection = nn.Linear(sizes.inputs, num_maps * self._head_size, bias=False)
        if options.position == "learned":
            self.position_embedding = nn.Embedding(options.max_positions, sizes.inputs)
            nn.init.normal_(self.position_embedding.weight, std=_POSITION_STD)
        slopes_H = alibi_slopes(self._num_heads) if options.position == "alibi" else None
        self.register_buffer("slopes", slopes_H, persistent=False)
        self.slopes: Tensor | None

    def forward(
        self,
        x_BLD: Float[Tensor, "batch length inputs"],
        sequence_starts: Bool[Tensor, "batch length"] | None = None,
    ) -> Float[Tensor, "batch length channels"]:
        """The whole sequence. Positions count from where a document starts.

        Raises:
            UsageError: a document is longer than the position encoding reaches.
        """
        return self._attend(*self._map_documents(x_BLD, sequence_starts), sequence_starts)

    def prefill(
        self,
        x_BLD: Float[Tensor, "batch length inputs"],
        *,
        max_length: int,
        sequence_starts: Bool[Tensor, "batch length"] | None = None,
    ) -> tuple[Float[Tensor, "batch length channels"], tuple[Tensor, Tensor, Tensor]]:
        """The same, and the keys and values of each row's last document in their slots.

        Raises:
            UsageError: `max_length` is more than the position encoding reaches.
        """
        self._expect_reach(max_length)
        batch, length, _ = x_BLD.shape
        q_BLHS, k_BLKS, v_BLKS = self._map_documents(x_BLD, sequence_starts)
        if sequence_starts is None:
            num_tokens_B = torch.full((batch,), length, device=x_BLD.device)
        else:
            num_tokens_B = positions_in_documents(sequence_starts)[:, -1] + 1
        # Each slot holds the last position that is the slot's number modulo their count; where that is negative, none.
        num_tokens_B1, num_slots = num_tokens_B.unsqueeze(1), self._num_slots(max_length)
        slots_C = torch.arange(num_slots, device=x_BLD.device)
        last_BC = num_tokens_B1 - 1 - (num_tokens_B1 - 1 - slots_C) % num_slots
        token_BC = (length - num_tokens_B1 + last_BC).clamp(min=0)

        def cached(tensor_BLKS: Tensor) -> Tensor:
            index_BKCS = token_BC[:, None, :, None].expand(-1, self._num_key_heads, -1, self._head_size)
            rows_BKCS = tensor_BLKS.transpose(1, 2).gather(2, index_BKCS)
            return rows_BKCS.masked_fill((last_BC < 0)[:, None, :, None], 0).to(self._cache_dtype())

        y_BLE = self._attend(q_BLHS, k_BLKS, v_BLKS, sequence_starts)
        return y_BLE, (cached(k_BLKS), cached(v_BLKS), num_tokens_B)

    def initial_state(self, batch_size: int, max_length: int) -> tuple[Tensor, Tensor, Tensor]:
        """Room for the keys and values that are seen, in the dtype that autocast gives them, and the number of tokens.

        The caches are (batch, key heads, slots, head size) with a slot for each of `max_length` tokens or of the
        window; the number is one for each row. All of it lies on the device, so that a step may stand in a CUDA graph.

        Raises:
            UsageError: `max_length` is more than the position encoding reaches.
        """
        self._expect_reach(max_length)
        device = self.input_projection.weight.device
        shape = (batch_size, self._num_key_heads, self._num_slots(max_length), self._head_size)
        keys_BKCS = torch.zeros(shape, dtype=self._cache_dtype(), device=device)
        return keys_BKCS, keys_BKCS.clone(), torch.zeros(batch_size, dtype=torch.int64, device=device)

    def step(
        self, x_BD: Float[Tensor, "batch inputs"], state: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Float[Tensor, "batch channels"], tuple[Tensor, Tensor, Tensor]]:
        """One token: its key and value join the others, in the place of the oldest if a window is full.

        The shell lets no step into a full state. A CUDA graph that is replayed beyond it gives NaN.
        """
        keys_BKCS, values_BKCS, num_tokens_B = state
        num_slots = keys_BKCS.shape[2]
        position_B = num_tokens_B if self._window else num_tokens_B.clamp(max=num_slots - 1)
        q_B1HS, k_B1KS, v_B1KS = self._maps(x_BD.unsqueeze(1), position_B.unsqueeze(1))
        slot_BK1S = (position_B % num_slots).view(-1, 1, 1, 1).expand(-1, self._num_key_heads, 1, self._head_size)
        keys_BKCS.scatter_(2, slot_BK1S, k_B1KS.transpose(1, 2).to(keys_BKCS.dtype))
        values_BKCS.scatter_(2, slot_BK1S, v_B1KS.transpose(1, 2).to(values_BKCS.dtype))
        next_num_tokens_B = num_tokens_B + 1
        y_BHS = attention_step(
            q_B1HS[:, 0].to(keys_BKCS.dtype),
            keys_BKCS.transpose(1, 2),
            values_BKCS.transpose(1, 2),
            next_num_tokens_B,
            window=self._window,
            alibi_slopes=self.slopes,
        )
        if self._window is None:
            y_BHS = y_BHS.masked_fill((num_tokens_B >= num_slots).view(-1, 1, 1), math.nan)
        return y_BHS.flatten(1), (keys_BKCS, values_BKCS, next_num_tokens_B)

    def flops_per_token(self, length: int) -> float:
        """The map to queries, keys and values, and a product with the key and with the value of each token seen."""
        window = min(self._window or length, length)
        num_seen = window * (window + 1) / 2 + (length - window) * window
        return map_flops(self.input_projection) + 4 * self.output_size * num_seen / length

    def _map_documents(self, x_BLD: Tensor, sequence_starts: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of a whole sequence."""
        if sequence_starts is None:
            self._expect_reach(x_BLD.shape[1])
            return self._maps(x_BLD, None)
        self._expect_reach(longest_document(sequence_starts))
        return self._maps(x_BLD, positions_in_documents(sequence_starts))

    def _maps(self, x_BLD: Tensor, positions_BL: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values as (batch, length, heads, size), turned by their positions: 0, 1, … if not given."""
        length, device, num_queries = x_BLD.shape[1], x_BLD.device, self._num_heads
        if self._position == "learned":
            weight = self.position_embedding.weight
            x_BLD = x_BLD + (weight[:length] if positions_BL is None else embedding(positions_BL, weight))
        maps_BLHS = self.input_projection(x_BLD).unflatten(-1, (-1, self._head_size))
        # Queries and keys lie side by side, so that one turn does for both.
        qk_BLHS, v_BLKS = maps_BLHS.split([num_queries + self._num_key_heads, self._num_key_heads], dim=2)
        if self._position == "rope":
            if positions_BL is None:
                turns_F = turn_table(length, self._head_size, qk_BLHS.dtype, device)
            else:
                turns_F = turns_at(positions_BL, self._head_size)
            qk_BLHS = rotate(qk_BLHS, turns_F)
        q_BLHS, k_BLKS = qk_BLHS[:, :, :num_queries], qk_BLHS[:, :, num_queries:]
        if self._position == "xpos":
            positions = torch.arange(length, device=device) if positions_BL is None else positions_BL
            turns_F, growth_F = turns_at(positions, self._head_size), growth_at(positions, self._head_size)
            q_BLHS, k_BLKS = rotate(q_BLHS, turns_F * growth_F), rotate(k_BLKS, turns_F / growth_F)
        return q_BLHS, k_BLKS, v_BLKS

    def _attend(
        self, q_BLHS: Tensor, k_BLKS: Tensor, v_BLKS: Tensor, sequence_starts: Tensor | None
    ) -> Float[Tensor, "batch length channels"]:
        y_BLHS = causal_attention(
            q_BLHS,
            k_BLKS,
            v_BLKS,
            window=self._window,
            alibi_slopes=self.slopes,
            sequence_starts=sequence_starts,
            implementation=self._implementation,
        )
        return y_BLHS.flatten(2)

    def _num_slots(self, max_length: int) -> int:
        return max_length if self._window is None else min(self._window, max_length)

    def _cache_dtype(self) -> torch.dtype:
        weight = self.input_projection.weight
        device = weight.device.type
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype

    def _expect_reach(self, length: int) -> None:
        if self._position == "learned" and length > self.position_embedding.num_embeddings:
            raise UsageError(
                f"{length:,} tokens are more than the table of learned positions holds, max_positions = "
                f"{self.position_embedding.num_embeddings:,}. Set it higher, or use another position encoding"
            )
        if self._position == "xpos" and length > MAX_XPOS_LENGTH:
            raise UsageError(
                f"xpos reaches {MAX_XPOS_LENGTH:,} tokens, where its decay leaves the range of the numbers; these are "
                f"{length:,}. Use rope or alibi"
            )


def _heads(sizes: Sizes, options: Attention.Options) -> tuple[int, int]:
    """The number of key heads and the size of a head."""
    num_heads, head_size = options.num_heads, options.head_size
    if head_size is None:
        if sizes.channels % num_heads:
            what = "width" if sizes.channels == sizes.width else "number of channels"
            raise UsageError(f"{what} {sizes.channels} is not a multiple of num_heads {num_heads}")
        head_size = sizes.channels // num_heads
    if options.position in ("rope", "xpos") and head_size % 2:
        raise UsageError(f"head_size {head_size} is odd; {options.position} turns pairs of channels")
    num_key_heads = options.num_kv_heads or num_heads
    if num_heads % num_key_heads:
        raise UsageError(f"num_heads {num_heads} is not a multiple of num_kv_heads {num_key_heads}")
    return num_key_heads, head_size
