"""The long convolution as a product of spectra, zero-padded so that nothing wraps around."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def unavailable(device: torch.device) -> str | None:
    """It runs everywhere."""
    return None


def long_conv(u: Tensor, kernel: Tensor, D: Tensor | None) -> Tensor:
    """y (batch, length, channels) in u's dtype."""
    precision = torch.float64 if u.dtype == torch.float64 else torch.float32
    u_ = u.to(precision)
    convolve = _Convolution.apply
    y: Tensor = convolve(u_.transpose(1, 2), kernel.to(precision))  # type: ignore[no-untyped-call]  # torch has no types
    y = y.transpose(1, 2)
    if D is not None:
        y = torch.addcmul(y, D.to(precision), u_)
    return y.to(u.dtype)


class _Convolution(torch.autograd.Function):
    """Of u (batch, channels, length) with kernel (channels, length).

    Its gradients are correlations, again by real transforms; autograd would use complex ones of twice the size.
    """

    @staticmethod
    def forward(ctx: Any, u: Tensor, kernel: Tensor) -> Tensor:
        length = u.shape[-1]
        size = _fast_size(2 * length - 1)
        u_spectrum, kernel_spectrum = torch.fft.rfft(u, n=size), torch.fft.rfft(kernel, n=size)
        ctx.save_for_backward(u_spectrum, kernel_spectrum)
        ctx.size = size
        ctx.length = length
        y: Tensor = torch.fft.irfft(u_spectrum * kernel_spectrum, n=size)[..., :length]
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None]:
        u_spectrum, kernel_spectrum = ctx.saved_tensors
        dy_spectrum = torch.fft.rfft(dy, n=ctx.size)
        du = dkernel = None
        if ctx.needs_input_grad[0]:
            du = torch.fft.irfft(dy_spectrum * kernel_spectrum.conj(), n=ctx.size)[..., : ctx.length]
        if ctx.needs_input_grad[1]:
            dkernel = torch.fft.irfft((dy_spectrum * u_spectrum.conj()).sum(0), n=ctx.size)[..., : ctx.length]
        return du, dkernel


def _fast_size(at_least: int) -> int:
    """The smallest even size from `at_least` on without a prime factor above 5: transforms of other sizes are slow."""
    size = at_least + at_least % 2
    while not _is_smooth(size):
        size += 2
    return size


def _is_smooth(size: int) -> bool:
    for prime in (2, 3, 5):
        while size % prime == 0:
            size //= prime
    return size == 1
