"""One rule selects: the score, then the loss; the rate that most seeds survive."""

from __future__ import annotations

from suite.records import Evaluation
from suite.selection import select, standing


def _validation(accuracy: float, loss: float) -> Evaluation:
    return Evaluation(
        length=8,
        num_sequences=4,
        num_scored=4,
        loss=loss,
        token_accuracy=accuracy,
        sequence_accuracy=accuracy,
        bits_per_byte=loss,
    )


def test_the_score_comes_before_the_loss_and_the_loss_tells_equals_apart() -> None:
    solved, surer, worse = _validation(1.0, 0.1), _validation(1.0, 0.01), _validation(0.9, 0.001)
    assert max((solved, surer, worse), key=lambda each: standing("token_accuracy", each)) is surer
    assert max((solved, surer, worse), key=lambda each: standing("bits_per_byte", each)) is worse


def test_of_rates_with_equal_scores_the_surer_wins_and_of_equals_the_first() -> None:
    assert select({1e-3: [(1.0, -0.1)], 1e-2: [(1.0, -0.01)]}) == 1e-2
    assert select({1e-2: [(1.0, -0.1)], 1e-3: [(1.0, -0.1)]}) == 1e-2


def test_a_rate_at_which_a_seed_failed_does_not_win_by_its_survivors() -> None:
    assert select({1e-3: [(0.5, -1.0), (0.5, -1.0)], 1e-2: [(1.0, 0.0)]}) == 1e-3
    assert select({1e-3: []}) is None
