"""Chart descriptions -> inline SVG that needs no library and no network.

Colour, marker and dashes of a model follow from its position, so that it looks the same in every chart; the style sheet
knows the colours, in light and in dark. The SVG carries classes and attributes only, never a style of its own, so that
a strict content security policy lets it stand.
"""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from reports import palette
from reports.axes import Scale, scale_for, ticks
from reports.document import FailureMark, Panel, Point, Series
from reports.formatting import visible

_WIDTH = 440.0
_LEFT, _TOP, _BOTTOM = 54.0, 26.0, 40.0
_MIN_PLOT_HEIGHT = 190.0
_BAR_ROW_HEIGHT = 26.0
_LABEL_HEIGHT = 14.0
_FAILURE_HEIGHT = 11.0
_CHARACTER_WIDTH = 7.2
_LONGEST_LABEL = 18
_MOST_MARKERS = 16
"""A line with more points is drawn without markers."""

_MARKERS = (
    "M-4 0A4 4 0 1 0 4 0A4 4 0 1 0-4 0Z",
    "M-3.6-3.6H3.6V3.6H-3.6Z",
    "M0-4.8L4.6 3.4H-4.6Z",
    "M0-5L5 0L0 5L-5 0Z",
    "M0 4.8L4.6-3.4H-4.6Z",
    "M-1.6-4.8H1.6V-1.6H4.8V1.6H1.6V4.8H-1.6V1.6H-4.8V-1.6H-1.6Z",
    "M0-5.4L1.5-1.8L5.2-1.7L2.3.8L3.3 4.4L0 2.3L-3.3 4.4L-2.3.8L-5.2-1.7L-1.5-1.8Z",
)


def draw(panel: Panel) -> str:
    """One panel as an SVG element. All text in it is escaped."""
    return _draw_bars(panel) if panel.kind == "bars" else _draw_plane(panel)


def swatch(index: int) -> str:
    """A short piece of a model's line with its marker."""
    return (
        f'<svg class="swatch {_classes(index)}" viewBox="0 0 26 12" width="26" height="12" aria-hidden="true" '
        f'focusable="false">{_stroke("line", "M1 6H25")}{_marker(index, 13, 6)}</svg>'
    )


def _draw_plane(panel: Panel) -> str:
    drawn = [series for series in panel.series if series.points]
    named = [series for series in drawn if not series.is_single_seed]
    failures_height = _FAILURE_HEIGHT * _most_failures_at_one_place(panel.failures)
    bottom = _TOP + max(_MIN_PLOT_HEIGHT, _LABEL_HEIGHT * len(named) + 10) + failures_height
    right = _WIDTH - (_label_space(named) if panel.kind == "lines" else 12.0)
    x = scale_for(panel.x, panel.xs, _LEFT, right)
    y = scale_for(panel.y, panel.ys, bottom - failures_height, _TOP)
    parts = [_open(panel, named, bottom + _BOTTOM), _y_axis(y, right), _x_axis(x, _x_ticks(panel, x), bottom, right)]
    for reference in panel.references:
        parts.append(_stroke("reference", f"M{_LEFT:.1f} {y(reference.y):.1f}H{right:.1f}", reference.label))
    if panel.frontier:
        parts.append(_stroke("frontier", _path([(x(a), y(b)) for a, b in panel.frontier])))
    parts += [_draw_series(series, x, y) for series in sorted(drawn, key=lambda series: not series.is_single_seed)]
    parts += _draw_failures(panel.failures, x, bottom)
    parts += _labels_at_line_ends(named, x, y, right) if panel.kind == "lines" else _labels_at_points(named, x, y)
    return "".join(parts) + "</svg>"


def _draw_bars(panel: Panel) -> str:
    """One horizontal bar a model, its value beside it."""
    named = [series for series in panel.series if series.points]
    left, right = _label_space(named), _WIDTH - 80
    largest = max(series.points[0].y for series in named) or 1.0
    parts = [_open(panel, named, _BAR_ROW_HEIGHT * len(named) + 8)]
    for position, series in enumerate(named):
        point = series.points[0]
        top = 7 + position * _BAR_ROW_HEIGHT
        width = max(1.0, (right - left) * point.y / largest)
        inside = (
            _text_at("label", left - 8, top + 13, _label(series.label), anchor="end")
            + _stroke("bar", f"M{left:.1f} {top:.1f}h{width:.1f}v18h-{width:.1f}Z", point.title)
            + _text_at("tick", left + width + 6, top + 13, _escaped(panel.y.write(point.y)))
        )
        parts.append(_group(series.index, inside))
    return "".join(parts) + "</svg>"


def _open(panel: Panel, named: Sequence[Series], height: float) -> str:
    kind = {"lines": "Line chart", "scatter": "Scatter chart", "bars": "Bar chart"}[panel.kind]
    against = "" if panel.kind == "bars" else f" against {panel.x.title}"
    models = ", ".join(series.label for series in named)
    where = ", ".join(part for part in (panel.title, panel.subtitle) if part)
    summary = _escaped(f"{kind}: {panel.y.title}{against}, {where}. Models: {models}.")
    return f'<svg class="chart" viewBox="0 0 {_WIDTH:.0f} {height:.0f}" role="img" aria-label="{summary}">'


def _y_axis(y: Scale, right: float) -> str:
    parts = []
    for tick in ticks(y.axis, y.low, y.high):
        parts.append(_stroke("grid", f"M{_LEFT:.1f} {y(tick):.1f}H{right:.1f}"))
        parts.append(_text_at("tick", _LEFT - 6, y(tick) + 4, _escaped(y.axis.write(tick)), anchor="end"))
    return "".join(parts) + _text_at("axis", 2, 12, _escaped(y.axis.title))


def _x_axis(x: Scale, chosen: Sequence[float], bottom: float, right: float) -> str:
    parts = [_stroke("base", f"M{_LEFT:.1f} {bottom:.1f}H{right:.1f}")]
    for tick in chosen:
        parts.append(_stroke("base", f"M{x(tick):.1f} {bottom:.1f}v4"))
        parts.append(_text_at("tick", x(tick), bottom + 17, _escaped(x.axis.write(tick)), anchor="middle"))
    middle = (_LEFT + right) / 2
    return "".join(parts) + _text_at("axis", middle, bottom + 34, _escaped(x.axis.title), anchor="middle")


def _x_ticks(panel: Panel, x: Scale) -> list[float]:
    """On a logarithmic axis of lines the measured values themselves; as many as fit side by side."""
    is_grid_of_values = panel.kind == "lines" and x.axis.scale != "linear"
    candidates = sorted(set(panel.xs)) if is_grid_of_values else ticks(x.axis, x.low, x.high)
    for stride in range(1, len(candidates)):
        if _fit(candidates[::stride], x):
            return candidates[::stride]
    return candidates[:1]


def _fit(chosen: Sequence[float], x: Scale) -> bool:
    widths = [len(x.axis.write(tick)) * _CHARACTER_WIDTH for tick in chosen]
    return all(
        abs(x(chosen[after]) - x(chosen[after - 1])) > (widths[after] + widths[after - 1]) / 2 + 8
        for after in range(1, len(chosen))
    )


def _draw_series(series: Series, x: Scale, y: Scale) -> str:
    places = [(x(point.x), y(point.y)) for point in series.points]
    if series.is_single_seed:
        return _group(series.index, _stroke("seed", _path(places)))
    whiskers = "".join(_whisker(point, x, y) for point in series.points)
    line = _stroke("line", _path(places)) if len(places) > 1 else ""
    return _group(series.index, whiskers + line + _points(series, places))


def _points(series: Series, places: Sequence[tuple[float, float]]) -> str:
    """Markers with what they say; where there are too many, unseen places to point at."""
    titled = [(point.title, *place) for point, place in zip(series.points, places, strict=True)]
    if len(titled) <= _MOST_MARKERS:
        return "".join(_marker(series.index, x, y, title) for title, x, y in titled)
    return "".join(
        f'<circle class="touch" cx="{x:.1f}" cy="{y:.1f}" r="5">{_title(title)}</circle>' for title, x, y in titled
    )


def _whisker(point: Point, x: Scale, y: Scale) -> str:
    if point.low is None or point.high is None:
        return ""
    return _stroke("whisker", f"M{x(point.x):.1f} {y(point.low):.1f}V{y(point.high):.1f}")


def _draw_failures(failures: Sequence[FailureMark], x: Scale, bottom: float) -> list[str]:
    """Crosses at the foot of the plot, on top of each other where several models failed."""
    num_at: dict[float, int] = {}
    drawn = []
    for failure in failures:
        level = num_at.get(failure.x, 0)
        num_at[failure.x] = level + 1
        left, top = x(failure.x) - 4, bottom - 12 - _FAILURE_HEIGHT * level
        drawn.append(_group(failure.index, _stroke("failure", f"M{left:.1f} {top:.1f}l8 8m0-8l-8 8", failure.title)))
    return drawn


def _most_failures_at_one_place(failures: Sequence[FailureMark]) -> int:
    return max(Counter(failure.x for failure in failures).values(), default=0)


def _labels_at_line_ends(named: Sequence[Series], x: Scale, y: Scale, right: float) -> list[str]:
    """The models' names right of the plot, moved apart, each tied to the end of its line."""
    ends = [(series, x(series.points[-1].x), y(series.points[-1].y)) for series in named]
    ends.sort(key=lambda end: end[2])
    middles = spread([end_y for _, _, end_y in ends], top=y.end + 2, bottom=y.start - 2)
    return [
        _group(
            series.index,
            _stroke("leader", f"M{end_x + 6:.1f} {end_y:.1f}L{right + 4:.1f} {middle:.1f}")
            + _text_at("label", right + 7, middle + 4, _label(series.label)),
        )
        for (series, end_x, end_y), middle in zip(ends, middles, strict=True)
    ]


def spread(wanted: Sequence[float], *, top: float, bottom: float) -> list[float]:
    """The wanted heights, sorted from the top down, moved apart so that labels do not touch."""
    placed: list[float] = []
    for height in wanted:
        placed.append(max(height, placed[-1] + _LABEL_HEIGHT if placed else top))
    limit = bottom
    for position in reversed(range(len(placed))):
        placed[position] = min(placed[position], limit)
        limit = placed[position] - _LABEL_HEIGHT
    return placed


def _labels_at_points(named: Sequence[Series], x: Scale, y: Scale) -> list[str]:
    """Names beside the points of a scatter, moved up or down where they would cover something."""
    taken = [_Box(x(series.points[0].x) - 5, y(series.points[0].y) - 5, 10, 10) for series in named]
    offsets = sorted((step * 6.0 for step in range(-10, 11)), key=abs)
    drawn = []
    for series in named:
        point_x, point_y = x(series.points[0].x), y(series.points[0].y)
        width = _label_width(series)
        fits_right = point_x + 9 + width < _WIDTH
        left = point_x + 9 if fits_right else point_x - 9 - width
        candidates = [_Box(left, point_y - 6 + offset, width, 12) for offset in offsets]
        free = (box for box in candidates if not any(box.touches(other) for other in taken))
        box = next(free, candidates[0])
        taken.append(box)
        anchor_x, anchor = (left, "start") if fits_right else (left + width, "end")
        drawn.append(
            _group(series.index, _text_at("label", anchor_x, box.top + 10, _label(series.label), anchor=anchor))
        )
    return drawn


@dataclass(frozen=True)
class _Box:
    left: float
    top: float
    width: float
    height: float

    def touches(self, other: _Box) -> bool:
        return (
            self.left < other.left + other.width
            and other.left < self.left + self.width
            and self.top < other.top + other.height
            and other.top < self.top + self.height
        )


def _label_space(named: Sequence[Series]) -> float:
    return max((_label_width(series) for series in named), default=0.0) + 14


def _label_width(series: Series) -> float:
    return min(_LONGEST_LABEL, len(visible(series.label))) * _CHARACTER_WIDTH


def _marker(index: int, x: float, y: float, title: str = "") -> str:
    shape = _MARKERS[index % len(_MARKERS)]
    return f'<path class="marker" d="{shape}" transform="translate({x:.1f} {y:.1f})">{_title(title)}</path>'


def _path(places: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)


def _stroke(css_class: str, path: str, title: str = "") -> str:
    return f'<path class="{css_class}" d="{path}">{_title(title)}</path>'


def _text_at(css_class: str, x: float, y: float, markup: str, *, anchor: str = "start") -> str:
    return f'<text class="{css_class}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{markup}</text>'


def _group(index: int, markup: str) -> str:
    return f'<g class="{_classes(index)}" data-series="{index}">{markup}</g>'


def _classes(index: int) -> str:
    return f"s{index % len(palette.COLOURS)} d{index % len(palette.DASHES)}"


def _title(text: str) -> str:
    return f"<title>{_escaped(text)}</title>" if text else ""


def _label(text: str) -> str:
    """A name that fits; the whole of it for who points at it."""
    shown = visible(text)
    if len(shown) <= _LONGEST_LABEL:
        return _escaped(shown)
    return f"{_escaped(shown[: _LONGEST_LABEL - 1])}…{_title(shown)}"


def _escaped(text: str) -> str:
    return html.escape(visible(text), quote=True)
