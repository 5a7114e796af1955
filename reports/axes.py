"""Axes: where a value stands, and which values are worth a tick."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from reports.document import Axis

_AIR = 0.04
"""Share of the values' extent that is left free at either end."""


@dataclass(frozen=True)
class Scale:
    """Values of an axis -> pixels."""

    axis: Axis
    low: float
    high: float
    start: float
    """Pixel of `low`, or of `high` where the axis is reversed."""
    end: float

    def __call__(self, value: float) -> float:
        """The pixel of a value; what lies beyond an end is drawn at that end."""
        low, high = self._transformed(self.low), self._transformed(self.high)
        share = (self._transformed(min(max(value, self.low), self.high)) - low) / (high - low)
        return self.start + (1 - share if self.axis.is_reversed else share) * (self.end - self.start)

    def _transformed(self, value: float) -> float:
        return value if self.axis.scale == "linear" else math.log2(value)


def scale_for(axis: Axis, values: Sequence[float], start: float, end: float) -> Scale:
    """Covers the values with a little air, or reaches to the axis' own ends.

    Never of no extent; a logarithmic one leaves out what is not positive.
    """
    is_linear = axis.scale == "linear"
    values = [value for value in values if is_linear or value > 0] or [1.0]
    least, most = min(values), max(values)
    if is_linear:
        air = _AIR * (most - least) or 0.5
        low, high = least - air, most + air
    else:
        air = (most / least) ** _AIR if most > least else 2.0
        low, high = least / air, most * air
    return Scale(
        axis, axis.low if axis.low is not None else low, axis.high if axis.high is not None else high, start, end
    )


def ticks(axis: Axis, low: float, high: float) -> list[float]:
    """Some four to seven round values from `low` to `high`; the ends themselves where none lie between."""
    if axis.scale == "linear":
        return _linear_ticks(low, high)
    if axis.scale == "log2":
        return _powers_of_two(low, high) or [low, high]
    return _decimal_ticks(low, high) or [low, high]


def _linear_ticks(low: float, high: float) -> list[float]:
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(multiple * power for multiple in (1, 2, 2.5, 5, 10) if multiple * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [position * step for position in range(first, last + 1)]


def _powers_of_two(low: float, high: float) -> list[float]:
    first, last = math.ceil(math.log2(low) - 1e-9), math.floor(math.log2(high) + 1e-9)
    stride = max(1, math.ceil((last - first) / 5))
    return [2.0**exponent for exponent in range(first, last + 1, stride)]


def _decimal_ticks(low: float, high: float) -> list[float]:
    """Powers of ten; between them 2 and 5, or all digits, where there are too few."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    inside: list[float] = []
    for multiples in ((1,), (1, 2, 5), (1, 2, 3, 4, 5, 6, 7, 8, 9)):
        candidates = [multiple * 10.0**decade for decade in decades for multiple in multiples]
        inside = [tick for tick in candidates if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
        if len(inside) >= 3:
            break
    return inside[:: max(1, math.ceil(len(inside) / 7))]
