"""The results in the repository can still be read by the code beside them."""

from __future__ import annotations

from pathlib import Path

import pytest

from reports import build_report, render
from suite.store import Store

RESULTS = Path(__file__).parent.parent.parent / "benchmarks" / "results"


@pytest.mark.parametrize(
    "folder", sorted(path.parent for path in RESULTS.rglob("run.json")), ids=lambda path: path.name
)
def test_committed_results_are_whole_and_say_where_they_come_from(folder: Path) -> None:
    store = Store(folder)
    records, spec = store.records(), store.spec()
    assert spec is not None
    assert {record.cell_id for record in records} <= {cell.id for cell in spec.cells}
    for record in records:
        assert record.environment is not None
        assert record.environment.git_commit
        assert record.environment.gpu
    assert "H100" in render(build_report(records, spec), "text")
