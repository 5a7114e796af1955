"""The charts of a report as static figures for a paper (SVG, PDF), drawn with matplotlib in seaborn's style."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from reports import palette
from reports.axes import scale_for, ticks
from reports.document import Axis, Chart, Panel, Report, Series
from reports.formatting import visible

_PANEL_INCHES = (3.3, 2.5)
_MOST_COLUMNS = 3
_MOST_MARKERS = 16
_MARKERS = ("o", "s", "^", "D", "v", "P", "*")

_SETTINGS = {
    "text.parse_math": False,  # a name with a dollar sign is a name, not a formula
    "text.usetex": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "seqsuite",
    "pdf.fonttype": 42,
}


def save_figures(report: Report, folder: Path, formats: Iterable[str] = ("svg", "pdf")) -> list[Path]:
    """Writes each chart of the report to `folder`, in each format, and returns the files.

    The same report gives the same bytes. Raises OSError where `folder` cannot be written.
    """
    import matplotlib
    import seaborn

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    settings: Any = seaborn.axes_style("ticks") | seaborn.plotting_context("paper") | _SETTINGS
    with matplotlib.rc_context(settings):
        for chart in report.charts:
            figure = _draw(chart)
            for suffix in formats:
                path = folder / f"{chart.name}.{suffix}"
                dateless = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(suffix, {})
                figure.savefig(path, bbox_inches="tight", metadata=dateless)
                written.append(path)
    return written


def _draw(chart: Chart) -> Any:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    num_columns = min(_MOST_COLUMNS, len(chart.panels))
    num_rows = math.ceil(len(chart.panels) / num_columns)
    width, height = _PANEL_INCHES
    figure = Figure(figsize=(width * num_columns, height * num_rows), layout="constrained")
    axes = figure.subplots(num_rows, num_columns, squeeze=False).flatten()
    for panel, plot in zip(chart.panels, axes, strict=False):
        _draw_panel(panel, plot)
    for unused in axes[len(chart.panels) :]:
        unused.remove()
    named = {series.index: series.label for panel in chart.panels for series in panel.series}
    handles = [Line2D([], [], **_look(index)) for index in sorted(named)]
    labels = [_legend_label(named[index]) for index in sorted(named)]
    figure.legend(handles, labels, loc="outside lower center", ncols=min(5, len(labels)), frameon=False)
    return figure


def _legend_label(label: str) -> str:
    # matplotlib leaves out of a legend what starts with an underscore.
    return f" {visible(label)}" if label.startswith("_") else visible(label)


def _draw_panel(panel: Panel, plot: Any) -> None:
    plot.set_title(
        "\n".join(visible(part) for part in (panel.title, panel.subtitle) if part), loc="left", fontsize="small"
    )
    plot.spines[["top", "right"]].set_visible(False)
    if panel.kind == "bars":
        _draw_bars(panel, plot)
        return
    for series in sorted(panel.series, key=lambda series: not series.is_single_seed):
        _draw_series(series, plot)
    for reference in panel.references:
        plot.axhline(reference.y, color="0.4", linestyle=":", linewidth=1)
    for failure in panel.failures:
        colour, at_foot = palette.colours(failure.index)[0], plot.get_xaxis_transform()
        plot.plot([failure.x], [0.02], "x", color=colour, transform=at_foot)
    if panel.frontier:
        plot.plot(*zip(*panel.frontier, strict=True), color="0.4", linestyle="--", linewidth=1, zorder=0)
    _set_axis(panel.x, panel.xs, plot.xaxis, plot.set_xscale, plot.set_xlim)
    _set_axis(panel.y, panel.ys, plot.yaxis, plot.set_yscale, plot.set_ylim)


def _draw_series(series: Series, plot: Any) -> None:
    xs, ys = [point.x for point in series.points], [point.y for point in series.points]
    look = _look(series.index)
    if series.is_single_seed:
        plot.plot(xs, ys, color=look["color"], linewidth=0.5, alpha=0.4)
        return
    if len(xs) > _MOST_MARKERS:
        look["marker"] = ""
    plot.plot(xs, ys, clip_on=False, **look)
    for point in series.points:
        if point.low is not None and point.high is not None:
            plot.vlines(point.x, point.low, point.high, color=look["color"], linewidth=0.8, alpha=0.6)


def _draw_bars(panel: Panel, plot: Any) -> None:
    drawn = [series for series in panel.series if series.points]
    places = range(len(drawn))
    colours = [palette.colours(series.index)[0] for series in drawn]
    bars = plot.barh(places, [series.points[0].y for series in drawn], color=colours)
    plot.bar_label(bars, [panel.y.write(series.points[0].y) for series in drawn], padding=3)
    plot.set_yticks(places, [visible(series.label) for series in drawn])
    plot.invert_yaxis()
    plot.set_xlabel(panel.y.title)
    plot.xaxis.set_major_formatter(lambda value, _: panel.y.write(value))


def _look(index: int) -> dict[str, Any]:
    dashes = palette.dashes(index)
    return {
        "color": palette.colours(index)[0],
        "linestyle": (0, dashes) if dashes else "-",
        "marker": _MARKERS[index % len(_MARKERS)],
        "markersize": 3.5,
        "linewidth": 1.2,
    }


def _set_axis(axis: Axis, values: Sequence[float], drawn: Any, set_scale: Any, set_limits: Any) -> None:
    scale = scale_for(axis, values, 0, 1)
    if axis.scale != "linear":
        set_scale("log")
    drawn.set_ticks([tick for tick in ticks(axis, scale.low, scale.high) if scale.low <= tick <= scale.high])
    drawn.set_ticks([], minor=True)
    drawn.set_major_formatter(lambda value, _: axis.write(value))
    drawn.set_label_text(axis.title)
    set_limits(scale.low, scale.high)
    drawn.set_inverted(axis.is_reversed)
