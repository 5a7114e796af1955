"""Every model again, from its paper's equations: a loop over time, in the precision of the weights it is given.

A branch is a function of its own weights, by name, and of its input. Nothing here is shared with `models` or `kernels`.
"""

# B batch, L length, D width of the shell, E channels inside, N state, H hidden, S head size, V vocabulary

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, sigmoid, tanh

Weights = Mapping[str, Tensor]
Branch = Callable[[Weights, Tensor], Tensor]


def shell(w: Weights, tokens_BL: Tensor, branches: Sequence[Branch]) -> Tensor:
    """Logits (B, L, V) of the whole model."""
    x_BLD = w["embedding.weight"][tokens_BL]
    for index, branch in enumerate(branches):
        prefix = f"branches.{index}."
        own = {name.removeprefix(prefix): value for name, value in w.items() if name.startswith(prefix)}
        x_BLD = x_BLD + branch(own, _normed(x_BLD, w[f"norms.{index}.weight"]))
    return _normed(x_BLD, w["final_norm.weight"]) @ w["head.weight"].T


def lstm(w: Weights, x_BLD: Tensor) -> Tensor:
    """Gates in torch's order: input, forget, cell, output."""
    W, R = w["cell.weight_ih_l0"], w["cell.weight_hh_l0"]
    b = w["cell.bias_ih_l0"] + w["cell.bias_hh_l0"]
    h_BH = c_BH = x_BLD.new_zeros(len(x_BLD), R.shape[1])
    outputs = []
    for x_BD in x_BLD.unbind(1):
        i, f, g, o = (x_BD @ W.T + h_BH @ R.T + b).chunk(4, dim=-1)
        c_BH = sigmoid(f) * c_BH + sigmoid(i) * tanh(g)
        h_BH = sigmoid(o) * tanh(c_BH)
        outputs.append(h_BH @ w["output_projection.weight"].T)
    return torch.stack(outputs, dim=1)


def gru(w: Weights, x_BLD: Tensor) -> Tensor:
    """Gates in torch's order: reset, update, candidate."""
    W, R, b, d = (w[f"cell.{name}_l0"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    h_BH = x_BLD.new_zeros(len(x_BLD), R.shape[1])
    outputs = []
    for x_BD in x_BLD.unbind(1):
        x_r, x_z, x_g = (x_BD @ W.T + b).chunk(3, dim=-1)
        h_r, h_z, h_g = (h_BH @ R.T + d).chunk(3, dim=-1)
        z = sigmoid(x_z + h_z)
        h_BH = (1 - z) * tanh(x_g + sigmoid(x_r + h_r) * h_g) + z * h_BH
        outputs.append(h_BH @ w["output_projection.weight"].T)
    return torch.stack(outputs, dim=1)


def mamba(w: Weights, x_BLD: Tensor) -> Tensor:
    """Algorithm 2 of the paper inside the block of figure 3."""
    A_EN = -torch.exp(w["A_log"])
    num_channels, num_states = A_EN.shape
    taps_EK = w["conv_weight"]
    window = [x_BLD.new_zeros(len(x_BLD), num_channels)] * taps_EK.shape[1]
    h_BEN = x_BLD.new_zeros(len(x_BLD), num_channels, num_states)
    rank = w["delta_projection.weight"].shape[1]
    outputs = []
    for x_BD in x_BLD.unbind(1):
        u_BE, z_BE = (x_BD @ w["input_projection.weight"].T).chunk(2, dim=-1)
        window = [*window[1:], u_BE]
        u_BE = _silu(sum((taps_EK[:, k] * past for k, past in enumerate(window)), w["conv_bias"]))
        selection = u_BE @ w["selection_projection.weight"].T
        low_rank, B_BN, C_BN = torch.split(selection, [rank, num_states, num_states], dim=-1)
        delta_BE = torch.log1p(torch.exp(low_rank @ w["delta_projection.weight"].T + w["delta_projection.bias"]))
        decay_BEN = torch.exp(delta_BE[:, :, None] * A_EN)
        h_BEN = decay_BEN * h_BEN + (delta_BE * u_BE)[:, :, None] * B_BN[:, None, :]
        y_BE = (h_BEN @ C_BN[:, :, None])[:, :, 0] + w["D"] * u_BE
        outputs.append((y_BE * _silu(z_BE)) @ w["output_projection.weight"].T)
    return torch.stack(outputs, dim=1)


def s4(w: Weights, x_BLD: Tensor) -> Tensor:
    """The state space as a recurrence with the real state of N numbers written as N / 2 complex ones."""
    A = torch.complex(-torch.exp(w["A_real_log"]), w["A_imag"])
    C = torch.complex(w["C"][..., 0], w["C"][..., 1])
    decay = torch.exp(torch.exp(w["log_delta"])[:, None] * A)
    h = torch.zeros(len(x_BLD), *A.shape, dtype=A.dtype)
    outputs = []
    for x_BD in x_BLD.unbind(1):
        h = decay * h + (decay - 1) / A * x_BD[:, :, None]
        y_BD = 2 * (C * h).real.sum(dim=-1) + w["D"] * x_BD
        y_BD = y_BD * (1 + torch.erf(y_BD / math.sqrt(2))) / 2
        value = y_BD @ w["output_projection.weight"].T + w["output_projection.bias"]
        outputs.append(value * sigmoid(y_BD @ w["output_gate.weight"].T + w["output_gate.bias"]))
    return torch.stack(outputs, dim=1)


def attention(num_heads: int, *, rope: bool) -> Branch:
    """Multi-head attention, one query and one head at a time."""

    def branch(w: Weights, x_BLD: Tensor) -> Tensor:
        q, k, v = (
            part.reshape(*x_BLD.shape[:2], num_heads, -1).transpose(1, 2)
            for part in (x_BLD @ w["input_projection.weight"].T).chunk(3, dim=-1)
        )
        if rope:
            q, k = _turned(q), _turned(k)
        outputs = []
        for t in range(x_BLD.shape[1]):
            heads = []
            for head in range(num_heads):
                scores = (k[:, head, : t + 1] @ q[:, head, t, :, None])[..., 0] / math.sqrt(q.shape[-1])
                weights = torch.exp(scores) / torch.exp(scores).sum(dim=-1, keepdim=True)
                heads.append((weights[:, :, None] * v[:, head, : t + 1]).sum(dim=1))
            outputs.append(torch.cat(heads, dim=-1) @ w["output_projection.weight"].T)
        return torch.stack(outputs, dim=1)

    return branch


def mlp(w: Weights, x_BLD: Tensor) -> Tensor:
    """SwiGLU."""
    gate, value = (x_BLD @ w["input_projection.weight"].T).chunk(2, dim=-1)
    return (_silu(gate) * value) @ w["output_projection.weight"].T


def _turned(x_BHLS: Tensor) -> Tensor:
    """Each pair of neighbours turned in its plane by p theta_i, theta_i = 10000^(-2i/S)."""
    length, size = x_BHLS.shape[2:]
    theta = torch.tensor([10000 ** (-2 * i / size) for i in range(size // 2)], dtype=x_BHLS.dtype)
    angles = torch.arange(length, dtype=x_BHLS.dtype)[:, None] * theta
    even, odd = x_BHLS[..., 0::2], x_BHLS[..., 1::2]
    turned = [even * torch.cos(angles) - odd * torch.sin(angles), even * torch.sin(angles) + odd * torch.cos(angles)]
    return torch.stack(turned, dim=-1).flatten(-2)


def _normed(x: Tensor, gain: Tensor) -> Tensor:
    return x / torch.sqrt((x * x).mean(dim=-1, keepdim=True) + 1e-5) * gain


def _silu(x: Tensor) -> Tensor:
    return x * sigmoid(x)
