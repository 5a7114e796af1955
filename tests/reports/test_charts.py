"""Charts: axes, labels that do not touch, the trade-off line, colours that can be told apart."""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports import build_report, palette
from reports.axes import scale_for, ticks
from reports.charts import draw, spread, swatch
from reports.document import Axis, Chart, Panel, Point, Report, Series
from reports.formatting import round_decimal
from reports.plots import pareto_frontier
from tests.reports.builders import accuracy, accuracy_cell, cost, cost_cell, out_of_memory, realistic_run, record
from tests.reports.hostile import hostile_run

SCALES = st.sampled_from(["linear", "log2", "log10"])


def _axis(scale: str, **settings: float | bool) -> Axis:
    return Axis(title="x", write=round_decimal, scale=scale, **settings)  # type: ignore[arg-type]


def _chart(report: Report, name: str) -> Chart:
    (chart,) = [chart for chart in report.charts if chart.name == name]
    return chart


@given(SCALES, st.lists(st.floats(1e-6, 1e9), min_size=1, max_size=10))
def test_every_value_lies_on_its_axis_and_in_order(scale_name: str, values: list[float]) -> None:
    scale = scale_for(_axis(scale_name), values, 0, 100)
    places = [scale(value) for value in sorted(values)]
    assert all(0 <= place <= 100 for place in places)
    assert places == sorted(places)


@given(SCALES, st.floats(1e-6, 1e9), st.floats(1.001, 1e6))
def test_there_are_a_few_ticks_and_all_within_the_axis(scale_name: str, low: float, factor: float) -> None:
    high = low * factor
    found = ticks(_axis(scale_name), low, high)
    assert 1 <= len(found) <= 12
    assert all(low * (1 - 1e-6) <= tick <= high * (1 + 1e-6) for tick in found)


def test_ticks_of_a_share_and_of_lengths_are_round() -> None:
    assert ticks(_axis("linear"), 0.0, 1.0) == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks(_axis("log2"), 64, 1024) == [64, 128, 256, 512, 1024]
    assert ticks(_axis("log10"), 90, 2e5) == [100, 1_000, 10_000, 100_000]


def test_a_reversed_axis_puts_small_values_at_its_end() -> None:
    scale = scale_for(_axis("linear", is_reversed=True), [1.0, 2.0], 0, 100)
    assert scale(1.0) > scale(2.0)


@given(st.lists(st.floats(0, 200), min_size=1, max_size=12).map(sorted))
def test_labels_never_touch_and_stay_in_the_plot(wanted: list[float]) -> None:
    placed = spread(wanted, top=0, bottom=200)
    assert all(after - before >= 14 - 1e-9 for before, after in itertools.pairwise(placed))
    assert placed[0] >= 0
    assert placed[-1] <= 200


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=12))
def test_no_point_beats_the_frontier_and_every_other_is_beaten(points: list[tuple[int, int]]) -> None:
    frontier = pareto_frontier(points)
    for point in points:
        beaten = any(x >= point[0] and y >= point[1] and (x, y) != point for x, y in points)
        assert (point in frontier) == (not beaten)
    assert list(frontier) == sorted(frontier)


def test_every_chart_is_well_formed_and_carries_no_style_of_its_own() -> None:
    for report in (build_report(*realistic_run()), build_report(*hostile_run())):
        for panel in (panel for chart in report.charts for panel in chart.panels):
            drawn = draw(panel)
            ElementTree.fromstring(drawn)
            assert "style=" not in drawn
            assert not re.search(
                r"\b(nan|inf)\b", re.sub(r"<title>.*?</title>|<text.*?</text>|aria-label=\"[^\"]*\"", "", drawn)
            )


def test_several_lengths_are_lines_and_a_single_one_is_bars() -> None:
    one = build_report([record(cost_cell(model), cost()) for model in ("a", "b")])
    assert {panel.kind for panel in _chart(one, "throughput").panels} == {"bars"}
    two = build_report([record(cost_cell(length=length), cost(length=length)) for length in (256, 512)])
    assert {panel.kind for panel in _chart(two, "throughput").panels} == {"lines"}


def test_a_failure_is_marked_at_its_length() -> None:
    report = build_report(
        [
            record(cost_cell(length=256), cost(length=256)),
            record(cost_cell(length=512), cost(length=512)),
            record(cost_cell(length=1024), out_of_memory()),
        ]
    )
    training = _chart(report, "throughput").panels[0]
    assert [(mark.x, mark.title) for mark in training.failures] == [(1024, "mamba at 1,024 tokens: out of memory")]
    assert 'class="failure"' in draw(training)


def test_learning_curves_have_a_thin_line_for_each_seed_and_their_mean() -> None:
    report = build_report(
        [
            record(accuracy_cell(seed=0), accuracy(0.8, validation=[0.2, 0.8])),
            record(accuracy_cell(seed=1), accuracy(0.6, validation=[0.4, 0.6, 0.7])),
        ]
    )
    series = _chart(report, "learning-curves").panels[0].series
    assert [line.is_single_seed for line in series] == [True, True, False]
    assert [point.x for point in series[-1].points] == [50, 100]
    assert [point.y for point in series[-1].points] == pytest.approx([0.3, 0.7])


def test_the_trade_off_joins_accuracy_and_cost_of_the_same_configuration() -> None:
    report = build_report(
        [
            record(accuracy_cell("a"), accuracy(0.9)),
            record(cost_cell("a"), cost()),
            record(accuracy_cell("b"), accuracy(0.8)),
            record(cost_cell("b", precision="bf16"), cost()),
        ]
    )
    (panel,) = _chart(report, "trade-off").panels
    assert [line.label for line in panel.series] == ["a (precision=fp32)"]


def test_a_long_name_is_cut_and_kept_whole_for_who_points_at_it() -> None:
    line = Series(label="m" * 60, index=0, points=(Point(1, 1), Point(2, 2)))
    drawn = draw(Panel(title="t", kind="lines", x=_axis("linear"), y=_axis("linear"), series=(line,)))
    assert f">{'m' * 17}…<title>{'m' * 60}</title>" in drawn


def test_twelve_models_all_look_different() -> None:
    looks = {re.sub(r"<title>.*?</title>", "", swatch(index)) for index in range(12)}
    assert len(looks) == 12


def _luminance(colour: str) -> float:
    channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(first: str, second: str) -> float:
    lighter, darker = sorted((_luminance(first), _luminance(second)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("position", range(len(palette.COLOURS)))
def test_every_colour_can_be_read_as_text(position: int) -> None:
    light, dark = palette.colours(position)
    assert _contrast(light, palette.LIGHT_PAPER) >= 4.5
    assert _contrast(dark, palette.DARK_PAPER) >= 4.5


# Machado, Oliveira and Fernandes 2009, severity 1.0, on linear RGB.
_DEFICIENCIES = {
    "none": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}


def _oklab(colour: str, deficiency: str) -> npt.NDArray[np.float64]:
    channels = np.array([int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    seen = np.clip(_DEFICIENCIES[deficiency] @ linear, 0, 1)
    to_lms = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    to_lab = np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    lab: npt.NDArray[np.float64] = to_lab @ np.cbrt(to_lms @ seen)
    return lab


@pytest.mark.parametrize("deficiency", _DEFICIENCIES)
@pytest.mark.parametrize("background", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize(("num_colours", "distance"), [(5, 0.08), (8, 0.05)])
def test_colours_stay_apart_for_everyone(deficiency: str, background: int, num_colours: int, distance: float) -> None:
    seen = [_oklab(palette.colours(position)[background], deficiency) for position in range(num_colours)]
    apart = [float(np.linalg.norm(first - second)) for first, second in itertools.combinations(seen, 2)]
    assert min(apart) >= distance
