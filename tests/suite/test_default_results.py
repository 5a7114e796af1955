"""The default comparison shows what it is there to show: the sizes that `make run` uses tell the models apart."""

from __future__ import annotations

import pytest

from suite.plan import Request, plan
from suite.records import Accuracy
from suite.registry import Registry
from suite.trial import run_cell


def _accuracy(model: str, task: str) -> Accuracy:
    """The first seed of a cell of the default preset."""
    registry = Registry()
    request = Request(models=(model,), tasks=(task,), seeds=(0,), device="cpu", measure=("accuracy",))
    (cell,) = plan(request, registry).cells
    accuracy = run_cell(cell, registry, lambda progress: None).accuracy
    assert accuracy is not None
    return accuracy


@pytest.mark.parametrize("task", ["selective_copying", "induction_heads"])
def test_mamba_solves_its_tasks(task: str) -> None:
    accuracy = _accuracy("mamba", task)
    trained_length = accuracy.curve[0].validation.length
    (at_trained_length,) = (each for each in accuracy.test if each.length == trained_length)
    assert at_trained_length.token_accuracy >= 0.95


def test_a_time_invariant_model_does_not_solve_selective_copying() -> None:
    accuracy = _accuracy("s4", "selective_copying")
    assert accuracy.baseline < accuracy.test[0].token_accuracy < 0.8


@pytest.mark.parametrize("model", ["mamba", "s4", "transformer", "lstm"])
def test_text_is_predicted_better_than_by_how_often_each_byte_occurs(model: str) -> None:
    accuracy = _accuracy(model, "long_range_lm")
    bits_per_byte = accuracy.test[0].bits_per_byte
    assert bits_per_byte is not None
    assert bits_per_byte < accuracy.baseline - 1
