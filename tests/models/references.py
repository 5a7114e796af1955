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
        # The equations know no difference between a block's weights and its mixer's.
        own = {
            name.removeprefix(prefix).removeprefix("mixer."): value
            for name, value in w.items()
            if name.startswith(prefix)
        }
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
    taps_EK = w["conv.weight"]
    window = [x_BLD.new_zeros(len(x_BLD), num_channels)] * taps_EK.shape[1]
    h_BEN = x_BLD.new_zeros(len(x_BLD), num_channels, num_states)
    rank = w["delta_projection.weight"].shape[1]
    outputs = []
    for x_BD in x_BLD.unbind(1):
        u_BE, z_BE = (x_BD @ w["input_projection.weight"].T).chunk(2, dim=-1)
        window = [*window[1:], u_BE]
        u_BE = _silu(sum((taps_EK[:, k] * past for k, past in enumerate(window)), w["conv.bias"]))
        selection = u_BE @ w["selection_projection.weight"].T
        low_rank, B_BN, C_BN = torch.split(selection, [rank, num_states, num_states], dim=-1)
        delta_BE = torch.log1p(torch.exp(low_rank @ w["delta_projection.weight"].T + w["delta_projection.bias"]))
        decay_BEN = torch.exp(delta_BE[:, :, None] * A_EN)
        h_BEN = decay_BEN * h_BEN + (delta_BE * u_BE)[:, :, None] * B_BN[:, None, :]
        y_BE = (h_BEN @ C_BN[:, :, None])[:, :, 0] + w["D"] * u_BE
        outputs.append((y_BE * _silu(z_BE)) @ w["output_projection.weight"].T)
    return torch.stack(outputs, dim=1)


def s4d(w: Weights, x_BLD: Tensor) -> Tensor:
    """The state space as a recurrence with the real state of N numbers written as N / 2 complex ones."""
    A = torch.complex(-torch.exp(w["A_real_log"]), w["A_imag"])
    C = torch.complex(w["C"][..., 0], w["C"][..., 1])
    decay = torch.exp(torch.exp(w["log_delta"])[:, None] * A)
    h = torch.zeros(len(x_BLD), *A.shape, dtype=A.dtype)
    outputs = []
    for x_BD in x_BLD.unbind(1):
        h = decay * h + (decay - 1) / A * x_BD[:, :, None]
        outputs.append(2 * (C * h).real.sum(dim=-1) + w["D"] * x_BD)
    return torch.stack(outputs, dim=1)


def s4_dplr(w: Weights, x_BLD: Tensor) -> Tensor:
    """The dense state space, pairs of conjugates and all, discretised by the trapezoidal rule."""
    Lambda = _with_conjugates(torch.complex(-torch.exp(w["Lambda_real_log"]), w["Lambda_imag"]))
    P, B, C = (_with_conjugates(torch.complex(*w[name].unbind(-1))) for name in ("P", "B", "C"))
    delta = torch.exp(w["log_delta"])[:, None, None]
    A = torch.diag_embed(Lambda) - P[:, :, None] * P.conj()[:, None, :]
    one = torch.eye(A.shape[-1], dtype=A.dtype)
    inverse = torch.linalg.inv(one - delta / 2 * A)
    A_bar, B_bar = inverse @ (one + delta / 2 * A), (inverse @ (delta * B[:, :, None]))[..., 0]
    h = torch.zeros(len(x_BLD), *B.shape, dtype=A.dtype)
    outputs = []
    for x_BD in x_BLD.unbind(1):
        h = (A_bar @ h[..., None])[..., 0] + B_bar * x_BD[:, :, None]
        outputs.append((C * h).sum(dim=-1).real + w["D"] * x_BD)
    return torch.stack(outputs, dim=1)


def hyena(filter_length: int, num_frequencies: int) -> Branch:
    """The sum over all distances, each with the entry that the network writes for it."""

    def branch(w: Weights, x_BLD: Tensor) -> Tensor:
        length, channels = x_BLD.shape[1:]
        windows = -math.log(0.01) / torch.linspace(1.5, 0.3, 2, dtype=x_BLD.dtype)
        alpha_D = windows[0] + (windows[1] - windows[0]) * torch.arange(channels, dtype=x_BLD.dtype) / (channels - 1)
        bands = [1e-4 + k / max(num_frequencies - 1, 1) * (num_frequencies - 1 - 1e-4) for k in range(num_frequencies)]
        entries = []
        for distance in range(length):
            t = distance / filter_length
            angles = [2 * math.pi * t * band for band in bands]
            z = torch.tensor([t, *map(math.cos, angles), *(-math.sin(a) for a in angles)], dtype=x_BLD.dtype)
            for layer in range(3):
                z = torch.sin(w["frequencies"] * (w[f"hidden.{layer}.weight"] @ z + w[f"hidden.{layer}.bias"]))
            entries.append(w["last.weight"] @ z * torch.exp(-alpha_D * t))
        outputs = []
        for t in range(length):
            y_BD = w["D"] * x_BLD[:, t]
            for s in range(t + 1):
                y_BD = y_BD + entries[t - s] * x_BLD[:, s]
            outputs.append(y_BD)
        return torch.stack(outputs, dim=1)

    return branch


def ssd(w: Weights, x_BLE: Tensor, B_BLN: Tensor, C_BLN: Tensor, d_BLH: Tensor) -> Tensor:
    """The state space of Mamba-2, one head at a time."""
    num_heads = w["state_space.A_log"].shape[0]
    outputs = []
    for head, x_BLP in enumerate(x_BLE.chunk(num_heads, dim=-1)):
        delta_BL = torch.log1p(torch.exp(d_BLH[..., head] + w["state_space.delta_bias"][head]))
        decay_BL = torch.exp(-delta_BL * torch.exp(w["state_space.A_log"][head]))
        h_BPN = x_BLE.new_zeros(len(x_BLE), x_BLP.shape[2], B_BLN.shape[2])
        rows = []
        for t in range(x_BLE.shape[1]):
            added_BPN = (delta_BL[:, t, None] * x_BLP[:, t])[:, :, None] * B_BLN[:, t, None, :]
            h_BPN = decay_BL[:, t, None, None] * h_BPN + added_BPN
            rows.append((h_BPN @ C_BLN[:, t, :, None])[..., 0] + w["state_space.D"][head] * x_BLP[:, t])
        outputs.append(torch.stack(rows, dim=1))
    return torch.cat(outputs, dim=-1)


def ssd_mixer(w: Weights, x_BLE: Tensor) -> Tensor:
    """B, C and d from the input of the state space itself."""
    num_heads = w["state_space.A_log"].shape[0]
    selection = x_BLE @ w["selection_projection.weight"].T
    num_states = (selection.shape[-1] - num_heads) // 2
    return ssd(w, x_BLE, *torch.split(selection, [num_states, num_states, num_heads], dim=-1))


def mamba2(w: Weights, x_BLD: Tensor) -> Tensor:
    """The whole block of Mamba-2."""
    num_heads, num_channels = w["state_space.A_log"].shape[0], w["norm_weight"].shape[0]
    num_states = (w["conv.weight"].shape[0] - num_channels) // 2
    sizes = [num_channels, num_channels + 2 * num_states, num_heads]
    z, stream, d = torch.split(x_BLD @ w["input_projection.weight"].T, sizes, dim=-1)
    stream = _silu(short_conv(w, stream))
    y = ssd(w, *torch.split(stream, [num_channels, num_states, num_states], dim=-1), d) * _silu(z)
    return _normed(y, w["norm_weight"]) @ w["output_projection.weight"].T


def min_lstm(w: Weights, x_BLD: Tensor) -> Tensor:
    """Forget and input gate, divided by their sum."""
    f, i, candidate = (x_BLD @ w["input_projection.weight"].T + w["input_projection.bias"]).chunk(3, dim=-1)
    f, i = sigmoid(f), sigmoid(i)
    return _scanned(f / (f + i), i / (f + i) * _positive(candidate))


def min_gru(w: Weights, x_BLD: Tensor) -> Tensor:
    """One gate between the past and the candidate."""
    z, candidate = (x_BLD @ w["input_projection.weight"].T + w["input_projection.bias"]).chunk(2, dim=-1)
    return _scanned(1 - sigmoid(z), sigmoid(z) * _positive(candidate))


def plain(mixer: Branch) -> Branch:
    """The mixer and a linear map."""
    return lambda w, x_BLD: mixer(w, x_BLD) @ w["output_projection.weight"].T


def glu(mixer: Branch) -> Branch:
    """The mixer, GELU and the gated linear unit of S4."""

    def branch(w: Weights, x_BLD: Tensor) -> Tensor:
        y_BLD = mixer(w, x_BLD)
        y_BLD = y_BLD * (1 + torch.erf(y_BLD / math.sqrt(2))) / 2
        value = y_BLD @ w["output_projection.weight"].T + w["output_projection.bias"]
        return value * sigmoid(y_BLD @ w["output_gate.weight"].T + w["output_gate.bias"])

    return branch


def h3(mixer: Branch, *, shifts_all: bool = False) -> Branch:
    """k, v and q by one matrix; k shifted, or all three."""

    def branch(w: Weights, x_BLD: Tensor) -> Tensor:
        maps = x_BLD @ w["input_projection.weight"].T + w["input_projection.bias"]
        if shifts_all:
            maps = short_conv(w, maps)
        k, v, q = maps.chunk(3, dim=-1)
        if not shifts_all:
            k = short_conv(w, k)
        return (q * mixer(w, k * v)) @ w["output_projection.weight"].T + w["output_projection.bias"]

    return branch


def mamba_block(mixer: Branch) -> Branch:
    """The block of figure 3 around any mixer."""

    def branch(w: Weights, x_BLD: Tensor) -> Tensor:
        u, z = (x_BLD @ w["input_projection.weight"].T).chunk(2, dim=-1)
        return (mixer(w, _silu(short_conv(w, u))) * _silu(z)) @ w["output_projection.weight"].T

    return branch


def short_conv(w: Weights, x_BLE: Tensor) -> Tensor:
    """Each channel's last few inputs, weighed."""
    taps_EK = w["conv.weight"]
    outputs = []
    for t in range(x_BLE.shape[1]):
        y_BE = w["conv.bias"].expand(len(x_BLE), -1)
        for distance in range(min(t + 1, taps_EK.shape[1])):
            y_BE = y_BE + taps_EK[:, -1 - distance] * x_BLE[:, t - distance]
        outputs.append(y_BE)
    return torch.stack(outputs, dim=1)


def attention(
    num_heads: int, *, position: str = "rope", num_kv_heads: int | None = None, window: int | None = None
) -> Branch:
    """Multi-head attention, one query and one head at a time."""
    num_key_heads = num_kv_heads or num_heads

    def branch(w: Weights, x_BLD: Tensor) -> Tensor:
        if position == "learned":
            x_BLD = x_BLD + w["position_embedding.weight"][: x_BLD.shape[1]]
        maps = x_BLD @ w["input_projection.weight"].T
        size = maps.shape[-1] // (num_heads + 2 * num_key_heads)
        maps_BHLS = maps.reshape(*x_BLD.shape[:2], -1, size).transpose(1, 2)
        q, k, v = torch.split(maps_BHLS, [num_heads, num_key_heads, num_key_heads], dim=1)
        if position in ("rope", "xpos"):
            q, k = _turned(q), _turned(k)
        if position == "xpos":
            q, k = q * _growth(q), k / _growth(k)
        outputs = []
        for t in range(x_BLD.shape[1]):
            seen = slice(0 if window is None else max(0, t + 1 - window), t + 1)
            heads = []
            for head in range(num_heads):
                key_head = head * num_key_heads // num_heads
                scores = (k[:, key_head, seen] @ q[:, head, t, :, None])[..., 0] / math.sqrt(size)
                if position == "alibi":
                    distances = torch.arange(scores.shape[1] - 1, -1, -1, dtype=scores.dtype)
                    scores = scores - 2 ** (-8 * (head + 1) / num_heads) * distances
                weights = torch.exp(scores) / torch.exp(scores).sum(dim=-1, keepdim=True)
                heads.append((weights[:, :, None] * v[:, key_head, seen]).sum(dim=1))
            outputs.append(torch.cat(heads, dim=-1))
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


def _growth(x_BHLS: Tensor) -> Tensor:
    """((2i / S + 0.4) / 1.4)^(p / 512) for both channels of pair i at position p."""
    length, size = x_BHLS.shape[2:]
    zeta = torch.tensor([(2 * i / size + 0.4) / 1.4 for i in range(size // 2)], dtype=x_BHLS.dtype)
    powers = zeta ** (torch.arange(length, dtype=x_BHLS.dtype)[:, None] / 512)
    return powers.repeat_interleave(2, dim=-1)


def _scanned(a_BLD: Tensor, b_BLD: Tensor) -> Tensor:
    h_BD = torch.zeros_like(a_BLD[:, 0])
    outputs = []
    for a_BD, b_BD in zip(a_BLD.unbind(1), b_BLD.unbind(1), strict=True):
        h_BD = a_BD * h_BD + b_BD
        outputs.append(h_BD)
    return torch.stack(outputs, dim=1)


def _positive(x: Tensor) -> Tensor:
    return torch.where(x >= 0, x + 0.5, sigmoid(x))


def _with_conjugates(half: Tensor) -> Tensor:
    return torch.cat([half, half.conj()], dim=-1)


def _normed(x: Tensor, gain: Tensor) -> Tensor:
    return x / torch.sqrt((x * x).mean(dim=-1, keepdim=True) + 1e-5) * gain


def _silu(x: Tensor) -> Tensor:
    return x * sigmoid(x)
