"""The page as a person has it: opened from a file, in a real browser, without a network."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from reports import build_report, render
from tests.reports.builders import realistic_run
from tests.reports.hostile import hostile_run

pytestmark = pytest.mark.browser

_ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
_SECTIONS = [
    "summary",
    "accuracy",
    "length",
    "learning",
    "throughput",
    "memory",
    "trade-off",
    "cost",
    "positions",
    "learning-rates",
    "failures",
    "provenance",
    "reproduce",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    names = ("chromium", "chromium-browser", "google-chrome")
    executable = next((found for name in names if (found := shutil.which(name))), None)
    if executable is None:
        if os.environ.get("SUITE_ALLOW_NO_BROWSER") == "1":
            pytest.skip("NO BROWSER: the page was not looked at, because SUITE_ALLOW_NO_BROWSER=1 allows it")
        pytest.fail(
            "There is no Chromium to look at the page with. Install it (Debian: apt-get install chromium), "
            "or set SUITE_ALLOW_NO_BROWSER=1 to leave these tests out"
        )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=_ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    runs = {"realistic": realistic_run(), "hostile": hostile_run()}
    paths = {name: folder / f"{name}.html" for name in runs}
    for name, (records, spec) in runs.items():
        paths[name].write_text(render(build_report(records, spec), "html"), encoding="utf-8")
    return paths


class _Visit:
    """A page with everything it said and asked for."""

    def __init__(self, browser: Browser, path: Path, **settings: Any) -> None:
        self.context = browser.new_context(**settings)
        self.page: Page = self.context.new_page()
        self.said: list[str] = []
        self.requested: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: self.said.append(dialog.message))
        self.page.on("request", lambda request: self.requested.append(request.url))
        self.page.goto(path.as_uri())

    def __enter__(self) -> _Visit:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()


@pytest.mark.parametrize("kind", ["realistic", "hostile"])
def test_the_page_says_nothing_asks_for_nothing_and_runs_nothing_strange(
    browser: Browser, pages: dict[str, Path], kind: str
) -> None:
    with _Visit(browser, pages[kind]) as visit:
        assert visit.said == []
        assert visit.requested == [pages[kind].as_uri()]
        assert visit.page.evaluate("window.attacked") is None


def test_all_sections_are_there_and_linked(browser: Browser, pages: dict[str, Path]) -> None:
    with _Visit(browser, pages["realistic"]) as visit:
        sections = visit.page.locator("main > section")
        assert sections.evaluate_all("all => all.map(section => section.id)") == _SECTIONS
        targets = visit.page.locator("nav a").evaluate_all("all => all.map(link => link.getAttribute('href'))")
        assert targets == [f"#{name}" for name in _SECTIONS]
        assert visit.page.locator("svg.chart").count() > 10


@pytest.mark.parametrize("kind", ["realistic", "hostile"])
@pytest.mark.parametrize("width", [390, 1400])
def test_the_page_does_not_overflow_sideways(browser: Browser, pages: dict[str, Path], kind: str, width: int) -> None:
    with _Visit(browser, pages[kind], viewport={"width": width, "height": 900}) as visit:
        visit.page.evaluate("document.querySelectorAll('details').forEach(details => { details.open = true; })")
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= width


def _first_column(page: Page) -> list[str]:
    headers = page.locator("#accuracy-table tbody th")
    return [text.strip() for text in headers.all_inner_texts()]


def test_a_table_is_sorted_with_the_keyboard_alone(browser: Browser, pages: dict[str, Path]) -> None:
    with _Visit(browser, pages["realistic"]) as visit:
        page = visit.page
        page.locator("#accuracy .scroll").focus()
        for _ in range(2):
            page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.closest('th').cellIndex") == 1
        page.keyboard.press("Enter")
        assert _first_column(page) == ["mamba", "transformer", "s4", "gru", "lstm", "cannot see the sequence"]
        header = page.locator("#accuracy-table thead th").nth(1)
        assert header.get_attribute("aria-sort") == "descending"
        page.keyboard.press("Space")
        assert _first_column(page) == ["lstm", "gru", "s4", "transformer", "mamba", "cannot see the sequence"]
        assert header.get_attribute("aria-sort") == "ascending"


def test_cells_without_a_value_are_sorted_last_in_both_directions(browser: Browser, pages: dict[str, Path]) -> None:
    with _Visit(browser, pages["realistic"]) as visit:
        page = visit.page
        page.locator("#cost-by-length-2-table").evaluate("table => { table.closest('details').open = true; }")
        button = page.locator("#cost-by-length-2-table thead th button").nth(3)
        for _ in range(2):
            button.click()
            rows = page.locator("#cost-by-length-2-table tbody").first.locator("tr:not(.group) th")
            assert rows.evaluate_all("all => all.map(cell => cell.innerText.trim())")[-1] == "transformer"


def test_a_model_can_be_hidden_in_all_charts(browser: Browser, pages: dict[str, Path]) -> None:
    with _Visit(browser, pages["realistic"]) as visit:
        drawn = visit.page.locator("svg.chart g[data-series='1']")
        button = visit.page.locator("[data-toggles='1']")
        button.click()
        assert button.get_attribute("aria-pressed") == "false"
        assert not any(drawn.nth(position).is_visible() for position in range(drawn.count()))
        button.click()
        assert drawn.last.is_visible()


def test_the_reason_of_a_failure_can_be_reached(browser: Browser, pages: dict[str, Path]) -> None:
    with _Visit(browser, pages["realistic"]) as visit:
        failures = visit.page.locator("#failures-table")
        failures.locator("summary").first.click()
        assert failures.locator("pre").first.is_visible()
        assert "CUDA out of memory" in failures.inner_text()


def _luminance(colour: str) -> float:
    channels = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_stands_out_from_the_paper(browser: Browser, pages: dict[str, Path], scheme: str) -> None:
    with _Visit(browser, pages["realistic"], color_scheme=scheme) as visit:
        visit.page.evaluate("document.querySelectorAll('details').forEach(details => { details.open = true; })")
        paper = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
        colours = visit.page.evaluate(
            """() => [...document.querySelectorAll('h1, h2, p, a, li, th, td, small, .details, summary, svg text')]
            .map(found => found.closest('svg') ? getComputedStyle(found).fill : getComputedStyle(found).color)"""
        )
        for colour in set(colours):
            lighter, darker = sorted((_luminance(colour), _luminance(paper)), reverse=True)
            assert (lighter + 0.05) / (darker + 0.05) >= 4.5, colour


def test_the_theme_can_be_switched(browser: Browser, pages: dict[str, Path]) -> None:
    with _Visit(browser, pages["realistic"], color_scheme="light") as visit:
        paper = "getComputedStyle(document.body).backgroundColor"
        before = visit.page.evaluate(paper)
        visit.page.locator("#theme").press("Enter")
        assert visit.page.evaluate(paper) != before
        visit.page.locator("#theme").press("Enter")
        assert visit.page.evaluate(paper) == before


def test_without_its_script_the_page_says_the_same(browser: Browser, pages: dict[str, Path]) -> None:
    with _Visit(browser, pages["realistic"], java_script_enabled=False) as visit:
        assert visit.page.locator("main > section").count() == len(_SECTIONS)
        assert visit.page.locator("#accuracy-table").is_visible()


def test_what_is_folded_is_printed(browser: Browser, pages: dict[str, Path]) -> None:
    with _Visit(browser, pages["realistic"]) as visit:
        visit.page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
        visit.page.emulate_media(media="print")
        assert visit.page.locator("#cost-by-length-0-table").is_visible()
        assert not visit.page.locator("nav").is_visible()
