"""What was published, what was seen -> a verdict with its reason. Pure: it reads no record.

At the published size a number is compared with a number: the result must lie within a tolerance of it. At a reduced
size numbers do not compare; what can be judged there is who solves the task and who does not.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from reports.formatting import percentage
from reports.results import SOLVED_AT
from reports.statistics import Interval, mean_interval, wilson_interval
from suite.spec import Published, Tolerance

VerdictKind = Literal["reproduced", "differs", "inconclusive", "no result", "not run", "not compared", "not tried"]

OUT_OF_MEMORY = "out of memory"


@dataclass(frozen=True)
class Score:
    """One seed's test accuracy, of so many sequences."""

    share: float
    num_sequences: int

    @property
    def interval(self) -> Interval:
        """Wilson's, over the test sequences. The tokens of one are not independent, so a sequence counts once."""
        return wilson_interval(round(self.share * self.num_sequences), self.num_sequences)


@dataclass(frozen=True)
class Evidence:
    """What a run says of one entry of a table."""

    scores: tuple[Score, ...] = ()
    """One a seed."""
    missing: str = ""
    """Why there is no score, if none is there but one was tried."""
    baseline: float | None = None
    """The score of a model that cannot see the sequence."""
    num_diverged: int = 0
    """Seeds without a score because their training diverged. They have not solved the task."""

    @property
    def shares(self) -> list[float]:
        return [score.share for score in self.scores]

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.shares) if self.scores else None

    @property
    def num_solved(self) -> int:
        return sum(share >= SOLVED_AT for share in self.shares)

    @property
    def num_seeds(self) -> int:
        """Those that have ended, with a score or without a finite loss."""
        return len(self.scores) + self.num_diverged

    @property
    def interval(self) -> Interval | None:
        """Of the mean: over the seeds; where they do not tell their spread, over all their test sequences."""
        over_seeds = mean_interval(self.shares)
        if over_seeds is not None:
            return over_seeds.clipped(0.0, 1.0)
        if not self.scores:
            return None
        return Score(self.shares[0], sum(score.num_sequences for score in self.scores)).interval


@dataclass(frozen=True)
class Verdict:
    """What comes of a comparison."""

    kind: VerdictKind
    wanted: str
    """What would have reproduced it."""
    remark: str = ""
    """What the numbers beside it do not say."""
    rates: tuple[str, ...] = ()
    """Learning rates that validation did not select and that would have reproduced it."""


def judge(
    published: Published,
    evidence: Evidence,
    tolerance: Tolerance,
    *,
    is_reduced: bool,
    is_solved_by_another: bool = True,
) -> Verdict:
    """The verdict on one published entry.

    Args:
        published: the entry.
        evidence: what this run says of it.
        tolerance: how far a number may be off.
        is_reduced: whether task, model or training are not of the published size.
        is_solved_by_another: whether some row solves this column of the table. At a reduced size only that shows that
            the training was enough, without which a model that does not solve the task says nothing about itself.
    """
    if published == OUT_OF_MEMORY:
        return _judge_memory(evidence)
    if published == "not reported":
        return Verdict(_unmeasured(evidence) or "not compared", "")
    if isinstance(published, str) or is_reduced:
        is_trained_enough = is_solved_by_another or not is_reduced
        return _judge_solving(evidence, _says_solved(published), is_trained_enough=is_trained_enough)
    return _judge_number(published / 100, evidence, tolerance)


def judge_ordering(better: Evidence, worse: Evidence) -> Verdict:
    """Whether every seed of the one is above every seed of the other, by more than the test sequences explain."""
    unmeasured = _unmeasured(better) or _unmeasured(worse)
    if unmeasured:
        return Verdict(unmeasured, "above")
    first, second = ([score.interval for score in evidence.scores] for evidence in (better, worse))
    if min(interval.low for interval in first) > max(interval.high for interval in second):
        return Verdict("reproduced", "above")
    if max(interval.high for interval in first) < min(interval.low for interval in second):
        return Verdict("differs", "above")
    return Verdict("inconclusive", "above")


def band(published: float, tolerance: Tolerance, baseline: float | None) -> tuple[float, float]:
    """Where a result may lie to count as the published share."""
    if published >= SOLVED_AT:
        return published - tolerance.solved / 100, 1.0
    chance = tolerance.chance / 100
    if baseline is not None and published <= baseline + chance:
        return 0.0, baseline + chance
    partial = tolerance.partial / 100
    return max(0.0, published - partial), min(1.0, published + partial)


def tally(verdicts: Sequence[Verdict]) -> str:
    """How many of each kind: "5 reproduced, 1 differs"."""
    numbers = {kind: sum(verdict.kind == kind for verdict in verdicts) for kind in get_args(VerdictKind)}
    plurals = {"differs": "differ"}
    return ", ".join(
        f"{number} {kind if number == 1 else plurals.get(kind, kind)}" for kind, number in numbers.items() if number
    )


def _unmeasured(evidence: Evidence) -> Literal["not run", "no result"] | None:
    """What a lack of scores comes to; None where there are scores."""
    if evidence.scores:
        return None
    return "no result" if evidence.missing else "not run"


def _judge_memory(evidence: Evidence) -> Verdict:
    if evidence.missing == OUT_OF_MEMORY:
        return Verdict("reproduced", OUT_OF_MEMORY)
    if evidence.scores:
        return Verdict("not compared", OUT_OF_MEMORY, "fits into memory here")
    return Verdict(_unmeasured(evidence) or "not run", OUT_OF_MEMORY)


def _says_solved(published: Published) -> bool:
    return published == "solves" or (not isinstance(published, str) and published / 100 >= SOLVED_AT)


def _judge_solving(evidence: Evidence, should_solve: bool, *, is_trained_enough: bool) -> Verdict:
    wanted = f"{'≥' if should_solve else '<'} {100 * SOLVED_AT:g} %"
    if unmeasured := _unmeasured(evidence):
        return Verdict(unmeasured, wanted)
    if 0 < evidence.num_solved < evidence.num_seeds:
        return Verdict("inconclusive", wanted, "seeds disagree")
    if not (evidence.num_solved or should_solve or is_trained_enough):
        return Verdict("inconclusive", wanted, "no row solves it here")
    return Verdict("reproduced" if (evidence.num_solved > 0) == should_solve else "differs", wanted)


def _judge_number(published: float, evidence: Evidence, tolerance: Tolerance) -> Verdict:
    low, high = band(published, tolerance, evidence.baseline)
    wanted = f"{percentage(low)}–{percentage(high)}"
    interval = evidence.interval
    if interval is None:
        return Verdict(_unmeasured(evidence) or "not run", wanted)
    if low <= interval.low and interval.high <= high:
        return Verdict("reproduced", wanted)
    if interval.high < low or high < interval.low:
        return Verdict("differs", wanted)
    return Verdict("inconclusive", wanted)
