"""What a benchmark of kernels saw -> tables: times by operation and dtype, errors by length."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from reports import formatting
from reports.document import (
    Column,
    Finding,
    Report,
    Row,
    Section,
    Table,
    TableCell,
    number_cell,
    text_cell,
    with_best_marked,
)
from reports.formatting import counted, listed
from reports.provenance import describe_environment
from reports.statistics import median_interval
from suite.bench.results import Case, Check, Entry, KernelBench, Pass

PASS_TITLES: dict[Pass, str] = {"forward": "forward", "forward_backward": "forward + backward"}

_TROUBLES = {
    "failed_check": "wrong",
    "out_of_memory": "out of memory",
    "too_slow": "too slow",
    "unavailable": "not for this",
    "error": "error",
}

_FACTORS = {"ns": 1e9, "µs": 1e6, "ms": 1e3}

_HOW_TO_READ = (
    "Called: the median of eager calls, on a GPU with cold caches, and the 10th to the 90th percentile. Kernels alone: "
    "the same call replayed as a CUDA graph, without its host. Floor: the least time that the work needs on this "
    "device, with what needs it, and its share of the time of the kernels, or of the call where they could not be "
    "timed alone. Against: how many times as fast as another, as called."
)


def build_report(bench: KernelBench, *, has_environment: bool = True) -> Report:
    """All that one invocation saw; the machine and the versions only if `has_environment`."""
    sections = [_summary(bench)]
    if bench.kind == "kernel_errors":
        sections += [_errors_section(bench, operation) for operation in _operations(bench.checks)]
    else:
        sections += [_times_section(bench, operation) for operation in _operations(bench.cases)]
        sections.append(Section(name="checks", title="Is it right?", tables=(_checks_table(bench.checks),)))
    if has_environment:
        sections.append(_environment_section(bench))
    return Report(title="Kernels", subtitle=bench.device.name, models=(), sections=tuple(sections))


def headline(seen: Check | Case) -> str | None:
    """What is worth a line while one waits: what went wrong, and the times of a finished case."""
    shape = spaced(seen.shape)
    if isinstance(seen, Check):
        if seen.failure is None or seen.is_unavailable:
            return None
        return f"✗ {seen.operation} {seen.dtype} {shape}: {seen.implementation}: {seen.failure}"
    said = []
    for entry in seen.entries:
        medians = [formatting.duration(statistics.median(timing.eager_seconds)) for timing in entry.timings.values()]
        trouble = _TROUBLES[entry.trouble.kind] if entry.trouble is not None else ""
        said.append(f"{entry.implementation} {' / '.join(medians) or trouble}")
    return f"✓ {seen.operation} {seen.dtype} {shape}: {', '.join(said)}"


def _operations(things: Iterable[Case] | Iterable[Check]) -> list[str]:
    return list(dict.fromkeys(thing.operation for thing in things))


def _how_to_read(bench: KernelBench) -> tuple[str, ...]:
    if bench.device.kind == "cuda":
        return (_HOW_TO_READ,)
    return (_HOW_TO_READ, "The floor counts bytes to and from memory; what fits into a CPU's caches can be faster.")


def _summary(bench: KernelBench) -> Section:
    device = bench.device
    ceilings = [f"copies {_rate(device.copy_bytes_per_second)}B/s"]
    ceilings += [
        f"multiplies matrices in {dtype} at {_rate(flops)}FLOP/s"
        for dtype, flops in device.matrix_flops_per_second.items()
    ]
    if device.sm_clock_hz is not None:
        ceilings.append(f"runs at {device.sm_clock_hz / 1e9:.2f} GHz under load")
    passed = sum(check.is_passed for check in bench.checks)
    judged = sum(not check.is_unavailable for check in bench.checks)
    findings = [
        Finding("Device", f"{device.name} {listed(ceilings)}."),
        Finding("Checks", f"{passed} of {counted(judged, 'check')} against float64 passed; seed {bench.seed}."),
    ]
    if not bench.is_complete:
        findings.append(Finding("Interrupted", "what had finished by then is here."))
    benched = {case.operation for case in bench.cases}
    if bench.anchors is not None and any(anchor.operation in benched for anchor in bench.anchors.entries):
        versions = listed([f"{name} {version}" for name, version in bench.anchors.versions.items()])
        findings.append(Finding("Recorded peers", f"{bench.anchors.source} ({versions}); {bench.anchors.method}."))
    return Section(
        name="summary",
        title="In short",
        paragraphs=_how_to_read(bench) if bench.cases else (),
        findings=tuple(findings),
        commands=(bench.command,),
    )


def _times_section(bench: KernelBench, operation: str) -> Section:
    cases = [case for case in bench.cases if case.operation == operation]
    tables = [
        _times_table(bench, [case for case in cases if case.dtype == dtype], name)
        for dtype in dict.fromkeys(case.dtype for case in cases)
        for name in PASS_TITLES
    ]
    return Section(name=_identifier(operation), title=operation, findings=_troubles(bench, cases), tables=tuple(tables))


def _times_table(bench: KernelBench, cases: Sequence[Case], name: Pass) -> Table:
    """One pass of one operation with one dtype: a group of rows for each shape."""
    first = cases[0]
    baseline = _baseline(bench, cases, name)
    has_graphs = any(_seconds_alone(entry, name) for case in cases for entry in case.entries)
    columns = {
        "called": Column(title="Called"),
        "kernels": Column(title="Kernels", unit="alone"),
        "floor": Column(title="Floor", unit="share"),
        "tokens": Column(title="Tokens", unit="per s"),
        "against": Column(title="Against", unit=baseline or ""),
        "first": Column(title="First", unit="call"),
    }
    if not has_graphs:
        del columns["kernels"]
    if baseline is None:
        del columns["against"]
    rows: list[Row] = []
    for case in cases:
        group = [
            Row(
                header=line.header,
                group=_case_title(case, name),
                cells=tuple(line.cells.get(column, TableCell(status="absent")) for column in columns),
            )
            for line in _lines(bench, case, name, baseline)
        ]
        rows += with_best_marked(group, [False if column in ("called", "kernels") else None for column in columns])
    return Table(
        name=_identifier(f"{first.operation}-{first.dtype}-{name}"),
        title=f"{first.operation}, {first.dtype}, {PASS_TITLES[name]}",
        caption="Bold: the fastest at a shape.",
        row_title="Shape and implementation",
        columns=tuple(columns.values()),
        rows=tuple(rows),
    )


def _case_title(case: Case, name: Pass) -> str:
    floor = case.floors[name]
    return f"{spaced(case.shape)}: floor {formatting.duration(floor.seconds)}, {floor.bound_by}"


@dataclass(frozen=True)
class _Line:
    """A row before it is known which columns there are."""

    header: str
    cells: dict[str, TableCell]


def _lines(bench: KernelBench, case: Case, name: Pass, baseline: str | None) -> list[_Line]:
    floor_seconds = case.floors[name].seconds
    baseline_seconds = _baseline_seconds(bench, case, name, baseline)
    lines = []
    for entry in case.entries:
        timing = entry.timings.get(name)
        if timing is None:
            lines.append(_Line(entry.implementation, {"called": _trouble_cell(entry)}))
            continue
        seconds, alone = statistics.median(timing.eager_seconds), _seconds_alone(entry, name)
        cells = {
            "called": number_cell(
                seconds,
                formatting.duration,
                _spread(timing.eager_seconds),
                interval=median_interval(timing.eager_seconds),
            ),
            "kernels": number_cell(alone, formatting.duration, interval=median_interval(timing.graphed_seconds or ())),
            "floor": number_cell(floor_seconds / (alone or seconds), _share),
            "tokens": number_cell(case.tokens / seconds, formatting.compact_count),
            "against": number_cell(baseline_seconds / seconds if baseline_seconds else None, formatting.ratio),
            "first": number_cell(timing.first_call_seconds, formatting.duration),
        }
        lines.append(_Line(entry.implementation, cells))
    if baseline_seconds is not None and baseline not in [entry.implementation for entry in case.entries]:
        cells = {
            "called": number_cell(baseline_seconds, formatting.duration),
            "floor": number_cell(floor_seconds / baseline_seconds, _share),
            "tokens": number_cell(case.tokens / baseline_seconds, formatting.compact_count),
            "against": number_cell(1.0, formatting.ratio),
        }
        lines.append(_Line(f"{baseline}, recorded", cells))
    return lines


def _baseline(bench: KernelBench, cases: Sequence[Case], name: Pass) -> str | None:
    """Whom all implementations of a table are compared with: the first of the baselines that any case has."""
    for baseline in cases[0].baselines:
        if any(_baseline_seconds(bench, case, name, baseline) is not None for case in cases):
            return baseline
    return None


def _baseline_seconds(bench: KernelBench, case: Case, name: Pass, baseline: str | None) -> float | None:
    """As measured here or, where it was not here, as recorded."""
    for entry in case.entries:
        if entry.implementation == baseline:
            return statistics.median(entry.timings[name].eager_seconds) if name in entry.timings else None
    for anchor in bench.anchors.entries if bench.anchors is not None else []:
        same = (anchor.operation, anchor.peer, anchor.dtype, anchor.shape)
        if same == (case.operation, baseline, case.dtype, case.shape):
            return anchor.of_pass(name)
    return None


def _seconds_alone(entry: Entry, name: Pass) -> float | None:
    """Median of the replays, where there are some."""
    timing = entry.timings.get(name)
    return statistics.median(timing.graphed_seconds) if timing is not None and timing.graphed_seconds else None


def _trouble_cell(entry: Entry) -> TableCell:
    if entry.trouble is None:
        return TableCell(status="absent")
    return TableCell(text=_TROUBLES[entry.trouble.kind], note=entry.trouble.message, status="failed")


def _troubles(bench: KernelBench, cases: Sequence[Case]) -> tuple[Finding, ...]:
    """What went wrong, in full, once for all shapes that it went wrong at."""
    places: dict[tuple[str, str], list[str]] = {}
    for case in cases:
        for entry in case.entries:
            if entry.trouble is not None:
                place = f"{spaced(case.shape)} {case.dtype}"
                places.setdefault((entry.implementation, entry.trouble.message), []).append(place)
            for name, timing in entry.timings.items():
                if timing.not_graphed is not None and bench.device.kind == "cuda":
                    what = f"{PASS_TITLES[name]} cannot be a CUDA graph: {timing.not_graphed}"
                    places.setdefault((entry.implementation, what), []).append(spaced(case.shape))
    return tuple(
        Finding(implementation, f"{message} ({listed(shapes, at_most=3)})")
        for (implementation, message), shapes in places.items()
    )


def _checks_table(checks: Sequence[Check]) -> Table:
    """The worst error of every implementation."""
    grouped: dict[tuple[str, str, str], list[Check]] = {}
    for check in checks:
        grouped.setdefault((check.operation, check.implementation, check.dtype), []).append(check)
    rows = []
    for (operation, implementation, dtype), same in grouped.items():
        errors = [(error, name) for check in same for name, error in check.errors.items()]
        worst, where = max(errors, default=(None, ""))
        failures = [check for check in same if not check.is_passed]
        verdict = text_cell("yes")
        if failures:
            is_unavailable = all(check.is_unavailable for check in failures)
            said = "not for this" if is_unavailable else "NO"
            verdict = TableCell(text=said, value=said, note=failures[0].failure or "", status="failed")
        cells = (
            text_cell(dtype),
            number_cell(worst, _scientific),
            text_cell(where),
            number_cell(same[0].tolerance, _scientific),
            verdict,
            number_cell(same[0].seconds, formatting.duration),
        )
        rows.append(Row(header=implementation, group=operation, cells=cells))
    return Table(
        name="checks",
        title="Is it right?",
        caption=(
            "Against the specification in float64 on fresh random inputs: the largest difference over the largest "
            "entry, of the output and of the gradient of every input; here the worst of them. What is beyond its "
            "tolerance is not timed. First call: forward and backward, with what had to be compiled or loaded for it."
        ),
        row_title="Operation and implementation",
        columns=(
            Column(title="dtype", is_text=True),
            Column(title="Worst error"),
            Column(title="Of", is_text=True),
            Column(title="Allowed"),
            Column(title="Right", is_text=True),
            Column(title="First call"),
        ),
        rows=tuple(rows),
    )


def _errors_section(bench: KernelBench, operation: str) -> Section:
    checks = [check for check in bench.checks if check.operation == operation]
    tables = [
        _errors_table([check for check in checks if check.dtype == dtype])
        for dtype in dict.fromkeys(check.dtype for check in checks)
    ]
    findings = tuple(
        Finding(f"{check.implementation} at {check.shape}, {check.dtype}", check.failure)
        for check in checks
        if check.failure is not None and not check.errors
    )
    return Section(name=_identifier(operation), title=operation, findings=findings, tables=tuple(tables))


def _errors_table(checks: Sequence[Check]) -> Table:
    """Rows by length, a group for each implementation, a column for the output and for each gradient."""
    first = checks[0]
    names = sorted(dict.fromkeys(name for check in checks for name in check.errors), key=lambda name: name != "output")
    rows = [
        Row(
            header=spaced(check.shape),
            group=check.implementation,
            cells=tuple(_error_cell(check, name) for name in names),
        )
        for implementation in dict.fromkeys(check.implementation for check in checks)
        for check in checks
        if check.implementation == implementation
    ]
    return Table(
        name=_identifier(f"{first.operation}-{first.dtype}-errors"),
        title=f"{first.operation}, {first.dtype}: errors by length",
        caption=(
            "Against the specification in float64: the largest difference over the largest entry, of the output and of "
            f"the gradient of each input. {_scientific(first.tolerance)} is allowed; (!) is beyond it."
        ),
        row_title="Shape",
        columns=tuple(Column(title=name.removeprefix("gradient of ")) for name in names),
        rows=tuple(rows),
    )


def _error_cell(check: Check, name: str) -> TableCell:
    error = check.errors.get(name)
    if error is None:
        return TableCell(status="absent")
    return number_cell(error, _scientific, "!" if error > check.tolerance else "")


def _environment_section(bench: KernelBench) -> Section:
    described = describe_environment(bench.environment) | {"Started": bench.started_at}
    table = Table(
        name="environment",
        title="Machine and software",
        caption="As the benchmark found it.",
        row_title="What",
        columns=(Column(title="Value", is_text=True),),
        rows=tuple(Row(header=name, cells=(text_cell(value),)) for name, value in described.items()),
        is_secondary=True,
    )
    return Section(name="environment-section", title="Machine and software", tables=(table,))


def _spread(seconds: Sequence[float]) -> str:
    """The 10th to the 90th percentile, in the unit of the median: "300–315"."""
    if len(seconds) < 2:
        return ""
    deciles = statistics.quantiles(seconds, n=10, method="inclusive")
    unit = formatting.duration(statistics.median(seconds)).rpartition(" ")[2]
    factor = _FACTORS.get(unit, 1.0)
    shown = [factor * decile for decile in (deciles[0], deciles[-1])]
    return "–".join(f"{value:.0f}" if value >= 100 else f"{value:.3g}" for value in shown)


def spaced(shape: str) -> str:
    """B8_L2048 -> "B8 L2048"."""
    return shape.replace("_", " ")


def _share(value: float | None) -> str:
    if value is None:
        return formatting.ABSENT
    return f"{100 * value:.0f} %" if value >= 0.01 else "<1 %"


def _scientific(value: float | None) -> str:
    """0.00012 -> "1.2e-4"."""
    if value is None:
        return formatting.ABSENT
    digits, _, exponent = f"{value:.1e}".partition("e")
    return f"{digits}e{int(exponent)}" if value else "0"


def _rate(value: float) -> str:
    """3.02e12 -> "3.02 T", for the unit to follow."""
    text = formatting.compact_count(value)
    return f"{text[:-1]} {text[-1]}" if text[-1].isalpha() else f"{text} "


def _identifier(text: str) -> str:
    return text.lower().replace("_", "-").replace(" ", "-").replace(".", "-")
