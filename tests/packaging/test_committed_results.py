"""The results in the repository can still be read by the code beside them."""

from __future__ import annotations

from pathlib import Path

import pytest

from reports import build_report, render
from suite.store import Store

RESULTS = Path(__file__).parent.parent.parent / "benchmarks" / "results"


FOLDERS = sorted(path.parent for path in RESULTS.rglob("run.json"))


@pytest.mark.parametrize("folder", FOLDERS, ids=[folder.name for folder in FOLDERS])
def test_committed_results_are_whole_and_say_where_they_come_from(folder: Path) -> None:
    store = Store(folder)
    records, spec = store.records(), store.spec()
    assert spec is not None
    assert {record.cell_id for record in records} <= {cell.id for cell in spec.cells}
    text = render(build_report(records, spec), "text")
    for record in records:
        assert record.environment is not None
        assert record.environment.versions["torch"]
        device = record.environment.gpu if record.cell.device == "cuda" else record.environment.cpu
        assert device is not None
        assert device in text
