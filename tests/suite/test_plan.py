"""From a request to cells: every model gets the same budget, and nothing that was set is dropped."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from suite.errors import SuiteError, UsageError
from suite.plan import Request, parse_assignments, plan, read_experiment
from suite.registry import Registry
from suite.spec import Grid, RunSpec
from tests.suite.builders import FAULTY


def _plan(**fields: Any) -> RunSpec:
    return plan(Request.parse({"device": "cpu", **fields}, where="run"), Registry([FAULTY]))


def test_every_model_gets_the_same_budget_seeds_learning_rates_lengths_and_precision() -> None:
    offered: dict[str, set[Any]] = defaultdict(set)
    for cell in _plan(preset="standard").cells:
        budget = cell.budget.model_dump_json() if cell.budget else None
        place = (cell.task, cell.shell, cell.precision, cell.device)
        what = (*place, budget, cell.seed, cell.learning_rate, cell.length, cell.batch_size)
        offered[cell.model.name].add(str(what))
    assert len(offered) == 5
    first, *others = offered.values()
    assert first
    assert all(other == first for other in others)


def test_every_preset_of_every_task_can_be_planned() -> None:
    for name in Registry().task_names():
        for preset in Registry().task(name).presets:
            assert _plan(models=["gru"], tasks=[name], preset=preset).cells


def test_no_cell_is_planned_twice() -> None:
    spec = _plan(models=["mamba", "mamba", "gru"], seeds=[0, 1, 0])
    assert len({cell.id for cell in spec.cells}) == len(spec.cells)
    assert spec.models == ("mamba", "gru")


def test_a_setting_reaches_its_cells_and_no_others() -> None:
    spec = _plan(models=["mamba", "gru"], overrides=parse_assignments(["mamba.state_size=8", "budget.steps=7"]))
    sizes = {cell.model.name: cell.model.settings.get("state_size") for cell in spec.cells}
    assert sizes == {"mamba": 8, "gru": None}
    assert {cell.budget.steps for cell in spec.cells if cell.budget} == {7}


def test_seeds_that_are_given_replace_the_presets() -> None:
    spec = _plan(models=["gru"], tasks=["echo"], seeds=[5, 9])
    assert [cell.seed for cell in spec.cells if cell.kind == "accuracy"] == [5, 9]


@pytest.mark.parametrize("task", Registry().task_names())
def test_a_task_that_a_seed_solves_or_not_gets_five_of_them_and_a_grid_that_grows(task: str) -> None:
    preset = Registry().task(task).presets["standard"]
    assert preset.max_extensions == 2
    assert preset.num_seeds >= (5 if preset.budget.stop_at is not None else 3)


def test_the_grid_that_all_models_start_from_is_written_down() -> None:
    spec = _plan(models=["gru"], tasks=["induction_heads"], preset="standard")
    assert spec.grids == {"induction_heads": Grid(learning_rates=(3e-4, 1e-3, 3e-3), max_extensions=2)}


def test_a_matching_gives_each_model_the_width_that_is_on_record() -> None:
    spec = _plan(models=["gru", "mamba"], tasks=["mqar", "echo"], match="parameters=50_000")
    chosen = {(size.task, size.model): size.width for size in spec.matched}
    assert len(chosen) == 4
    assert {(cell.task.name, cell.model.name): cell.shell.width for cell in spec.cells} == chosen
    assert chosen["echo", "gru"] != chosen["mqar", "gru"], "echo has one layer, mqar two"


def test_without_a_matching_every_model_has_the_shell_of_the_preset() -> None:
    spec = _plan(models=["gru", "mamba"], tasks=["echo"])
    assert (spec.matching, spec.matched) == (None, ())
    assert {cell.shell.width for cell in spec.cells} == {8}


def test_a_task_that_names_no_cost_lengths_is_timed_at_its_training_length() -> None:
    spec = _plan(models=["gru"], tasks=["echo"], overrides={"echo": {"length": 5}})
    assert [cell.length for cell in spec.cells if cell.kind == "cost"] == [5]


@pytest.mark.parametrize("kind", ["accuracy", "cost"])
def test_one_kind_of_measurement_can_be_asked_for(kind: str) -> None:
    assert {cell.kind for cell in _plan(measure=[kind]).cells} == {kind}


def test_the_digest_of_a_single_file_is_part_of_its_cells() -> None:
    cell, _ = _plan(models=["faulty"], tasks=["echo"]).cells
    assert cell.task.source_sha256 == cell.model.source_sha256 == Registry([FAULTY]).entry("task", "echo").source_sha256


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"models": ["mambo"]}, "No model is called 'mambo'. Did you mean 'mamba'?"),
        ({"tasks": ["copy"]}, "No task is called 'copy'. Did you mean 'copying'?"),
        ({"preset": "huge"}, "No preset is called 'huge' for the task 'selective_copying'"),
        ({"models": []}, "No models were given"),
        ({"seeds": [-1]}, "run.seeds.0 = -1"),
        ({"device": "tpu"}, "'cpu' or 'cuda'"),
        ({"device": "cuda"}, "torch finds none"),
        ({"measure": ["speed"]}, "'accuracy' or 'cost'"),
        ({"overrides": {"preset": {"learning_rates": []}}}, "preset.learning_rates = []"),
        ({"models": ["gru"], "overrides": {"mamba": {"state_size": 8}}}, "'mamba' has settings but is not in this run"),
        ({"overrides": {"budget": {"stop_at": 0.9, "schedule": "cosine"}}}, "for fast learners alone"),
        ({"seeds": [2**70]}, "run.seeds.0"),
        ({"match": "params"}, "No matching policy is called 'params'. Did you mean 'parameters'?"),
        ({"match": "flops=none"}, "expected a number above zero, for example flops=1_000_000"),
        ({"match": "parameters"}, "--match parameters="),
        ({"overrides": {"preset": {"match_tolerance": 0.0}}}, "preset.match_tolerance = 0.0"),
        ({"overrides": {"preset": {"max_extensions": -1}}}, "preset.max_extensions = -1"),
        ({"overrides": {"mamba": {"state": 8}}}, "No setting is called 'state' in mamba. Did you mean 'state_size'?"),
        ({"overrides": {"mamba": {"state_size": "big"}}}, "mamba.state_size = 'big'"),
        ({"overrides": {"mambo": {}}}, "No section is called 'mambo'. Did you mean 'mamba'?"),
        ({"overrides": {"budget": {"stepz": 1}}}, "No setting is called 'stepz' in budget"),
        ({"overrides": {"preset": {"budget": 1}}}, "Set budget.KEY instead"),
        ({"overrides": {"preset": {"learning_rates": [0.0]}}}, "greater than 0"),
        ({"overrides": {"selective_copying": {"num_tokens": 1000}}}, "selective_copying"),
    ],
)
def test_what_does_not_exist_or_fit_is_named(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(SuiteError) as raised:
        _plan(**fields)
    assert said in str(raised.value)


@pytest.mark.parametrize("assignment", ["steps=3", "budget.steps", "=3", ".=3", "budget.=3"])
def test_an_assignment_that_is_none_is_refused(assignment: str) -> None:
    with pytest.raises(UsageError, match=r"expected section\.key=value"):
        parse_assignments([assignment])


def test_values_are_toml_and_otherwise_words() -> None:
    assert parse_assignments(["a.i=3", "a.f=1e-3", "a.l=[1, 2]", "a.b=true", "a.w=cosine", 'a.q="3"']) == {
        "a": {"i": 3, "f": 1e-3, "l": [1, 2], "b": True, "w": "cosine", "q": "3"}
    }


def test_an_experiment_file_says_the_same_as_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "experiment.toml"
    path.write_text(
        'models = ["gru"]\ntasks = ["echo"]\nseeds = [1]\nmatch = "state"\n[budget]\nsteps = 3\n[echo]\nlength = 4\n'
    )
    from_file = _plan(**read_experiment(path))
    typed = _plan(
        models=["gru"],
        tasks=["echo"],
        seeds=[1],
        match="state",
        overrides=parse_assignments(["budget.steps=3", "echo.length=4"]),
    )
    assert from_file == typed


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('model = ["gru"]', "No key is called 'model'"),
        ("models = [", "is not valid TOML"),
        (None, "cannot be read"),
    ],
)
def test_an_experiment_file_that_does_not_work_is_named(tmp_path: Path, content: str | None, said: str) -> None:
    path = tmp_path / "experiment.toml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UsageError, match=r"experiment\.toml") as raised:
        read_experiment(path)
    assert said in str(raised.value)


def test_a_file_names_its_plugins_from_where_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "experiment.toml"
    path.write_text('plugins = ["mine.py"]')
    assert read_experiment(path)["plugins"] == [str(tmp_path / "mine.py")]
