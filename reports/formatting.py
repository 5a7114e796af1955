"""How a number or a stranger's text is written for people. Every renderer goes through here.

What is missing or not finite is written as `ABSENT`; "nan" and "inf" are never shown.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Sequence

ABSENT = "—"
"""Stands where there is no number."""

Format = Callable[[float | None], str]
"""Writes one number, with its unit."""

_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_BINARY_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_DECIMAL_UNITS = ("", "k", "M", "G", "T", "P")


def is_finite(value: float | None) -> bool:
    """Whether there is a number that is neither NaN nor infinite."""
    return value is not None and math.isfinite(value)


def percent(share: float | None) -> str:
    """0.9984 -> "99.8 %". What is not quite all or nothing is never rounded to it."""
    text = percentage(share)
    return text if text == ABSENT else f"{text} %"


def percentage(share: float | None) -> str:
    """`percent` without its sign, for intervals and axes: "99.8"."""
    if share is None or not math.isfinite(share):
        return ABSENT
    if 0.9995 <= share < 1:
        return ">99.9"
    if 0 < share < 0.0005:
        return "<0.1"
    return f"{100 * share:.1f}"


def compact_count(value: float | None) -> str:
    """Three significant digits: 12345 -> "12.3k"."""
    if value is None or not math.isfinite(value):
        return ABSENT
    return _scaled(value, 1000, _DECIMAL_UNITS, _three_digits).replace(" ", "")


def round_count(value: float | None) -> str:
    """Round numbers on an axis: 1000 -> "1k", 2500000 -> "2.5M"."""
    if value is None or not math.isfinite(value):
        return ABSENT
    return _scaled(value, 1000, _DECIMAL_UNITS, lambda scaled: f"{scaled:.3g}").replace(" ", "")


def exact_count(value: float | None) -> str:
    """12345 -> "12,345"."""
    if value is None or not math.isfinite(value):
        return ABSENT
    return f"{round(value):,}"


def byte_size(value: float | None) -> str:
    """4404019 -> "4.2 MiB"."""
    if value is None or not math.isfinite(value):
        return ABSENT
    return _scaled(value, 1024, _BINARY_UNITS, lambda scaled: f"{scaled:.1f}".removesuffix(".0"))


def duration(seconds: float | None) -> str:
    """0.00321 -> "3.21 ms"; 125 -> "2 min 5 s"."""
    if seconds is None or not math.isfinite(seconds):
        return ABSENT
    if seconds == 0:
        return "0 s"
    for factor, unit in ((1e9, "ns"), (1e6, "µs"), (1e3, "ms")):
        if abs(seconds) * factor < 999.5:
            return f"{_three_digits(seconds * factor)} {unit}"
    if abs(seconds) < 99.95:
        return f"{_three_digits(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def decimal(value: float | None) -> str:
    """Losses and bits per byte: 1.3624 -> "1.362"."""
    if value is None or not math.isfinite(value):
        return ABSENT
    return f"{value:.3f}"


def round_decimal(value: float | None) -> str:
    """Round numbers on an axis: 1.5 -> "1.5"."""
    if value is None or not math.isfinite(value):
        return ABSENT
    return f"{value:.4g}"


def learning_rate(value: float | None) -> str:
    """0.003 -> "0.003"; 0.00001 -> "1e-05"."""
    if value is None or not math.isfinite(value):
        return ABSENT
    return f"{value:g}"


def ratio(value: float | None) -> str:
    """1.2345 -> "1.23×"."""
    if value is None or not math.isfinite(value):
        return ABSENT
    return f"{exact_count(value) if value >= 1000 else _three_digits(value)}×"


def counted(number: int, noun: str) -> str:
    """1, "seed" -> "1 seed"; 2, "seed" -> "2 seeds"."""
    return f"{number:,} {noun if number == 1 else noun + 's'}"


def listed(names: Sequence[str], *, at_most: int = 12) -> str:
    """a, b and c; a long list is cut and says by how much."""
    if len(names) > at_most:
        return f"{', '.join(names[:at_most])} and {len(names) - at_most} more"
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


def visible(text: str) -> str:
    """Text of unknown origin on one line: line breaks become spaces, every other unseen character its code point.

    Terminal escapes, text-direction overrides, zero-width characters and lone surrogates can then neither act nor hide.
    """
    return "".join(_seen(character) for character in " ".join(text.splitlines()))


def visible_lines(text: str) -> str:
    """`visible`, with its line breaks kept."""
    return "\n".join(visible(line) for line in text.splitlines())


def _seen(character: str) -> str:
    if character == "\t":
        return " "
    if unicodedata.category(character) in _INVISIBLE:
        return f"\\u{{{ord(character):x}}}"
    return character


def _three_digits(value: float) -> str:
    """At least three significant digits, and every digit before the point."""
    digits_before = len(str(int(abs(value)))) if abs(value) >= 1 else 1
    text = f"{value:.{max(0, 3 - digits_before)}f}"
    if len(str(int(abs(float(text))))) > digits_before:
        text = f"{value:.{max(0, 2 - digits_before)}f}"
    return text


def _scaled(value: float, base: int, units: tuple[str, ...], write: Callable[[float], str]) -> str:
    scaled, position = value, 0
    while abs(scaled) >= base - 0.5 and position < len(units) - 1:
        scaled /= base
        position += 1
    if position == 0:
        number = f"{scaled:.3g}" if abs(scaled) < 100 else f"{round(scaled)}"
        return f"{number} {units[0]}".strip()
    return f"{write(scaled)} {units[position]}"
