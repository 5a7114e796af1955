"""Packed documents: each runs as a sequence of its own.

Documents of like length (up to a factor of two) are laid side by side, filled up with zeros, and convolved in one call,
so that there are few calls and at most twice the work. Where documents begin decides on the shapes, hence their places
are read on the host.
"""

# B batch, L length, H channels, N half of the state

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Convolve = Callable[[Tensor, Tensor | None, bool], tuple[Tensor, Tensor | None]]
"""(u, initial state, whether the final state is wanted) -> (y, final state)"""


class _Document(NamedTuple):
    row: int
    first: int
    length: int
    begins_with_state: bool
    ends_with_state: bool


def convolve_documents(
    convolve: Convolve,
    u: Tensor,
    sequence_starts: Tensor,
    initial_state: Tensor | None,
    return_final_state: bool,
) -> tuple[Tensor, Tensor | None]:
    """y (B, L, H) and the state after each row's last document, where no document sees another."""
    groups = defaultdict(list)
    for document in _documents(sequence_starts, initial_state is not None, return_final_state):
        # Zeros at the end would let a state decay that is asked for.
        exact = document.length if document.ends_with_state else 0
        key = (document.length.bit_length(), exact, document.begins_with_state)
        groups[key].append(document)

    length, flat_u = u.shape[1], u.flatten(0, 1)
    places, pieces = [], []
    rows: list[int] = []
    states = []
    for documents in groups.values():
        longest = max(document.length for document in documents)
        firsts = torch.tensor([document.row * length + document.first for document in documents])
        lengths = torch.tensor([document.length for document in documents])
        steps = torch.arange(longest)
        is_inside = (steps < lengths.unsqueeze(1)).to(u.device)
        place = (firsts.unsqueeze(1) + steps.clamp(max=longest)).clamp(max=len(flat_u) - 1).to(u.device)
        u_documents = flat_u[place] * is_inside.unsqueeze(-1)
        with_state = [document.row for document in documents]
        begin = None if initial_state is None or not documents[0].begins_with_state else initial_state[with_state]
        wants_state = documents[0].ends_with_state
        y_documents, state = convolve(u_documents, begin, wants_state)
        places.append(place[is_inside])
        pieces.append(y_documents[is_inside])
        if state is not None:
            rows += with_state
            states.append(state)
    y = torch.cat(pieces)[torch.cat(places).argsort()].view(u.shape)
    if not return_final_state:
        return y, None
    order = torch.tensor(rows, device=u.device).argsort()
    return y, torch.cat(states)[order]


def _documents(sequence_starts: Tensor, has_initial_state: bool, return_final_state: bool) -> list[_Document]:
    length = sequence_starts.shape[1]
    documents = []
    for row, starts in enumerate(sequence_starts.cpu()):
        firsts = starts.nonzero().flatten().tolist()
        continues = not firsts or firsts[0] != 0
        if continues:
            firsts = [0, *firsts]
        for first, end in zip(firsts, [*firsts[1:], length], strict=True):
            documents.append(
                _Document(
                    row,
                    first,
                    end - first,
                    begins_with_state=has_initial_state and continues and first == 0,
                    ends_with_state=return_final_state and end == length,
                )
            )
    return documents
