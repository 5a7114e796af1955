"""Reports: records in, tables and charts in between, text or one self-contained page out."""

from __future__ import annotations

from reports.compare import compare
from reports.document import Report, Table
from reports.figures import save_figures
from reports.render import render
from reports.report import build_report

__all__ = ["Report", "Table", "build_report", "compare", "render", "save_figures"]
