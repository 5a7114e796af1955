"""Every format, for every size of result, with names from strangers."""

from __future__ import annotations

import csv
import io
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from reports import build_report, compare, latex, markdown, render
from reports.document import Report
from reports.formatting import visible
from suite.errors import UsageError
from suite.records import Record
from tests.reports.builders import accuracy, accuracy_cell, cost, cost_cell, realistic_run, record
from tests.reports.hostile import NAMES, hostile_run

FORMATS = ("text", "markdown", "csv", "latex", "html")
_NAN = re.compile(r"\b(nan|inf|infinity)\b", re.IGNORECASE)


def _many_models() -> list[Record]:
    models = [f"model-{position:02d}" for position in range(12)]
    return [
        found
        for model in models
        for found in (
            record(accuracy_cell(model), accuracy(0.5, by_length={256: 0.5, 512: 0.4})),
            *(record(cost_cell(model, length=length), cost(length=length)) for length in (256, 1024)),
        )
    ]


REPORTS = {
    "nothing": lambda: build_report([]),
    "one accuracy record": lambda: build_report([record(accuracy_cell(), accuracy(0.5))]),
    "one cost record": lambda: build_report([record(cost_cell(), cost())]),
    "twelve models": lambda: build_report(_many_models()),
    "a realistic run": lambda: build_report(*realistic_run()),
    "hostile names": lambda: build_report(*hostile_run()),
    "a comparison of nothing": lambda: compare([], []),
}


@pytest.fixture(scope="module")
def hostile_report() -> Report:
    return build_report(*hostile_run())


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kind", REPORTS)
def test_every_report_can_be_read_in_every_format(format: str, kind: str) -> None:
    rendered = render(REPORTS[kind](), format)
    assert rendered.endswith("\n")
    rendered.encode("utf-8")


@pytest.mark.parametrize("format", ["text", "markdown", "csv", "latex"])
def test_no_nan_is_ever_written(format: str) -> None:
    # The message of the diverged cell says "nan" of a loss; that is what happened and stays.
    rendered = render(build_report(*realistic_run()), format).replace("the loss became nan", "")
    assert not _NAN.search(rendered)


def test_an_unknown_format_is_refused_with_the_nearest_known_one() -> None:
    with pytest.raises(UsageError, match="Did you mean 'html'"):
        render(build_report([]), "htm")


def test_the_same_records_give_the_same_page() -> None:
    records, spec = realistic_run()
    assert render(build_report(records, spec), "html") == render(build_report(reversed(records), spec), "html")


def test_without_records_the_report_says_so() -> None:
    assert "There are no records" in render(build_report([]), "text")


def test_importing_reports_loads_nothing_heavy() -> None:
    code = (
        "import sys, reports; "
        "print(*sorted({'numpy', 'pandas', 'scipy', 'matplotlib', 'seaborn', 'jinja2', 'torch'} & set(sys.modules)))"
    )
    root = str(__import__("pathlib").Path(__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == ""


# Text


def test_text_stays_within_its_width_where_the_names_do() -> None:
    lines = render(build_report(*realistic_run()), "text").splitlines()
    assert max(len(line) for line in lines if not line.startswith("    suite run")) <= 120


def test_text_carries_no_control_character(hostile_report: Report) -> None:
    rendered = render(hostile_report, "text")
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u200b]", rendered)


def test_a_section_of_charts_alone_is_left_out_of_text() -> None:
    report = build_report(*realistic_run())
    assert "trade-off" in [section.name for section in report.sections]
    assert "Accuracy against throughput" not in render(report, "text")


# Markdown


@given(st.one_of(st.text(max_size=60), st.sampled_from(NAMES)))
def test_a_name_in_markdown_reads_as_itself(name: str) -> None:
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    shown = markdown.escape(name)
    (opening, inline, closing) = parser.parse(f"x {shown} x") if shown else parser.parse("x x x")
    assert (opening.type, closing.type) == ("paragraph_open", "paragraph_close")
    kinds = {child.type for child in inline.children or []}
    assert kinds <= {"text", "text_special", "html_inline"}
    assert all(child.content == "<!-- -->" for child in inline.children or [] if child.type == "html_inline")
    read = "".join(child.content for child in inline.children or [] if child.type != "html_inline")
    if shown:
        assert read == f"x {visible(name).lstrip()} x"


def test_a_name_at_the_start_of_a_markdown_line_opens_no_block() -> None:
    parser = MarkdownIt("commonmark").enable("table")
    for name in NAMES:
        tokens = parser.parse(f"- {markdown.escape(name)} x")
        blocks = {token.type for token in tokens}
        assert blocks <= {
            "bullet_list_open",
            "list_item_open",
            "paragraph_open",
            "inline",
            "paragraph_close",
            "list_item_close",
            "bullet_list_close",
        }, name


def test_names_do_not_break_out_of_markdown_tables(hostile_report: Report) -> None:
    parser = MarkdownIt("commonmark").enable("table")
    tokens = parser.parse(render(hostile_report, "markdown"))
    assert sum(token.type == "table_open" for token in tokens) == len(hostile_report.tables)
    assert sum(token.type == "tr_open" for token in tokens) == sum(
        1 + len(table.rows) for table in hostile_report.tables
    )


# CSV


def test_every_cell_of_every_table_is_a_line_of_the_csv(hostile_report: Report) -> None:
    rows = list(csv.DictReader(io.StringIO(render(hostile_report, "csv"))))
    assert len(rows) == sum(len(table.rows) * len(table.columns) for table in hostile_report.tables)
    assert None not in rows[0]


def test_no_text_in_the_csv_is_a_formula(hostile_report: Report) -> None:
    for row in csv.reader(io.StringIO(render(hostile_report, "csv"))):
        for text in row:
            is_number = re.fullmatch(r"-?\d[\d.e+-]*", text)
            assert is_number or not text.lstrip().startswith(("=", "+", "-", "@", "\t", "\r", "＝"))


def test_numbers_in_the_csv_are_in_base_units() -> None:
    rendered = render(build_report([record(accuracy_cell(), accuracy(0.9984))]), "csv")
    (row,) = [
        row for row in csv.DictReader(io.StringIO(rendered)) if row["table"] == "accuracy" and row["row"] == "mamba"
    ]
    assert row["column"] == "copying"
    assert float(row["value"]) == 0.9984
    assert row["text"] == "99.8 %"


# LaTeX

_COMMANDS = re.compile(
    r"\\(?:text(?:backslash|asciitilde|asciicircum|less|greater|bar|quotedbl|asciigrave|endash|emdash|periodcentered|"
    r"times|pm|mu|minus)\{\}|ldots\{\}|texttt\{U\+[0-9A-F]{4,6}\}|[{}$&#%_])|\{\\textquotesingle\}|\{[*\[\]]\}|\{\}"
)


@given(st.one_of(st.text(), st.sampled_from(NAMES)))
def test_a_name_in_latex_runs_no_command(name: str) -> None:
    rest = _COMMANDS.sub(" ", latex.escape(name))
    assert not re.search(r"[\\{}$&#%_^~<>|\"'`\[\]*]|--", rest)


def test_every_latex_table_is_closed_and_has_as_many_cells_as_columns(hostile_report: Report) -> None:
    rendered = render(hostile_report, "latex")
    assert rendered.count(r"\begin{tabular}") == rendered.count(r"\end{tabular}") == len(hostile_report.tables)
    for table, block in zip(hostile_report.tables, rendered.split(r"\begin{tabular}")[1:], strict=True):
        body = block.split(r"\toprule")[1].split(r"\bottomrule")[0]
        for line in body.strip().splitlines():
            if line.endswith(r"\\") and not line.startswith(r"\multicolumn"):
                assert len(re.findall(r"(?<!\\)&", line)) == len(table.columns)


# HTML

_VOID = {"meta", "br", "img", "input", "link", "hr"}


class _Reader(HTMLParser):
    """Collects what a browser would make of a page."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text: list[str] = []
        self.open: list[str] = []
        self.num_scripts = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.num_scripts += tag == "script"
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def _read(report: Report) -> _Reader:
    reader = _Reader()
    reader.feed(render(report, "html"))
    reader.close()
    return reader


def test_hostile_names_add_no_tag_and_no_attribute_to_the_page(hostile_report: Report) -> None:
    benign, hostile = _read(build_report(*realistic_run())), _read(hostile_report)
    assert hostile.tags <= benign.tags
    assert hostile.attributes <= benign.attributes
    assert hostile.num_scripts == 1
    assert not hostile.open
    assert not [name for name in hostile.attributes if name.startswith("on") or name == "style"]


def test_hostile_names_are_shown_as_they_are(hostile_report: Report) -> None:
    shown = "".join(_read(hostile_report).text)
    for name in NAMES:
        assert visible(name) in shown


def test_the_page_loads_nothing_from_anywhere() -> None:
    page = render(build_report(*realistic_run()), "html")
    assert not re.search(r'(?:src|href)="(?!#)', page)
    assert not re.search(r"url\(|@import|https?://", page)


def test_the_content_security_policy_names_the_style_and_the_script_by_digest() -> None:
    page = render(build_report([]), "html")
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', page)
    assert "default-src &#39;none&#39;" in policy
    assert "unsafe" not in policy
    assert len(re.findall("sha256-", policy)) == 2


def test_tables_have_captions_and_headers_with_a_scope() -> None:
    report = build_report(*realistic_run())
    page = render(report, "html")
    assert page.count("<caption") == len(report.tables)
    assert not re.findall(r"<th(?![^>]*scope=)[\s>]", page)


def test_every_chart_says_in_words_what_it_shows() -> None:
    report = build_report(*realistic_run())
    page = render(report, "html")
    num_panels = sum(len(chart.panels) for chart in report.charts)
    assert len(re.findall(r'role="img" aria-label="[^"]{20,}"', page)) == num_panels
