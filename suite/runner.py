"""RunSpec -> the cells still missing -> an executor -> the Store."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from suite.executors.local import Ended, Event, LocalExecutor
from suite.records import Record
from suite.spec import Cell, RunSpec
from suite.store import Store


def missing_cells(spec: RunSpec, records: list[Record], *, retry_failed: bool) -> list[Cell]:
    """The cells of `spec` without a record; a failure counts as one unless failed cells are to be tried again."""
    finished = {record.cell_id for record in records if record.measurement is not None or not retry_failed}
    return [cell for cell in spec.cells if cell.id not in finished]


def run(cells: Sequence[Cell], store: Store, executor: LocalExecutor) -> Generator[Event]:
    """Runs the cells and stores each record before its event is handed on.

    The caller holds the store's lock (`store.writing()`).
    """
    for event in executor.execute(cells):
        if isinstance(event, Ended):
            store.add(event.record)
        yield event
