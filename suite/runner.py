"""RunSpec -> the cells still missing -> an executor -> the Store."""

from __future__ import annotations

from collections.abc import Generator

from suite.executors.local import Ended, Event, LocalExecutor
from suite.records import Record
from suite.spec import Cell, RunSpec
from suite.store import Store


def missing_cells(spec: RunSpec, records: list[Record], *, retry_failed: bool) -> list[Cell]:
    """The cells of `spec` without a record; a failure counts as one unless failed cells are to be tried again."""
    finished = {record.cell_id for record in records if record.measurement is not None or not retry_failed}
    return [cell for cell in spec.cells if cell.id not in finished]


def run(spec: RunSpec, store: Store, executor: LocalExecutor, *, retry_failed: bool = False) -> Generator[Event]:
    """Runs what is missing and stores each record before its event is handed on.

    The caller holds the store's lock (`store.writing()`).
    """
    store.write_spec(spec)
    for event in executor.execute(missing_cells(spec, store.records(), retry_failed=retry_failed)):
        if isinstance(event, Ended):
            store.add(event.record)
        yield event
