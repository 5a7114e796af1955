"""S4D: a diagonal time-invariant state space (Gu et al. 2022, arXiv:2206.11893).

    h'(t) = A h(t) + u(t);   y(t) = 2 Re(C h(t)) + D u(t)               for each channel, A diagonal and complex
    h_k   = exp(Delta A) h_{k-1} + (exp(Delta A) - 1) / A u_k           zero-order hold, step size Delta
    K_l   = 2 Re(sum_n C_n (exp(Delta A_n) - 1) / A_n exp(Delta A_n l)) so that y = K * u + D u

Time-invariant: A, C and Delta do not depend on the token, which is what makes the recurrence a convolution, and what
keeps it from choosing what to remember. Complex numbers stand for conjugate pairs, N / 2 of them; B is 1, absorbed by
C. Initialised as published: Delta log-uniform in [0.001, 0.1], C complex normal, A by `init`. As in S4's own training,
Delta and A learn at 0.001 at most and without weight decay.

Glossary: `log_delta` log Delta, `A_real_log` log(-Re A), `A_imag` Im A.
"""

# B batch, L length, E channels, P conjugate pairs (N / 2)

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from kernels.ssm_conv import s4d_conv
from kernels.ssm_kernel import s4d_discretize
from models.mixer import Mixer, Sizes
from models.mixers.kept import Kept
from models.mixers.step_sizes import random_log_step_sizes
from suite.spec import Settings

_MAX_LEARNING_RATE = 1e-3
_FLOPS = 14
"""For each pair: 10 in the recurrence (a complex product, one by a real number, a sum), 4 in the output's real part."""

Init = Literal["lin", "inv", "legs"]


class S4D(Mixer):
    """S4D: a diagonal structured state space, linear and time-invariant, trained as a long convolution."""

    name = "s4d"
    is_linear = True

    class Options(Settings):
        """Settings of S4D."""

        state_size: Annotated[int, Field(ge=2, multiple_of=2)] = 64
        """N in the paper: real numbers that each channel remembers."""
        init: Init = "lin"
        """Where A starts: S4D-Lin, S4D-Inv, or the diagonal part of HiPPO-LegS."""
        implementation: str = "auto"
        """Implementation of the convolution over a whole sequence; the published form is `fft`."""

    def __init__(self, sizes: Sizes, options: Options) -> None:
        super().__init__(sizes, options)
        channels = sizes.channels
        A_P = initial_eigenvalues(options.state_size, options.init)
        self.log_delta = nn.Parameter(random_log_step_sizes(channels))
        self.A_real_log = nn.Parameter(A_P.real.neg().log().repeat(channels, 1))
        self.A_imag = nn.Parameter(A_P.imag.repeat(channels, 1))
        self.C = nn.Parameter(torch.view_as_real(torch.randn(channels, len(A_P), dtype=torch.complex64)))
        self.D = nn.Parameter(torch.randn(channels))
        for parameter in (self.log_delta, self.A_real_log, self.A_imag):
            parameter._no_weight_decay = True  # type: ignore[attr-defined]
            parameter._max_learning_rate = _MAX_LEARNING_RATE  # type: ignore[attr-defined]
        self._implementation = options.implementation
        self._kept = Kept[tuple[Tensor, Tensor]]()

    def forward(
        self,
        u_BLE: Float[Tensor, "batch length channels"],
        sequence_starts: Bool[Tensor, "batch length"] | None = None,
    ) -> Float[Tensor, "batch length channels"]:
        """The whole sequence, from an empty state."""
        return s4d_conv(
            u_BLE,
            *self._state_space(),
            D=self.D,
            sequence_starts=sequence_starts,
            implementation=self._implementation,
        )

    def prefill(
        self,
        u_BLE: Float[Tensor, "batch length channels"],
        *,
        max_length: int,
        sequence_starts: Bool[Tensor, "batch length"] | None = None,
    ) -> tuple[Float[Tensor, "batch length channels"], Tensor]:
        """The same and the state after it."""
        return s4d_conv(
            u_BLE,
            *self._state_space(),
            D=self.D,
            sequence_starts=sequence_starts,
            return_final_state=True,
            implementation=self._implementation,
        )

    def initial_state(self, batch_size: int, max_length: int) -> Tensor:
        """Zeros, complex, (batch, channels, N / 2)."""
        return torch.view_as_complex(self.C).new_zeros(batch_size, *self.A_imag.shape)

    def step(
        self, u_BE: Float[Tensor, "batch channels"], h_BEP: Tensor
    ) -> tuple[Float[Tensor, "batch channels"], Tensor]:
        """One token by the recurrence."""
        decay_EP, input_EP = self._recurrence()
        h_BEP = decay_EP * h_BEP + input_EP * u_BE[..., None]
        y_BE = 2 * (torch.view_as_complex(self.C) * h_BEP).sum(-1).real + self.D * u_BE
        return y_BE, h_BEP

    def flops_per_token(self, length: int) -> int:
        """The recurrence, which the convolution stands for."""
        return _FLOPS * self.A_imag.numel()

    def _recurrence(self) -> tuple[Tensor, Tensor]:
        """exp(Delta A) and (exp(Delta A) - 1) / A."""
        weights = (self.log_delta, self.A_real_log, self.A_imag)
        return self._kept.get(weights, lambda: s4d_discretize(self.log_delta.exp(), self._eigenvalues()))

    def _state_space(self) -> tuple[Tensor, Tensor, Tensor]:
        """Delta, A and C."""
        return self.log_delta.exp(), self._eigenvalues(), torch.view_as_complex(self.C)

    def _eigenvalues(self) -> Tensor:
        """A."""
        return torch.complex(-self.A_real_log.exp(), self.A_imag)


def initial_eigenvalues(state_size: int, init: Init) -> Tensor:
    """Eigenvalues A_n of the initial state matrix, one of each conjugate pair, complex64 (N / 2).

    All have real part -1/2. Lin: Im A_n = pi n. Inv: Im A_n = N / pi (N / (2n + 1) - 1). LegS: the eigenvalues of the
    normal part of HiPPO-LegS, which Inv and Lin approximate.
    """
    n = torch.arange(state_size // 2, dtype=torch.float64)
    if init == "lin":
        imaginary = math.pi * n
    elif init == "inv":
        imaginary = state_size / math.pi * (state_size / (2 * n + 1) - 1)
    else:
        root = (torch.arange(state_size, dtype=torch.float64) + 0.5).sqrt()
        lower = torch.outer(root, root).tril(-1)
        # -(lower - lower^T) is skew-symmetric, so that i times it is Hermitian, with eigenvalues in pairs +-.
        imaginary = torch.linalg.eigvalsh(1j * (lower.T - lower))[state_size // 2 :]
    return torch.complex(torch.full_like(n, -0.5), imaginary).to(torch.complex64)
