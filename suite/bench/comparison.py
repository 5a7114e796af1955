"""Two files of `suite bench kernels` side by side: what became faster or slower, and whether it is more than noise."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from reports import formatting
from reports.compare import SMALLEST_CHANGE, UNCHANGED
from reports.document import Column, Finding, Report, Row, Section, Table, number_cell, text_cell
from reports.formatting import listed
from reports.provenance import describe_environment
from reports.statistics import CONFIDENCE, ratio_of_medians_interval
from suite.bench.results import KernelBench
from suite.bench.tables import PASS_TITLES, spaced

_RESAMPLES = 10_000


@dataclass(frozen=True)
class _Sample:
    """One pass of one contender in one case."""

    title: str
    implementation: str
    seconds: list[float]


def build_comparison(a: KernelBench, b: KernelBench) -> Report:
    """What both files timed, side by side."""
    before, after = _samples(a), _samples(b)
    shared = [key for key in before if key in after]
    # The more verdicts there are, the more each of them asks for (Bonferroni).
    confidence = 1 - (1 - CONFIDENCE) / max(1, len(shared))
    rows = [_row(before[key], after[key], confidence) for key in shared]
    verdicts = [row.cells[-1].text for row in rows]
    said = [f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(verdicts)]
    findings = [
        Finding("Times", f"{listed(said)}." if said else "nothing that both files timed."),
        Finding("Only in A or B", f"{len(before) - len(shared)} and {len(after) - len(shared)} timings."),
    ]
    one, other = (describe_environment(bench.environment) for bench in (a, b))
    differing = [name for name in dict.fromkeys([*one, *other]) if one.get(name) != other.get(name)]
    if differing:
        findings.append(Finding("Environment", f"A and B differ in {listed(differing)}."))
    table = Table(
        name="times",
        title="Times",
        caption=(
            "Medians. Ratio: the seconds of A over those of B, above 1 where B is faster, with its 95 % bootstrap "
            f"interval. The verdict asks for more than that, it is one of {len(rows)}; and for a change of at least "
            f"{100 * SMALLEST_CHANGE:.0f} %, because machines drift by as much."
        ),
        row_title="Case and implementation",
        columns=(Column(title="A"), Column(title="B"), Column(title="Ratio"), Column(title="Verdict", is_text=True)),
        rows=tuple(rows),
    )
    sections = [Section(name="summary", title="In short", findings=tuple(findings))]
    sections += [Section(name="times-section", title="Times", tables=(table,))] if rows else []
    return Report(title="Two benchmarks compared", subtitle="A, then B", models=(), sections=tuple(sections))


def _samples(bench: KernelBench) -> dict[tuple[str, ...], _Sample]:
    """By operation, dtype, shape, pass, kind of timing and implementation."""
    samples: dict[tuple[str, ...], _Sample] = {}
    for case in bench.cases:
        for entry in case.entries:
            for name, timing in entry.timings.items():
                for kind, seconds in (("called", timing.eager_seconds), ("kernels", timing.graphed_seconds)):
                    if seconds:
                        title = f"{case.operation} {case.dtype} {spaced(case.shape)}, {PASS_TITLES[name]}"
                        key = (case.operation, case.dtype, case.shape, name, kind, entry.implementation)
                        samples[key] = _Sample(title, f"{entry.implementation}, {kind}", seconds)
    return samples


def _row(before: _Sample, after: _Sample, confidence: float) -> Row:
    a, b = statistics.median(before.seconds), statistics.median(after.seconds)
    interval = ratio_of_medians_interval(before.seconds, after.seconds)
    shown = f"{interval.low:.3f}–{interval.high:.3f}" if interval is not None else ""
    cells = (
        number_cell(a, formatting.duration),
        number_cell(b, formatting.duration),
        number_cell(a / b, formatting.decimal, shown, interval=interval),
        text_cell(_verdict(before.seconds, after.seconds, confidence)),
    )
    return Row(header=before.implementation, group=before.title, cells=cells)


def _verdict(before: list[float], after: list[float], confidence: float) -> str:
    ratio = statistics.median(before) / statistics.median(after)
    interval = ratio_of_medians_interval(before, after, confidence, resamples=_RESAMPLES)
    # Two sets of timings of the same code fall entirely apart, by chance, in two of this many orders.
    orders = math.comb(len(before) + len(after), len(before))
    if interval is None or 2 / orders > 1 - confidence:
        return "too few samples"
    if 1.0 in interval or abs(ratio - 1) < SMALLEST_CHANGE:
        return UNCHANGED
    return "faster" if ratio > 1 else "slower"
