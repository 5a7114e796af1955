"""What generation remembers from token to token: tensors whose first axis is the batch, and which begin as zeros.

That is all there is to know about a state from outside: rows of it can be set back, weighed and counted without asking
the branch that it belongs to.
"""

# B batch, L length

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.utils._pytree import tree_map_only


class State(NamedTuple):
    """The state of a whole model."""

    branches: list[Any]
    """That of each branch, in order."""
    max_length: int
    """Tokens for which there is room."""
    num_tokens: int
    """Tokens that it has been given. The host counts them: a replayed CUDA graph must do so itself."""


def state_bytes(state: Any) -> int:
    """Bytes of a state: of the tensors in any nesting of tuples, lists and dicts, with None for nothing.

    Raises:
        TypeError: something else is in it.
    """
    if state is None:
        return 0
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, State):
        return state_bytes(state.branches)
    if isinstance(state, dict):
        return sum(state_bytes(part) for part in state.values())
    if isinstance(state, list | tuple):
        return sum(state_bytes(part) for part in state)
    raise TypeError(
        f"a state holds tensors in tuples, lists or dicts, or None; this one holds a {type(state).__name__}"
    )


def forget(state: Any, rows: Bool[Tensor, " batch"]) -> Any:
    """The state with these rows as before the first token. The old one may be overwritten."""

    def emptied(part: Tensor) -> Tensor:
        is_row = rows.view(-1, *[1] * (part.ndim - 1))
        # A cache of keys may fill the device, and a second one beside it would not fit; a gradient wants both.
        return part.masked_fill(is_row, 0) if torch.is_grad_enabled() else part.masked_fill_(is_row, 0)

    return tree_map_only(Tensor, emptied, state)


def step_through(
    part: Any,
    x: Tensor,
    *,
    max_length: int,
    sequence_starts: Bool[Tensor, "batch length"] | None = None,
) -> tuple[Tensor, Any]:
    """What `part` gives for x (B, L, …) one token after the other, (B, L, …), and the state after the last."""
    state, outputs = part.initial_state(x.shape[0], max_length), []
    for t in range(x.shape[1]):
        if sequence_starts is not None:
            state = forget(state, sequence_starts[:, t])
        y, state = part.step(x[:, t], state)
        outputs.append(y)
    return torch.stack(outputs, dim=1), state
