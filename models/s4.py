"""S4D: diagonal state spaces by FFT convolution (Gu et al. 2022, arXiv:2206.11893), the layer of S4 (arXiv:2111.00396).

    h'(t) = A h(t) + u(t);   y(t) = 2 Re(C h(t)) + D u(t)               for each channel, A diagonal and complex
    h_k   = exp(Delta A) h_{k-1} + (exp(Delta A) - 1) / A u_k           zero-order hold, step size Delta
    K_l   = 2 Re(sum_n C_n (exp(Delta A_n) - 1) / A_n exp(Delta A_n l)) so that y = K * u + D u
    out   = (W gelu(y) + b) sigmoid(V gelu(y) + c)

Time-invariant: A, C and Delta do not depend on the token, which is what makes the recurrence a convolution, and what
keeps it from choosing what to remember. Complex numbers stand for conjugate pairs, N / 2 of them; B is 1, absorbed by
C. Initialised as published: Delta log-uniform in [0.001, 0.1], C complex normal, A by `init`. As in S4's own training,
Delta and A learn at 0.001 at most and without weight decay. What differs: always causal, no dropout, and the pre-norm
shell of the suite.

Glossary: `log_delta` log Delta, `A_real_log` log(-Re A), `A_imag` Im A, `output_projection` W and b, `output_gate` V
and c.
"""

# B batch, L length, D width, P conjugate pairs (N / 2)

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal, cast

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import gelu

from kernels.long_conv import long_conv
from kernels.ssm_kernel import s4d_discretize, s4d_kernel
from suite.plugin import Model
from suite.spec import Settings, ShellSettings

_DELTA_RANGE = (1e-3, 1e-1)
_MAX_LEARNING_RATE = 1e-3

Init = Literal["lin", "inv", "legs"]


class S4D(Model):
    """Diagonal structured state space: a linear, time-invariant memory, trained as a long convolution."""

    name = "s4"

    class Options(Settings):
        """Settings of S4D."""

        state_size: Annotated[int, Field(ge=2, multiple_of=2)] = 64
        """N in the paper: real numbers that each channel remembers."""
        init: Init = "lin"
        """Where A starts: S4D-Lin, S4D-Inv, or the diagonal part of HiPPO-LegS."""

    def branches(self, shell: ShellSettings) -> Sequence[nn.Module]:
        """One S4D layer."""
        return [S4DBranch(shell.width, **self.options.model_dump())]


class S4DBranch(nn.Module):
    """An S4D layer: state space, GELU, gated linear unit. Its state is h, complex, (batch, width, N / 2)."""

    def __init__(self, width: int, *, state_size: int, init: Init) -> None:
        super().__init__()
        A_P = initial_eigenvalues(state_size, init)
        self.log_delta = nn.Parameter(torch.empty(width).uniform_(*map(math.log, _DELTA_RANGE)))
        self.A_real_log = nn.Parameter(A_P.real.neg().log().repeat(width, 1))
        self.A_imag = nn.Parameter(A_P.imag.repeat(width, 1))
        self.C = nn.Parameter(torch.view_as_real(torch.randn(width, state_size // 2, dtype=torch.complex64)))
        self.D = nn.Parameter(torch.randn(width))
        for parameter in (self.log_delta, self.A_real_log, self.A_imag):
            parameter._no_weight_decay = True  # type: ignore[attr-defined]
            parameter._max_learning_rate = _MAX_LEARNING_RATE  # type: ignore[attr-defined]
        self.output_projection = nn.Linear(width, width)
        self.output_gate = nn.Linear(width, width)
        self._discretized: tuple[list[tuple[int, int]], tuple[Tensor, Tensor]] | None = None

    def forward(self, x_BLD: Float[Tensor, "batch length width"]) -> Float[Tensor, "batch length width"]:
        """The whole sequence, from an empty state."""
        kernel_DL = s4d_kernel(self.log_delta.exp(), self._eigenvalues(), torch.view_as_complex(self.C), x_BLD.shape[1])
        return self._output(long_conv(x_BLD, kernel_DL, self.D))

    def initial_state(self, batch_size: int, max_length: int) -> Tensor:
        """Zeros, complex, (batch, width, N / 2)."""
        return torch.view_as_complex(self.C).new_zeros(batch_size, *self.A_imag.shape)

    def step(self, x_BD: Float[Tensor, "batch width"], h_BDP: Tensor) -> tuple[Float[Tensor, "batch width"], Tensor]:
        """One token by the recurrence."""
        decay_DP, input_DP = self._recurrence()
        h_BDP = decay_DP * h_BDP + input_DP * x_BD[..., None]
        y_BD = 2 * (torch.view_as_complex(self.C) * h_BDP).sum(-1).real + self.D * x_BD
        return self._output(y_BD), h_BDP

    def _recurrence(self) -> tuple[Tensor, Tensor]:
        """exp(Delta A) and (exp(Delta A) - 1) / A; kept from step to step while the weights are the same."""
        if torch.is_grad_enabled():
            return s4d_discretize(self.log_delta.exp(), self._eigenvalues())
        weights = (self.log_delta, self.A_real_log, self.A_imag)
        versions = [(weight.data_ptr(), weight._version) for weight in weights]
        if self._discretized is None or self._discretized[0] != versions:
            self._discretized = versions, s4d_discretize(self.log_delta.exp(), self._eigenvalues())
        return self._discretized[1]

    def _eigenvalues(self) -> Tensor:
        """A."""
        return torch.complex(-self.A_real_log.exp(), self.A_imag)

    def _output(self, y: Tensor) -> Tensor:
        y = gelu(y)
        return cast(Tensor, self.output_projection(y) * torch.sigmoid(self.output_gate(y)))


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
