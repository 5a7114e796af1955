"""Names that would do something if a renderer let them."""

from __future__ import annotations

from collections.abc import Iterable

from suite.records import Failure, Record
from suite.spec import Choice, RunSpec
from tests.reports.builders import (
    ENVIRONMENT,
    accuracy,
    accuracy_cell,
    cost,
    cost_cell,
    record,
    run_spec,
)

NAMES = (
    "<script>window.attacked = 1</script>",
    "</script><script>window.attacked = 1</script>",
    "</style></title></textarea><img src=x onerror='window.attacked = 1'>",
    '"><img src=x onerror="window.attacked = 1">',
    "' onmouseover='window.attacked = 1' x='",
    "<svg/onload=window.attacked=1>",
    "]]><b>",
    "<!-- never closed",
    "&lt;b&gt; &amp;",
    "javascript:window.attacked=1",
    "{{ 7 * 7 }}",
    "{% raw %}",
    '=HYPERLINK("http://evil.example","x")',
    "+1+1",
    "-2+3",
    "@SUM(A1)",
    " =1+1",
    "\t=1+1",
    "\r=1+1",
    "＝1+1",
    'a,b;c"d"',
    "a|b|c",
    "**bold** _it_ ~~gone~~ `code`",
    "[link](http://evil.example)",
    "![image](http://evil.example/x.png)",
    "<http://evil.example>",
    "http://evil.example www.evil.example",
    "# heading",
    "1. item",
    "- item",
    "> quote",
    "@someone #123",
    "```\nfence",
    "\\input{/etc/passwd}",
    "\\write18{id}",
    "$\\frac{1}{0}$ $x$",
    "100% #1 & ~x^y_{z} \\\\ \\end{tabular}",
    "[1cm] * ]",
    "--- `` '' ?` !`",
    "\x1b[31mred\x1b[0m \x1b]0;title\x07",
    "\x00null \x08back \x7fdelete \x9bcsi",
    "line\nbreak\r\nand\u2028more\u2029",
    "\u202eright to left\u202c \u2066isolated",
    "zero\u200bwidth\u200djoined\ufeff",
    "[bold red]markup[/]",
    "%s %n {0} {name}",
    "nan",
    "日本語のモデル",
    "e\u0301 combining, ñ, ß, Ł",
    "🙂 emoji",
    "x" * 300,
    "word " * 60,
    "",
    " ",
    "_leading underscore",
    "../../etc/passwd",
)


def hostile_run(names: Iterable[str] = NAMES) -> tuple[list[Record], RunSpec]:
    """Records in which every text that a stranger controls is a hostile name, among the models and everywhere else."""
    records: list[Record] = []
    for position, name in enumerate(names):
        model = Choice(name=name, settings={name or "key": name, "nested": {"key": [name]}})
        task = Choice(name=name, settings={"text": name}) if position % 3 == 0 else Choice(name="copying")
        environment = ENVIRONMENT.model_copy(
            update={"cpu": name, "gpu": name, "git_commit": name, "versions": {name: name, "torch": "2"}}
        )
        for rate in (1e-3, 3e-3):
            records.append(
                record(
                    accuracy_cell(model, task, learning_rate=rate),
                    accuracy(0.5, by_length={256: 0.5, 512: 0.4}, untested={"1024": name}, data=name or "empty"),
                    environment=environment,
                    implementations={name: [name]},
                )
            )
        records.append(record(cost_cell(model, task), cost(), implementations={name: [name]}))
        failure = Failure(kind="error", message=name, details=f"{name}\n{name}")
        records.append(record(cost_cell(model, task, length=1024), failure, environment=environment))
    cells = [found.cell for found in records]
    return records, run_spec(cells, preset=NAMES[0])
