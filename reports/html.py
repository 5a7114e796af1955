"""A report as one page: self-contained, offline, safe to open.

Everything is inside the file. A content security policy forbids the page to load or send anything and to run any script
or style but its own two, named by their digests; text of unknown origin is escaped by the template engine.
"""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from typing import Any

from reports import palette
from reports.charts import draw, swatch
from reports.document import Panel, Report
from reports.formatting import visible_lines


def render_html(report: Report) -> str:
    """The report as an HTML document."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    def finalize(value: Any) -> Any:
        return visible_lines(value) if type(value) is str else value

    def draw_markup(panel: Panel) -> Markup:
        return Markup(draw(panel))

    def swatch_markup(index: int) -> Markup:
        return Markup(swatch(index))

    environment = Environment(
        loader=FunctionLoader(_own_file),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    style, script = palette.style_sheet() + _own_file("page.css"), _own_file("page.js")
    return environment.get_template("page.html.j2").render(
        report=report,
        # The files are this package's own, and nothing of the report has got into them.
        style=Markup(style),
        script=Markup(script),
        policy=_policy(style, script),
        draw=draw_markup,
        swatch=swatch_markup,
        has_failures=any(section.name == "failures" for section in report.sections),
    )


def _policy(style: str, script: str) -> str:
    """Nothing from anywhere, but for this style and this script."""
    return (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _own_file(name: str) -> str:
    return files("reports").joinpath(name).read_text(encoding="utf-8")
