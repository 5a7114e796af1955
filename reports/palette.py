"""What tells models apart: a colour and dashes, both from the model's position (and a marker, from `charts`).

The colours stay apart for people with any of the common colour deficiencies, and every one can be read as text on its
background; dashes and marker still tell models apart where colour does not print.
"""

from __future__ import annotations

LIGHT_PAPER, DARK_PAPER = "#ffffff", "#14171a"

COLOURS = (
    ("#0a6ebd", "#5199e6"),
    ("#a12e02", "#f7945d"),
    ("#086442", "#30c99c"),
    ("#851c74", "#c871b0"),
    ("#907102", "#eecb67"),
    ("#533fba", "#b0a5fe"),
    ("#206c82", "#64e0f8"),
    ("#645e63", "#c0cdca"),
)
"""(on light paper, on dark paper)."""

DASHES = ((), (7.0, 3.0), (2.0, 3.0), (9.0, 3.0, 2.0, 3.0))
"""Lengths of strokes and gaps in pixels; the first line is solid."""


def colours(index: int) -> tuple[str, str]:
    """(on light paper, on dark paper) of the model at this position."""
    return COLOURS[index % len(COLOURS)]


def dashes(index: int) -> tuple[float, ...]:
    """Dashes of the model at this position."""
    return DASHES[index % len(DASHES)]


def style_sheet() -> str:
    """The custom properties `--paper`, `--colour` (of .s0, .s1, …) and `--dashes` (of .d0, .d1, …)."""
    rules = [f":root {{ --paper: light-dark({LIGHT_PAPER}, {DARK_PAPER}); }}"]
    for index, (light, dark) in enumerate(COLOURS):
        rules.append(f".s{index} {{ --colour: light-dark({light}, {dark}); }}")
    for index, lengths in enumerate(DASHES):
        rules.append(f".d{index} {{ --dashes: {' '.join(f'{length:g}' for length in lengths) or 'none'}; }}")
    return "\n".join(rules) + "\n"
