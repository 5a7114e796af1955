"""What the synthetic tasks of MAD share: their protocol, and how pairs are recalled (Poli et al., arXiv:2403.17844).

As published, a model is trained for 200 epochs on 12,800 sequences, on every next token where that makes sense, and
the best macro-averaged test accuracy counts. Here the answers alone are trained on and every step draws fresh
sequences, unless `train_on` and `num_train_sequences` say otherwise; and validation selects, as for every task. The
published sweep tries each learning rate without weight decay and with 0.1; here it is 0 unless `budget.weight_decay`
says otherwise.
"""

# B batch, N pairs of key and value in a sequence

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from suite import IGNORED, Budget, Preset, ShellSettings
from suite.plugin import IntArray

BoolArray = npt.NDArray[np.bool_]
TrainOn = Literal["answers", "all"]


def published_preset(**settings: Any) -> Preset:
    """The baseline size of a task, trained as published but for the end of the schedule, which is the suite's."""
    return Preset(
        settings={"num_train_sequences": 12_800, **settings},
        shell=ShellSettings(width=128, num_layers=2),
        budget=Budget(
            steps=20_000,
            batch_size=128,
            schedule="cosine",
            evaluate_every=500,
            validation_batches=10,
            test_batches=10,
        ),
        learning_rates=(1e-4, 5e-4, 1e-3),
        cost_batch_size=128,
    )


def next_tokens(tokens: IntArray, is_answer: BoolArray, *, trains_on_all: bool) -> tuple[IntArray, IntArray]:
    """Inputs and targets of a language model: tokens but for the last, and after each the next, if it is an answer."""
    following = tokens[:, 1:]
    targets = following.copy() if trains_on_all else np.where(is_answer[:, 1:], following, IGNORED)
    return np.ascontiguousarray(tokens[:, :-1]), targets


def first_occurrences(codes_BN: IntArray) -> IntArray:
    """For every place of a row, where the number that stands there stood first; (batch, places)."""
    order_BN = codes_BN.argsort(axis=1, kind="stable")
    sorted_BN = np.take_along_axis(codes_BN, order_BN, axis=1)
    is_first_BN = np.ones(codes_BN.shape, dtype=bool)
    is_first_BN[:, 1:] = sorted_BN[:, 1:] != sorted_BN[:, :-1]
    starts_BN = np.maximum.accumulate(np.where(is_first_BN, np.arange(codes_BN.shape[1]), 0), axis=1)
    firsts_BN = np.empty_like(order_BN)
    np.put_along_axis(firsts_BN, order_BN, np.take_along_axis(order_BN, starts_BN, axis=1), axis=1)
    return firsts_BN


def one_of(rng: np.random.Generator, candidates_BN: BoolArray) -> IntArray:
    """In each row one of the places that are true, all with the same chance; (batch, 1)."""
    chosen: IntArray = np.where(candidates_BN, rng.random(candidates_BN.shape), -1.0).argmax(axis=1, keepdims=True)
    return chosen
