"""How attention learns where a token stands: rotary turns (RoPE), their decaying form (xPos), and ALiBi's slopes.

    rope    q_p, k_p turned by p theta_i                                          theta_i = 10000^(-2i / S)
    xpos    q_p times zeta_i^(p / 512), k_p times zeta_i^(-p / 512) as well       zeta_i = (2i / S + 0.4) / 1.4
    alibi   score minus m_h times the distance                                    m_h = 2^(-8h / H), h = 1 … H

Su et al. 2021 (arXiv:2104.09864), Sun et al. 2022 (arXiv:2212.10554), Press et al. 2021 (arXiv:2108.12409). In all
three the score depends on the distance alone, which is why a cache may hold keys that have been turned already.
"""

# L length, H heads, F frequencies (S / 2, S the head size)

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

_ROPE_BASE = 10_000.0
_XPOS_SCALE = 512
_XPOS_GAMMA = 0.4
MAX_XPOS_LENGTH = 32_768
"""Tokens after which zeta^(-p / 512) would leave the range of float32 and bfloat16."""


def turns_at(positions: Int[Tensor, "*batch length"], size: int) -> Complex[Tensor, "*batch length frequencies"]:
    """exp(i p theta), complex128."""
    # Float32 angles would be off by a tenth of a radian a million tokens in.
    angles = positions.unsqueeze(-1) * _frequencies(size // 2, positions.device)
    return torch.polar(torch.ones_like(angles), angles)


@functools.cache
def _frequencies(num_pairs: int, device: torch.device) -> Tensor:
    """theta, float64."""
    with _kept_for_training():
        return _ROPE_BASE ** (-torch.arange(num_pairs, device=device, dtype=torch.float64) / num_pairs)


def growth_at(positions: Int[Tensor, "*batch length"], size: int) -> Float[Tensor, "*batch length frequencies"]:
    """zeta^(p / 512), float64: what xPos multiplies a query by and divides a key by."""
    num_pairs = size // 2
    zeta_F = torch.arange(num_pairs, device=positions.device, dtype=torch.float64) / num_pairs
    zeta_F = (zeta_F + _XPOS_GAMMA) / (1 + _XPOS_GAMMA)
    return zeta_F ** (positions.to(torch.float64) / _XPOS_SCALE).unsqueeze(-1)


def turn_table(
    length: int, size: int, dtype: torch.dtype, device: torch.device
) -> Complex[Tensor, "length frequencies"]:
    """The turns of positions 0 … length - 1, complex of the precision of `dtype`, from a table that is kept."""
    precision = torch.complex128 if dtype == torch.float64 else torch.complex64
    # One table serves all lengths up to the next power of two.
    num_positions = 2 ** (length - 1).bit_length()
    return _turn_table(num_positions, size, precision, device)[:length]


@functools.lru_cache(maxsize=8)
def _turn_table(num_positions: int, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with _kept_for_training():
        return turns_at(torch.arange(num_positions, device=device), size).to(dtype)


@contextmanager
def _kept_for_training() -> Iterator[None]:
    """What is made in inference mode could not be used in training later."""
    with torch.inference_mode(False), torch.no_grad():
        yield


def alibi_slopes(num_heads: int) -> Float[Tensor, " heads"]:
    """m_h, float32; where H is no power of two, those of the next lower one, then every second of the next higher."""
    whole = 2 ** int(math.log2(num_heads))
    first = [2 ** (-8 * head / whole) for head in range(1, whole + 1)]
    between = [2 ** (-8 * head / (2 * whole)) for head in range(1, 2 * whole + 1, 2)]
    return torch.tensor((first + between)[:num_heads])
