"""Packed documents: where they lie in the rows of a batch, and how each runs as a sequence of its own.

`sequence_starts` is True where a new document begins; what stands before the first mark of a row is a document too, so
that padding on the left is one that nobody reads.

What has no kernel that starts anew in the middle of a row lays documents of like length (up to a factor of two) side by
side, filled up with zeros, and runs them in one call, so that there are few calls and at most twice the work. Where
documents begin decides on the shapes, hence their places are read on the host: once, for all layers of a model.
"""

# B batch, L length, M documents of a group, T tokens of the longest of them

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

Run = Callable[[Tensor, Tensor | None, bool], tuple[Tensor, Tensor | None]]
"""(x, initial state, whether the final state is wanted) -> (y, final state)"""


def run_documents(
    run: Callable[[Tensor], Tensor], x: Tensor, sequence_starts: Bool[Tensor, "batch length"] | None
) -> Tensor:
    """What a causal map (B, L, …) -> (B, L, …) gives where no document sees another; a row is one if none is marked."""
    y, _ = run_documents_with_states(lambda documents, *_: (run(documents), None), x, sequence_starts)
    return y


def run_documents_with_states(
    run: Run,
    x: Tensor,
    sequence_starts: Bool[Tensor, "batch length"] | None,
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """The same for a map with a state: y (B, L, …) and the state after each row's last document.

    `initial_state` belongs to the documents at the beginning of rows that have no mark there.
    """
    if sequence_starts is None:
        return run(x, initial_state, return_final_state)
    layout = _layout(sequence_starts, initial_state is not None, return_final_state)
    flat_x = x.flatten(0, 1)
    outputs, states = [], []
    for group in layout.groups:
        documents = torch.unflatten(flat_x.index_select(0, group.place.flatten()), 0, group.place.shape)
        is_inside = group.is_inside.view(*group.place.shape, *[1] * (x.ndim - 2))
        begin = initial_state[group.rows] if initial_state is not None and group.begins_with_state else None
        y, state = run(documents * is_inside, begin, group.ends_with_state)
        outputs.append(y.flatten(0, 1))
        if group.ends_with_state:
            assert state is not None
            states.append(state)
    y = torch.unflatten(torch.cat(outputs).index_select(0, layout.order), 0, x.shape[:2])
    return y, torch.cat(states)[layout.row_order] if return_final_state else None


def positions_in_documents(sequence_starts: Bool[Tensor, "batch length"]) -> Int[Tensor, "batch length"]:
    """How many tokens of its own document stand before each."""
    places_L = torch.arange(sequence_starts.shape[1], device=sequence_starts.device)
    return places_L - torch.where(sequence_starts, places_L, 0).cummax(1).values


def is_of_last_document(sequence_starts: Bool[Tensor, "batch length"]) -> Bool[Tensor, "batch length"]:
    """Whether no document starts after a token."""
    return sequence_starts.flip(1).cumsum(1).flip(1) == sequence_starts


def longest_document(sequence_starts: Bool[Tensor, "batch length"]) -> int:
    """Tokens of the longest document."""
    return max(group.place.shape[1] for group in _layout(sequence_starts, False, False).groups)


class _Group(NamedTuple):
    """Documents that run side by side."""

    rows: Tensor
    place: Tensor
    """(M, T): where each token lies in the batch, its rows one after the other."""
    is_inside: Tensor
    """(M, T): False behind the end of a document."""
    begins_with_state: bool
    ends_with_state: bool


class _Layout(NamedTuple):
    """All documents of a batch."""

    groups: list[_Group]
    order: Tensor
    """Where the outputs of all groups, one after the other, hold each token of the batch."""
    row_order: Tensor
    """The same for the states of all groups that end with one, and the rows."""


class _Document(NamedTuple):
    row: int
    first: int
    length: int
    begins_with_state: bool
    ends_with_state: bool


_layouts = WeakTensorKeyDictionary()


def _layout(sequence_starts: Tensor, has_initial_state: bool, return_final_state: bool) -> _Layout:
    # A tensor that was made in inference mode does not tell when it changes.
    if sequence_starts.is_inference():
        return _read_layout(sequence_starts, has_initial_state, return_final_state)
    known = _layouts.setdefault(sequence_starts, {})  # type: ignore[no-untyped-call]  # torch has no types
    key = (sequence_starts._version, has_initial_state, return_final_state)
    if key not in known:
        known[key] = _read_layout(sequence_starts, has_initial_state, return_final_state)
    layout: _Layout = known[key]
    return layout


def _read_layout(sequence_starts: Tensor, has_initial_state: bool, return_final_state: bool) -> _Layout:
    documents_of = defaultdict(list)
    for document in _documents(sequence_starts, has_initial_state, return_final_state):
        # Zeros at the end would let a state decay that is asked for.
        exact = document.length if document.ends_with_state else 0
        documents_of[document.length.bit_length(), exact, document.begins_with_state].append(document)

    length, device = sequence_starts.shape[1], sequence_starts.device
    groups: list[_Group] = []
    places, sources, rows = [], [], []
    num_outputs = 0
    for documents in documents_of.values():
        longest = max(document.length for document in documents)
        firsts_M1 = torch.tensor([[document.row * length + document.first] for document in documents])
        lengths_M1 = torch.tensor([[document.length] for document in documents])
        is_inside = torch.arange(longest) < lengths_M1
        place = (firsts_M1 + torch.arange(longest)).clamp(max=sequence_starts.numel() - 1)
        places.append(place[is_inside])
        sources.append(num_outputs + is_inside.flatten().nonzero().flatten())
        num_outputs += is_inside.numel()
        of_rows = torch.tensor([document.row for document in documents])
        _, _, _, begins_with_state, ends_with_state = documents[0]
        groups.append(
            _Group(of_rows.to(device), place.to(device), is_inside.to(device), begins_with_state, ends_with_state)
        )
        if ends_with_state:
            rows.append(of_rows)
    order = torch.cat(sources)[torch.cat(places).argsort()]
    row_order = torch.cat(rows).argsort() if rows else order[:0]
    return _Layout(groups, order.to(device), row_order.to(device))


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
