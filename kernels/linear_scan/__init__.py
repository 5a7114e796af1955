"""Linear scan: a gated recurrence whose gates do not read the state, for each channel on its own.

    h_t = a_t h_{t-1} + b_t

and the two recurrent networks that are one, with their gates computed on the way (Feng et al. 2024, arXiv:2410.01201):

    minGRU    h_t = (1 - z_t) h_{t-1} + z_t g(candidate_t)                   z = sigmoid(update)
    minLSTM   h_t = (f_t h_{t-1} + i_t g(candidate_t)) / (f_t + i_t)         f = sigmoid(forget), i = sigmoid(input)
    g(x) = x + 1/2 where x >= 0, sigmoid(x) elsewhere

`reference.py` is the specification. Nothing is computed in log space: all factors are between 0 and 1, and the scan
multiplies them without dividing.
"""

from __future__ import annotations

from typing import Literal, overload

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kernels.arguments import expect_axes, expect_boolean, expect_floating, expect_one_device, expect_shape
from kernels.dispatch import Operation
from kernels.linear_scan.step import linear_scan_step, min_gru_step, min_lstm_step

__all__ = [
    "OPERATION",
    "linear_scan",
    "linear_scan_step",
    "min_gru_scan",
    "min_gru_step",
    "min_lstm_scan",
    "min_lstm_step",
]

OPERATION = Operation(
    "linear_scan",
    {
        "cuda": "kernels.linear_scan.cuda",
        "cpu": "kernels.linear_scan.cpu",
        "torch": "kernels.linear_scan.torch_scan",
        "reference": "kernels.linear_scan.reference",
    },
)

_FLOAT64_IMPLEMENTATIONS = ("torch", "reference")

_Sequence = Float[Tensor, "batch length channels"]
_State = Float[Tensor, "batch channels"]
_Starts = Bool[Tensor, "batch length"]


@overload
def linear_scan(
    a: _Sequence,
    b: _Sequence,
    initial_state: _State | None = None,
    *,
    sequence_starts: _Starts | None = None,
    return_final_state: Literal[False] = False,
    implementation: str = "auto",
) -> _Sequence: ...


@overload
def linear_scan(
    a: _Sequence,
    b: _Sequence,
    initial_state: _State | None = None,
    *,
    sequence_starts: _Starts | None = None,
    return_final_state: Literal[True],
    implementation: str = "auto",
) -> tuple[_Sequence, _State]: ...


def linear_scan(
    a: _Sequence,
    b: _Sequence,
    initial_state: _State | None = None,
    *,
    sequence_starts: _Starts | None = None,
    return_final_state: bool = False,
    implementation: str = "auto",
) -> _Sequence | tuple[_Sequence, _State]:
    """Runs h_t = a_t h_{t-1} + b_t over a whole sequence; differentiable in every floating-point input.

    Inputs may have any strides and mix float32, bfloat16 and float16; the arithmetic is float32. Float64 inputs are
    computed in float64, by the `torch` or the `reference` implementation only.

    Args:
        a: what is left of the state.
        b: what enters it.
        initial_state: the state before the first position, zero if not given.
        sequence_starts: True where a new document begins: there the state is reset to zero first.
        return_final_state: whether the state after the last position is returned too.
        implementation: a name in `OPERATION.implementations`, or "auto".

    Returns:
        h in b's dtype, or h and the final state in float32 (float64 where the inputs are).

    Raises:
        ValueError: an argument's shape, dtype or device disagrees with the others.
        ImplementationUnavailable: the implementation cannot run on b's device.
    """
    implementation = _check(implementation, initial_state, sequence_starts, a=a, b=b)
    h, final_state = OPERATION.choose(implementation, b.device).linear_scan(a, b, initial_state, sequence_starts)
    return (h, final_state) if return_final_state else h


@overload
def min_gru_scan(
    update: _Sequence,
    candidate: _Sequence,
    initial_state: _State | None = None,
    *,
    positive_candidate: bool = True,
    sequence_starts: _Starts | None = None,
    return_final_state: Literal[False] = False,
    implementation: str = "auto",
) -> _Sequence: ...


@overload
def min_gru_scan(
    update: _Sequence,
    candidate: _Sequence,
    initial_state: _State | None = None,
    *,
    positive_candidate: bool = True,
    sequence_starts: _Starts | None = None,
    return_final_state: Literal[True],
    implementation: str = "auto",
) -> tuple[_Sequence, _State]: ...


def min_gru_scan(
    update: _Sequence,
    candidate: _Sequence,
    initial_state: _State | None = None,
    *,
    positive_candidate: bool = True,
    sequence_starts: _Starts | None = None,
    return_final_state: bool = False,
    implementation: str = "auto",
) -> _Sequence | tuple[_Sequence, _State]:
    """minGRU over a whole sequence, from its two projections: z = sigmoid(update), h = (1 - z) h + z g(candidate).

    Args, dtypes and errors as in `linear_scan`, and:
        positive_candidate: whether g is the paper's positive function; otherwise it is the identity.

    Returns:
        h in the candidate's dtype, or h and the final state in float32 (float64 where the inputs are).
    """
    implementation = _check(implementation, initial_state, sequence_starts, update=update, candidate=candidate)
    h, final_state = OPERATION.choose(implementation, candidate.device).min_gru_scan(
        update, candidate, initial_state, sequence_starts, positive_candidate
    )
    return (h, final_state) if return_final_state else h


@overload
def min_lstm_scan(
    forget: _Sequence,
    input: _Sequence,
    candidate: _Sequence,
    initial_state: _State | None = None,
    *,
    positive_candidate: bool = True,
    sequence_starts: _Starts | None = None,
    return_final_state: Literal[False] = False,
    implementation: str = "auto",
) -> _Sequence: ...


@overload
def min_lstm_scan(
    forget: _Sequence,
    input: _Sequence,
    candidate: _Sequence,
    initial_state: _State | None = None,
    *,
    positive_candidate: bool = True,
    sequence_starts: _Starts | None = None,
    return_final_state: Literal[True],
    implementation: str = "auto",
) -> tuple[_Sequence, _State]: ...


def min_lstm_scan(
    forget: _Sequence,
    input: _Sequence,
    candidate: _Sequence,
    initial_state: _State | None = None,
    *,
    positive_candidate: bool = True,
    sequence_starts: _Starts | None = None,
    return_final_state: bool = False,
    implementation: str = "auto",
) -> _Sequence | tuple[_Sequence, _State]:
    """minLSTM over a whole sequence, from its three projections: h = f / (f + i) h + i / (f + i) g(candidate).

    f = sigmoid(forget) and i = sigmoid(input). Args, dtypes and errors as in `linear_scan`, and:
        positive_candidate: whether g is the paper's positive function; otherwise it is the identity.

    Returns:
        h in the candidate's dtype, or h and the final state in float32 (float64 where the inputs are).
    """
    implementation = _check(
        implementation, initial_state, sequence_starts, forget=forget, input=input, candidate=candidate
    )
    h, final_state = OPERATION.choose(implementation, candidate.device).min_lstm_scan(
        forget, input, candidate, initial_state, sequence_starts, positive_candidate
    )
    return (h, final_state) if return_final_state else h


def _check(
    implementation: str, initial_state: Tensor | None, sequence_starts: Tensor | None, **sequences: Tensor
) -> str:
    """The implementation to ask for, once all arguments fit together."""
    first_name, first = next(iter(sequences.items()))
    expect_axes(first_name, first, "batch length channels")
    batch, length, channels = first.shape
    for name, tensor in sequences.items():
        expect_shape(name, tensor, "batch length channels", (batch, length, channels))
        expect_floating(name, tensor)
    if initial_state is not None:
        expect_shape("initial_state", initial_state, "batch channels", (batch, channels))
        expect_floating("initial_state", initial_state)
    if sequence_starts is not None:
        expect_shape("sequence_starts", sequence_starts, "batch length", (batch, length))
        expect_boolean("sequence_starts", sequence_starts)
    expect_one_device(**sequences, initial_state=initial_state, sequence_starts=sequence_starts)

    # The last one is what the scan's result takes its dtype from.
    name, tensor = list(sequences.items())[-1]
    if tensor.dtype == torch.float64:
        if implementation == "auto":
            return "torch"
        if implementation not in _FLOAT64_IMPLEMENTATIONS and implementation in OPERATION.implementations:
            raise ValueError(
                f"{name} is float64 and {implementation!r} computes in float32; pass float32, or use 'torch'"
            )
    return implementation
