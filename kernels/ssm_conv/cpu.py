"""The S4D convolution in chunks on a CPU: what torch sees of the loops in `cpu_loops`.

Computes in float32. The factors of the chunked form are made by torch, and differentiated by it; the loops know only
them.
"""

# B batch, L length, H channels, N half of the state, T steps of a chunk, S = 2 N padded, G groups of sixteen channels

from __future__ import annotations

import functools
import importlib
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from kernels.numba_calls import parts, rows, run_in_threads
from kernels.numba_calls import unavailable as unavailable
from kernels.ssm_conv import factors

_LANES = 16


def s4d_conv(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    C: Tensor,
    B: Tensor | None,
    D: Tensor | None,
    initial_state: Tensor | None,
    return_final_state: bool,
) -> tuple[Tensor, Tensor | None]:
    """y (B, L, H) in u's dtype and the final state (B, H, N)."""
    inputs = (u, delta, A, C, B, D, initial_state)
    needs_gradient = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    (batch, length, channels), half_state = u.shape, A.shape[1]
    steps, u_ = _loops().STEPS, u.float()
    rate, into, out = factors.discretize(delta, A, C, B)
    # Two complex numbers more or less fill a piece of the products.
    rate, into, out = (pad(torch.view_as_real(x), (0, 0, 0, half_state % 2)) for x in (rate, into, out))
    rate, into, out = (torch.view_as_complex(x) for x in (rate, into, out))
    powers_HNT = factors.powers(rate, steps + 1)
    into_HTS = factors.entering(into, powers_HNT, steps, torch.float32)
    near_HTT = factors.toeplitz(factors.taps(into, out, powers_HNT[..., :-1], D, torch.float32))
    onto_HST = torch.cat([factors.leaving(out, powers_HNT, torch.float32), near_HTT], dim=1)
    decay_HS = _parts_of(powers_HNT[..., -1])
    if initial_state is None:
        state_BHS = u_.new_zeros(batch, channels, into_HTS.shape[2])
    else:
        initial = pad(torch.view_as_real(initial_state.to(torch.complex64)), (0, 0, 0, half_state % 2))
        state_BHS = _parts_of(torch.view_as_complex(initial))
    tables = (_to_lanes(x) for x in (into_HTS.flatten(1), onto_HST.flatten(1), decay_HS))
    y, last_BGS, _ = _convolve(u_, *tables, _to_lanes(state_BHS), needs_gradient)
    if not return_final_state:
        return y.to(u.dtype), None
    # `last` is the state before the last chunk, which the sequence may leave unfinished.
    last_BHS = last_BGS.transpose(2, 3).flatten(1, 2)[:, :channels]
    rest = (length - 1) % steps + 1
    added_HBS = u_[:, length - rest :].permute(2, 0, 1) @ into_HTS[:, steps - rest :]
    decay_HN = powers_HNT[..., rest].to(torch.complex64)
    final_BHN = decay_HN * _complex(last_BHS) + _complex(added_HBS.transpose(0, 1))
    return y.to(u.dtype), final_BHN[..., :half_state]


def _parts_of(x: Tensor) -> Tensor:
    return torch.cat([x.real, x.imag], dim=-1).float()


def _complex(parts: Tensor) -> Tensor:
    return torch.complex(*parts.chunk(2, dim=-1))


def _to_lanes(x: Tensor) -> Tensor:
    """(…, H, entries) -> (…, G, entries, lanes), the last group filled up with zeros."""
    *outer, channels, entries = x.shape
    filled = pad(x, (0, 0, 0, -channels % _LANES))
    return filled.view(*outer, -1, _LANES, entries).transpose(-1, -2).contiguous()


@functools.cache
def _loops() -> ModuleType:
    # Importing numba takes most of a second.
    return importlib.import_module("kernels.ssm_conv.cpu_loops")


@torch.library.custom_op("seqsuite::s4d_conv_cpu", mutates_args=())
def _convolve(
    u: Tensor, into: Tensor, onto: Tensor, decay: Tensor, state: Tensor, save_states: bool
) -> tuple[Tensor, Tensor, Tensor]:
    y, last, begins = _empty_results(u, into, onto, decay, state, save_states)
    last.copy_(state)
    loops = _loops()
    run_in_threads(
        loops.forward,
        u.shape[0] * decay.shape[0],
        rows(u),
        *(x.numpy(force=True) for x in (into, onto, decay)),
        last.numpy(),
        y.numpy(),
        begins.numpy(),
    )
    return y, last, begins


@_convolve.register_fake
def _empty_results(
    u: Tensor, into: Tensor, onto: Tensor, decay: Tensor, state: Tensor, save_states: bool
) -> tuple[Tensor, Tensor, Tensor]:
    batch, groups, size, lanes = state.shape
    num_blocks = parts(u.shape[1], _loops().BLOCK_STEPS)
    begins = u.new_empty(batch if save_states else 0, groups, num_blocks * size, lanes)
    return u.new_empty(u.shape), state.new_empty(state.shape), begins


@torch.library.custom_op("seqsuite::s4d_conv_cpu_backward", mutates_args=())
def _convolve_backward(
    u: Tensor, into: Tensor, onto: Tensor, decay: Tensor, begins: Tensor, dy: Tensor, dlast: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, (groups, size, lanes) = u.shape[0], decay.shape
    loops = _loops()
    into_by_step, onto_by_operand = into.view(groups, -1, size, lanes), onto.view(groups, -1, loops.STEPS, lanes)
    near = onto_by_operand[:, size:]
    into_transposed = torch.cat([into_by_step.transpose(1, 2), near.transpose(1, 2)], dim=1).contiguous()
    onto_transposed = onto_by_operand[:, :size].transpose(1, 2).contiguous()
    du, dstate = u.new_empty(u.shape), dlast.clone(memory_format=torch.contiguous_format)
    dtables = [x.new_empty(batch, *x.shape) for x in (into, onto, decay)]
    run_in_threads(
        loops.backward,
        batch * groups,
        rows(u),
        rows(dy),
        *(x.numpy(force=True) for x in (into, into_transposed.flatten(1, 2), onto_transposed.flatten(1, 2), decay)),
        *(x.numpy(force=True) for x in (begins, dstate, du, *dtables)),
    )
    dinto, donto, ddecay = (x.sum(0) for x in dtables)
    return du, dinto, donto, ddecay, dstate


@_convolve_backward.register_fake
def _(
    u: Tensor, into: Tensor, onto: Tensor, decay: Tensor, begins: Tensor, dy: Tensor, dlast: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return (u.new_empty(u.shape), *(x.new_empty(x.shape) for x in (into, onto, decay, dlast)))  # type: ignore[return-value]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:4], output[2])


def _backward(ctx: Any, dy: Tensor, dlast: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return (*_convolve_backward(*ctx.saved_tensors, dy, dlast), None)


_convolve.register_autograd(_backward, setup_context=_setup_context)
