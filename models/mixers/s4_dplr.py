"""S4 itself: a state space with a matrix that is diagonal plus rank one (Gu et al. 2021, arXiv:2111.00396).

    h'(t) = A h(t) + B u(t);   y(t) = C h(t) + D u(t)           for each channel, A = diag(Lambda) - P P^*
    K_l   = C A_bar^l B_bar, discretised bilinearly             so that y = K * u + D u  (`kernels/s4_kernel`)

A starts as HiPPO-LegS (Gu et al. 2020, arXiv:2008.07669), which remembers the past as the coefficients of a Legendre
series. That matrix is normal but for rank one: it has no diagonal form that numbers could bear, which is why S4 needs
the second part, and S4D shows that one can do without. As in S4, Delta, Lambda, P and B learn at 0.001 at most and
without weight decay. What differs: C is learned itself, not with a factor that depends on the length.

Glossary: `log_delta` log Delta, `Lambda_real_log` log(-Re Lambda), `Lambda_imag` Im Lambda; complex numbers as pairs of
real ones, of one of each pair of conjugates.
"""

# B batch, L length, E channels, P conjugate pairs (N / 2)

from __future__ import annotations

from typing import Annotated

import torch
from jaxtyping import Bool, Complex, Float
from pydantic import Field
from torch import Tensor, nn

from kernels.documents import is_of_last_document
from kernels.long_conv import long_conv
from kernels.s4_kernel import S4Step, s4_kernel, s4_state, s4_step
from models.mixer import Mixer, Sizes
from models.mixers.kept import Kept
from models.mixers.step_sizes import random_log_step_sizes
from suite.spec import Settings

_MAX_LEARNING_RATE = 1e-3
_FLOPS = 30
"""For each pair: 10 for the diagonal, 8 for each of the two products of rank one, 4 in the output's real part."""


class S4(Mixer):
    """S4: a structured state space, diagonal plus rank one, that starts as HiPPO-LegS."""

    name = "s4-dplr"
    is_linear = True

    class Options(Settings):
        """Settings of S4."""

        state_size: Annotated[int, Field(ge=2, multiple_of=2)] = 64
        """N in the paper: real numbers that each channel remembers."""

    def __init__(self, sizes: Sizes, options: Options) -> None:
        super().__init__(sizes, options)
        channels = sizes.channels
        Lambda_P, P_P, B_P = hippo_legs(options.state_size)
        self.log_delta = nn.Parameter(random_log_step_sizes(channels))
        self.Lambda_real_log = nn.Parameter(Lambda_P.real.neg().log().repeat(channels, 1))
        self.Lambda_imag = nn.Parameter(Lambda_P.imag.repeat(channels, 1))
        self.P = nn.Parameter(torch.view_as_real(P_P.repeat(channels, 1)))
        self.B = nn.Parameter(torch.view_as_real(B_P.repeat(channels, 1)))
        self.C = nn.Parameter(torch.view_as_real(torch.randn(channels, len(B_P), dtype=torch.complex64)))
        self.D = nn.Parameter(torch.randn(channels))
        for parameter in (self.log_delta, self.Lambda_real_log, self.Lambda_imag, self.P, self.B):
            parameter._no_weight_decay = True  # type: ignore[attr-defined]
            parameter._max_learning_rate = _MAX_LEARNING_RATE  # type: ignore[attr-defined]
        self._kept = Kept[S4Step]()

    def forward(
        self,
        u_BLE: Float[Tensor, "batch length channels"],
        sequence_starts: Bool[Tensor, "batch length"] | None = None,
    ) -> Float[Tensor, "batch length channels"]:
        """The whole sequence, from an empty state."""
        kernel_EL = s4_kernel(*self._state_space(), u_BLE.shape[1])
        return long_conv(u_BLE, kernel_EL, self.D, sequence_starts=sequence_starts)

    def prefill(
        self,
        u_BLE: Float[Tensor, "batch length channels"],
        *,
        max_length: int,
        sequence_starts: Bool[Tensor, "batch length"] | None = None,
    ) -> tuple[Float[Tensor, "batch length channels"], Tensor]:
        """The same and the state after it."""
        of_last = 1 if sequence_starts is None else is_of_last_document(sequence_starts).unsqueeze(-1)
        return self(u_BLE, sequence_starts), s4_state(u_BLE * of_last, *self._state_space())

    def initial_state(self, batch_size: int, max_length: int) -> Tensor:
        """Zeros, complex, (batch, channels, N / 2)."""
        return torch.view_as_complex(self.C).new_zeros(batch_size, *self.Lambda_imag.shape)

    def step(
        self, u_BE: Float[Tensor, "batch channels"], h_BEP: Tensor
    ) -> tuple[Float[Tensor, "batch channels"], Tensor]:
        """One token by the recurrence."""
        y_BE, h_BEP = s4_step(h_BEP, u_BE, self._recurrence())
        return y_BE + self.D * u_BE, h_BEP

    def flops_per_token(self, length: int) -> int:
        """The recurrence, which the convolution stands for."""
        return _FLOPS * self.Lambda_imag.numel()

    def _state_space(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Delta, Lambda, P, B and C."""
        Lambda = torch.complex(-self.Lambda_real_log.exp(), self.Lambda_imag)
        P, B, C = (torch.view_as_complex(part) for part in (self.P, self.B, self.C))
        return self.log_delta.exp(), Lambda, P, B, C

    def _recurrence(self) -> S4Step:
        """What every step multiplies with."""
        return self._kept.get(tuple(self.parameters()), lambda: S4Step.of(*self._state_space()))


def hippo_legs(
    state_size: int,
) -> tuple[Complex[Tensor, " pairs"], Complex[Tensor, " pairs"], Complex[Tensor, " pairs"]]:
    """Lambda, P and B of HiPPO-LegS in the basis where its normal part is diagonal, complex64, one of each pair.

    A_nk = -sqrt(2n+1) sqrt(2k+1) below the diagonal and -(n+1) on it, B_n = sqrt(2n+1). With P_n = sqrt(n + 1/2),
    A + P P^T is normal, with all eigenvalues at real part -1/2.
    """
    n = torch.arange(state_size, dtype=torch.float64, device="cpu")
    P, B = (n + 0.5).sqrt(), (2 * n + 1).sqrt()
    lower = torch.outer(P, P).tril(-1)
    # A + P P^T + 1/2 is the skew-symmetric lower^T - lower, which i times a Hermitian matrix is.
    imaginary, vectors = torch.linalg.eigh(1j * (lower - lower.T))
    positive = slice(state_size // 2, None)
    basis = vectors[:, positive].conj().T
    Lambda = torch.complex(torch.full_like(n[positive], -0.5), imaginary[positive])
    parts = (Lambda, basis @ P.to(basis.dtype), basis @ B.to(basis.dtype))
    Lambda, P, B = (part.to(torch.complex64).to(torch.get_default_device()) for part in parts)
    return Lambda, P, B
