"""Settings are strict and say what is wrong; a cell is known by its content."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from suite.errors import UsageError
from suite.spec import Budget, Cell, Choice, Preset, RunSpec, canonical_json
from tests.suite.builders import cell


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"stepz": 3}, "No setting is called 'stepz' in budget. Did you mean 'steps'?"),
        ({"steps": "many"}, "budget.steps = 'many'"),
        ({"steps": 2.5}, "budget.steps = 2.5"),
        ({"steps": True}, "budget.steps = True"),
        ({"steps": 0}, "greater than or equal to 1"),
        ({"schedule": "linear"}, "'constant' or 'cosine'"),
        ({"gradient_clip": math.nan}, "budget.gradient_clip"),
        ({"gradient_clip": math.inf}, "budget.gradient_clip"),
    ],
)
def test_a_wrong_setting_is_named_with_what_was_wanted(values: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError) as raised:
        Budget.parse(values, where="budget")
    assert said in str(raised.value)


def test_what_is_wanted_is_said_in_words_of_a_user() -> None:
    for values, said in (
        ({"learning_rates": 0.1}, r"preset.learning_rates = 0.1: expected a list, for example \[0.1\]$"),
        ({"learning_rates": []}, r"preset.learning_rates = \[\]: expected at least 1 of them$"),
    ):
        with pytest.raises(UsageError, match=said):
            Preset.parse(values, where="preset")
    with pytest.raises(UsageError, match=r"^run\.models is missing, and there is no default$"):
        RunSpec.parse({}, where="run")


@given(st.permutations(["model", "task", "shell", "precision", "device", "budget", "seed", "learning_rate", "kind"]))
def test_the_order_in_which_a_cell_is_written_does_not_change_what_it_is(keys: list[str]) -> None:
    original = cell()
    assert Cell(**{key: getattr(original, key) for key in keys}).id == original.id


def test_a_cell_survives_json() -> None:
    original = cell()
    again = Cell.model_validate_json(canonical_json(original.model_dump(mode="json")))
    assert again == original
    assert again.id == original.id


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"learning_rate": 2e-2},
        {"precision": "bf16"},
        {"device": "cuda"},
        {"model": Choice(name="faulty", settings={"fault": "nan"})},
        {"task": Choice(name="echo", version=2, settings={"length": 8, "seconds": 0.0})},
        {"protocol": 99},
    ],
)
def test_whatever_changes_a_result_changes_the_cell(changes: dict[str, object]) -> None:
    assert cell(**changes).id != cell().id


def test_accuracy_and_cost_of_one_configuration_join() -> None:
    accuracy = cell()
    cost = cell(kind="cost", budget=None, seed=None, learning_rate=None, length=8, batch_size=2)
    assert accuracy.configuration_id == cost.configuration_id
    assert accuracy.id != cost.id
    assert cell(shell={"width": 16, "num_layers": 1}).configuration_id != cost.configuration_id


def test_what_is_not_a_number_is_never_written() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"loss": math.nan})
