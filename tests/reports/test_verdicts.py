"""What was published, what was seen: the verdict follows from nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.verdicts import Evidence, Score, Verdict, band, judge, judge_ordering, tally
from suite.spec import Published, Tolerance

TOLERANCE = Tolerance()
CHANCE = 1 / 14

_shares = st.floats(0, 1)
_scores = st.lists(st.builds(Score, _shares, st.integers(1, 10_000)), min_size=1, max_size=5).map(tuple)
_evidence = st.builds(Evidence, _scores, st.just(""), st.none() | _shares)
_words: tuple[Published, ...] = ("solves", "does not solve", "out of memory", "not reported")
_published = st.floats(0, 100) | st.sampled_from(_words)


def _seen(*shares: float, num_sequences: int = 1000, **changes: Any) -> Evidence:
    return Evidence(tuple(Score(share, num_sequences) for share in shares), baseline=CHANCE, **changes)


def _kind(published: Published, evidence: Evidence, *, is_reduced: bool = False) -> str:
    return judge(published, evidence, TOLERANCE, is_reduced=is_reduced).kind


@given(_published, _evidence, st.booleans())
def test_every_measurement_gets_a_verdict(published: Published, evidence: Evidence, is_reduced: bool) -> None:
    verdict = judge(published, evidence, TOLERANCE, is_reduced=is_reduced)
    assert verdict.kind not in ("not run", "no result")
    assert (verdict.kind == "not compared") == (published in ("not reported", "out of memory"))


@given(_published, st.booleans())
def test_nothing_seen_is_never_a_verdict(published: Published, is_reduced: bool) -> None:
    assert _kind(published, Evidence(), is_reduced=is_reduced) == "not run"
    assert _kind(published, Evidence(missing="diverged"), is_reduced=is_reduced) == "no result"


@given(_scores, st.floats(0, 100))
def test_a_number_is_reproduced_exactly_when_its_interval_lies_in_the_band(
    scores: tuple[Score, ...], published: float
) -> None:
    evidence = Evidence(scores, baseline=CHANCE)
    low, high = band(published / 100, TOLERANCE, CHANCE)
    interval = evidence.interval
    assert interval is not None
    kind = _kind(published, evidence)
    assert (kind == "reproduced") == (low <= interval.low and interval.high <= high)
    assert (kind == "differs") == (interval.high < low or interval.low > high)


@given(st.floats(0, 1), st.none() | st.floats(0, 0.5))
def test_a_published_number_lies_in_its_own_band(published: float, baseline: float | None) -> None:
    low, high = band(published, TOLERANCE, baseline)
    assert 0 <= low <= published <= high <= 1


@given(st.floats(0, 100), _evidence)
def test_at_a_reduced_size_only_who_solves_it_counts(published: float, evidence: Evidence) -> None:
    words: Published = "solves" if published >= 95 else "does not solve"
    assert judge(published, evidence, TOLERANCE, is_reduced=True) == judge(words, evidence, TOLERANCE, is_reduced=False)


@given(_evidence)
def test_solving_and_not_solving_exclude_each_other(evidence: Evidence) -> None:
    kinds = {_kind("solves", evidence), _kind("does not solve", evidence)}
    assert kinds in ({"reproduced", "differs"}, {"inconclusive"})


@given(_evidence, _evidence)
def test_an_order_turned_round_is_judged_the_other_way(first: Evidence, second: Evidence) -> None:
    opposite = {"reproduced": "differs", "differs": "reproduced", "inconclusive": "inconclusive"}
    assert judge_ordering(second, first).kind == opposite[judge_ordering(first, second).kind]


@pytest.mark.parametrize(
    ("published", "shares", "kind"),
    [
        (100, (1.0,), "reproduced"),
        (97, (1.0, 0.999), "reproduced"),
        (100, (0.90,), "differs"),
        (100, (0.97,), "inconclusive"),
        (57, (0.60,), "reproduced"),
        (57, (0.80,), "differs"),
        (57, (0.67,), "inconclusive"),
        (57, (0.4, 0.8), "inconclusive"),
        (7.8, (0.05,), "reproduced"),
        (7.8, (0.25,), "differs"),
    ],
)
def test_numbers_are_judged_by_what_they_say(published: float, shares: tuple[float, ...], kind: str) -> None:
    assert _kind(published, _seen(*shares)) == kind


def test_seeds_that_disagree_settle_nothing() -> None:
    verdict = judge("solves", _seen(0.07, 1.0), TOLERANCE, is_reduced=False)
    assert verdict == Verdict("inconclusive", "≥ 95 %", "seeds disagree")


def test_a_seed_that_diverged_has_not_solved_the_task() -> None:
    assert _kind("solves", _seen(1.0, num_diverged=1)) == "inconclusive"
    assert _kind("does not solve", _seen(0.07, num_diverged=1)) == "reproduced"
    assert _kind("solves", _seen(1.0, 1.0)) == "reproduced"


def test_where_no_row_solves_a_reduced_task_not_solving_it_says_nothing() -> None:
    def kind(published: Published, share: float, *, is_reduced: bool = True) -> str:
        alone = judge(published, _seen(share), TOLERANCE, is_reduced=is_reduced, is_solved_by_another=False)
        return alone.kind

    assert kind(18.3, 0.09) == "inconclusive"
    assert kind("does not solve", 0.09) == "inconclusive"
    assert kind(99.8, 0.09) == "differs"
    assert kind("does not solve", 0.09, is_reduced=False) == "reproduced"
    assert _kind(18.3, _seen(0.09), is_reduced=True) == "reproduced"


def test_out_of_memory_is_a_result() -> None:
    assert _kind("out of memory", Evidence(missing="out of memory")) == "reproduced"
    assert _kind("out of memory", _seen(0.06)) == "not compared"
    assert _kind("out of memory", Evidence(missing="diverged")) == "no result"
    assert _kind(100, Evidence(missing="out of memory")) == "no result"


def test_a_few_test_sequences_say_less_than_many() -> None:
    assert _kind(57, _seen(0.57, num_sequences=20)) == "inconclusive"
    assert _kind(57, _seen(0.57, num_sequences=2000)) == "reproduced"


def test_verdicts_are_counted_by_kind() -> None:
    kinds = ("differs", "reproduced", "differs", "not run")
    assert tally([Verdict(kind, "") for kind in kinds]) == "1 reproduced, 2 differ, 1 not run"  # type: ignore[arg-type]
    assert tally([Verdict("differs", "")]) == "1 differs"
