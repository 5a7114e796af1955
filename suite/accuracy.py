"""An accuracy cell: train under the budget, select on validation, report on test."""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor

from suite.errors import Diverged, UsageError
from suite.evaluation import evaluate
from suite.measure.memory import is_out_of_memory
from suite.progress import Listener, Progress
from suite.records import Accuracy, CurvePoint, Evaluation
from suite.selection import rank, standing
from suite.trainee import Trainee
from suite.training_steps import TrainingSteps

_SECONDS_BETWEEN_NEWS = 0.5


def measure_accuracy(trainee: Trainee, listener: Listener) -> Accuracy:
    """Trains the model and tests the weights that validation liked best.

    Raises:
        Diverged: the loss left the finite numbers.
    """
    task, budget = trainee.task, trainee.budget
    baseline = task.baseline()
    curve: list[CurvePoint] = []
    losses: list[Tensor] = []
    best, best_step, best_weights = (-math.inf, -math.inf), 0, trainee.shell.state_dict()
    stopped_early = False
    steps = TrainingSteps(trainee)
    started = last_told = time.perf_counter()
    for step in range(1, budget.steps + 1):
        trainee.set_learning_rate(step - 1)
        # The batches up to the first validation are drawn by every model that gets that far, so their digests compare.
        is_hashed = step <= budget.evaluate_every
        losses.append(steps(trainee.drawn("train", step - 1, budget.batch_size, task.length, hashed=is_hashed)))
        if time.perf_counter() - last_told > _SECONDS_BETWEEN_NEWS:
            last_told = time.perf_counter()
            listener(Progress(step / budget.steps, f"step {step:,}, loss {float(losses[-1]):.3f}"))
        if step % budget.evaluate_every and step < budget.steps:
            continue
        train_loss = _finite_mean(losses, step)
        losses.clear()
        num_sequences = budget.validation_batches * budget.batch_size
        validation = evaluate(trainee, "validation", task.length, num_sequences, hashed=not curve, listener=listener)
        curve.append(
            CurvePoint(
                step=step,
                tokens=step * budget.batch_size * task.length,
                seconds=time.perf_counter() - started,
                train_loss=train_loss,
                validation=validation,
            )
        )
        reached = standing(task.metric, validation)
        if reached > best:
            best, best_step = reached, step
            best_weights = {name: value.clone() for name, value in trainee.shell.state_dict().items()}
        if budget.stop_at is not None and reached[0] >= rank(task.metric, budget.stop_at):
            stopped_early = True
            break
    train_seconds = time.perf_counter() - started
    not_graphed = steps.not_graphed
    # The graph holds the memory of a whole step, which a long test may want.
    del steps
    trainee.shell.load_state_dict(best_weights)
    test, untested = _test(trainee, listener)
    return Accuracy(
        curve=curve,
        selected_step=best_step,
        steps_run=curve[-1].step,
        stopped_early=stopped_early,
        test=test,
        untested=untested,
        baseline=baseline,
        metric=task.metric,
        solved_at=task.solved_at,
        train_seconds=train_seconds,
        steps_not_graphed=not_graphed,
        data_sha256=trainee.data_sha256,
    )


def _test(trainee: Trainee, listener: Listener) -> tuple[list[Evaluation], dict[str, str]]:
    """Scores at every test length; a length that cannot be scored is named with its reason."""
    test: list[Evaluation] = []
    untested: dict[str, str] = {}
    longest = trainee.budget.longest_test
    for length in trainee.task.test_lengths:
        if longest is not None and length > longest:
            untested[str(length)] = f"longer than budget.longest_test = {longest:,}"
            continue
        try:
            num_sequences = trainee.budget.test_batches * trainee.budget.batch_size
            test.append(evaluate(trainee, "test", length, num_sequences, hashed=True, listener=listener))
        except (UsageError, Diverged) as error:
            untested[str(length)] = str(error)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            untested[str(length)] = "out of memory"
    return test, untested


def _finite_mean(losses: list[Tensor], step: int) -> float:
    """Mean of the losses up to and with `step`. Raises Diverged at the first that is not finite."""
    values: list[float] = torch.stack(losses).tolist()
    for index, value in enumerate(values):
        if not math.isfinite(value):
            raise Diverged(step - len(values) + index + 1, str(value))
    return math.fsum(values) / len(values)
