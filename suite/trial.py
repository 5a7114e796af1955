"""One cell from start to end, in this process."""

from __future__ import annotations

from kernels.dispatch import receipt
from suite.accuracy import measure_accuracy
from suite.cost import measure_cost, rehearse
from suite.progress import Listener
from suite.records import Measurement
from suite.registry import Registry
from suite.spec import Cell
from suite.trainee import Trainee


def run_cell(cell: Cell, registry: Registry, listener: Listener) -> Measurement:
    """Builds the cell's model, trains or times it, and says what really ran.

    Raises:
        Diverged: the loss left the finite numbers.
        SuiteError: the cell asks for what does not exist or does not fit.
    """
    with receipt() as ran:
        first_calls = rehearse(Trainee(cell, registry), listener) if cell.kind == "cost" else None
        trainee = Trainee(cell, registry)
        accuracy = measure_accuracy(trainee, listener) if first_calls is None else None
        cost = measure_cost(trainee, first_calls, listener) if first_calls is not None else None
    return Measurement(
        num_parameters=trainee.shell.num_parameters,
        num_non_embedding_parameters=trainee.shell.num_non_embedding_parameters,
        parameter_groups=trainee.group_descriptions,
        implementations={operation: sorted(names) for operation, names in sorted(ran.items())},
        accuracy=accuracy,
        cost=cost,
    )
