"""One report, five ways to read it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import cast

from reports.document import Report
from suite.errors import unknown

_RENDERERS: Mapping[str, tuple[str, str]] = {
    "text": ("reports.plain_text", "render_text"),
    "markdown": ("reports.markdown", "render_markdown"),
    "csv": ("reports.csv_export", "render_csv"),
    "latex": ("reports.latex", "render_latex"),
    "html": ("reports.html", "render_html"),
}


def render(report: Report, format: str) -> str:
    """The report as "text", "markdown", "csv" (one table in long form), "latex" (tables only) or "html".

    Only "html" has charts; it is one self-contained page.

    Raises:
        UsageError: there is no such format.
    """
    if format not in _RENDERERS:
        raise unknown("report format", format, _RENDERERS)
    module, function = _RENDERERS[format]
    renderer = cast(Callable[[Report], str], getattr(import_module(module), function))
    return renderer(report)
