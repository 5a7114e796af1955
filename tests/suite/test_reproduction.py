"""Published tables: the files say what they mean, become cells like any run, and come back as verdicts."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from reports import build_report, render
from suite.errors import UsageError
from suite.plan import parse_assignments, read_experiment
from suite.registry import Registry
from suite.reproduction.experiment import Experiment, experiment_names, load_experiment, read_experiment_file
from suite.reproduction.planning import ReproductionRequest, plan_reproduction
from suite.spec import Cell, Comparison, Reproduction, RunSpec
from suite.store import Store
from tests.suite.builders import cell, record, suite, suite_command

TINY = """
title = "Induction heads, tiny"
claim = "One of them solves it."
source = "nobody 2026"
task = "induction_heads"
columns = ["short", "long", "longest"]
choices = ["Everything was left open."]

[paper]
columns = [64, 128, 4096]

[quick]
settings = { length = 8 }
shell = { width = 8, num_layers = 1 }
budget = { steps = 4, evaluate_every = 2, batch_size = 4, test_batches = 1, validation_batches = 1 }
columns = [8, 16]

[[rows]]
label = "the solver"
model = "gru"
published = [100, 99.5, "out of memory"]

[[rows]]
label = "the other"
model = "plain:lstm"
settings = { conv_width = 2 }
published = [100, 7.1, "not reported"]

[[orderings]]
better = "the solver"
worse = ["the other"]
columns = ["long"]
"""


@cache
def _registry() -> Registry:
    return Registry([])


def _plan(experiment: Experiment | str, **asked: Any) -> RunSpec:
    name = experiment if isinstance(experiment, str) else "mine.toml"
    request = ReproductionRequest.parse({"experiment": name, "device": "cpu", **asked}, where="reproduce")
    loaded = load_experiment(experiment) if isinstance(experiment, str) else experiment
    return plan_reproduction(loaded, request, _registry())


def _reproduction(spec: RunSpec) -> Reproduction:
    assert spec.reproduction is not None
    return spec.reproduction


def _cells_of(spec: RunSpec, row: str) -> list[Cell]:
    ids = {cell for entry in _entries(spec, row) for cell in entry.cells}
    return [cell for cell in spec.cells if cell.id in ids]


def _entries(spec: RunSpec, row: str) -> list[Comparison]:
    return [entry for entry in _reproduction(spec).comparisons if entry.row == row]


def _settings_that_differ(spec: RunSpec) -> set[str]:
    return {difference.setting for difference in _reproduction(spec).differences}


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


SHIPPED = [(name, size) for name in experiment_names() for size in load_experiment(name).sizes]


@pytest.mark.parametrize(("name", "size"), SHIPPED)
def test_every_shipped_table_becomes_cells_and_every_cell_answers_an_entry(name: str, size: str) -> None:
    experiment, spec = load_experiment(name), _plan(name, preset=size)
    answering = {cell for entry in _reproduction(spec).comparisons for cell in entry.cells}
    assert answering == {cell.id for cell in spec.cells}
    assert len(_reproduction(spec).comparisons) == len(experiment.rows) * len(experiment.columns)
    assert all(_cells_of(spec, label) for label in experiment.labels)


@pytest.mark.parametrize("name", experiment_names())
def test_the_papers_size_departs_in_nothing_and_every_other_in_something(name: str) -> None:
    for size in load_experiment(name).sizes:
        spec = _plan(name, preset=size)
        is_reduced = {entry.is_reduced for entry in _reproduction(spec).comparisons if entry.cells}
        assert is_reduced == {size != "paper"}
        assert bool(_settings_that_differ(spec)) == (size != "paper")


@pytest.mark.parametrize(("name", "size"), SHIPPED)
def test_every_row_comes_once_before_any_comes_again(name: str, size: str) -> None:
    spec = _plan(name, preset=size, seeds=[3, 1])
    first_pass = [cell.seed for cell in spec.cells]
    assert first_pass == sorted(first_pass, key=[3, 1].index)
    rates = {cell.learning_rate for cell in spec.cells}
    per_rate = Counter(cell.seed for cell in spec.cells)[3] // len(rates)
    labels = load_experiment(name).labels
    begun = {cell.id for cell in spec.cells[:per_rate]}
    assert all(begun & {cell for entry in _entries(spec, label) for cell in entry.cells} for label in labels)


def test_table_2_is_planned_as_published() -> None:
    spec = _plan("mamba/table2", preset="paper")
    budgets = {label: {cell.budget.steps for cell in _cells_of(spec, label) if cell.budget} for label in _labels(spec)}
    assert budgets == {
        "MHA-Abs": {25 * 8192}, "MHA-RoPE": {50 * 8192}, "MHA-xPos": {50 * 8192},
        "H3": {10 * 8192}, "Hyena": {10 * 8192}, "Mamba": {25 * 8192},
    }  # fmt: skip
    widths = {label: {cell.shell.width for cell in _cells_of(spec, label)} for label in _labels(spec)}
    assert widths == {label: {64 if label == "Mamba" else 128} for label in _labels(spec)}
    for planned in spec.cells:
        assert planned.task.settings["length"] == 256
        assert planned.budget is not None
        assert (planned.budget.batch_size, planned.budget.schedule, planned.budget.weight_decay) == (8, "constant", 0)
    assert [cell.learning_rate for cell in _cells_of(spec, "Mamba")] == [1e-3, 2e-4]
    assert [cell.learning_rate for cell in _cells_of(spec, "H3")] == [2e-4, 1e-3]
    assert [entry.test_length for entry in _entries(spec, "Mamba")] == [2**power for power in range(6, 21)]


def _labels(spec: RunSpec) -> list[str]:
    return list(dict.fromkeys(entry.row for entry in _reproduction(spec).comparisons))


def test_a_test_beyond_the_budget_is_not_promised() -> None:
    spec = _plan("mamba/table2", preset="paper")
    tried = [entry.test_length for entry in _entries(spec, "MHA-RoPE") if entry.cells]
    assert max(length for length in tried if length) == 2**15
    assert "columns" not in _settings_that_differ(spec)


def test_how_much_was_reduced_is_found_not_typed() -> None:
    spec = _plan("mamba/table2", preset="paper", overrides=parse_assignments(["budget.steps=2048"]))
    (steps,) = _reproduction(spec).differences
    assert steps.model_dump() == {
        "setting": "budget.steps", "published": "81,920, 204,800, 409,600", "here": "2,048", "factor": "÷ 40 to ÷ 200",
    }  # fmt: skip
    assert all(entry.is_reduced for entry in _reproduction(spec).comparisons if entry.cells)


def test_a_large_factor_is_written_out() -> None:
    spec = _plan("mamba/table1", preset="paper", overrides=parse_assignments(["budget.steps=60"]))
    (steps,) = _reproduction(spec).differences
    assert steps.factor == "÷ 6,670"


def test_settings_of_a_model_that_no_chosen_row_has_are_refused() -> None:
    overrides = parse_assignments(["mamba:s6.state_size=8"])
    with pytest.raises(UsageError, match=r"'mamba:s6' has settings but is in none .* Add one of Mamba with S6"):
        _plan("mamba/table1", rows=["minGRU"], overrides=overrides)
    assert _plan("mamba/table1", rows=["minGRU", "Mamba with S6"], overrides=overrides).overrides == overrides


def test_what_is_tested_and_how_often_does_not_make_a_result_smaller() -> None:
    overrides = parse_assignments(["budget.test_batches=2", "preset.learning_rates=[1e-3]"])
    spec = _plan("mamba/table2", preset="paper", overrides=overrides, seeds=[0, 1])
    assert _settings_that_differ(spec) == {"budget.test_batches", "learning rates", "seeds"}
    assert not any(entry.is_reduced for entry in _reproduction(spec).comparisons)


def test_some_rows_can_be_run_alone_and_the_claims_between_them_stay() -> None:
    spec = _plan("mamba/table2", rows=["Mamba", "H3"])
    assert _labels(spec) == ["H3", "Mamba"]
    assert {(ordering.better, ordering.worse) for ordering in _reproduction(spec).orderings} == {("Mamba", "H3")}
    whole = {cell.id for cell in _plan("mamba/table2").cells}
    assert {cell.id for cell in spec.cells} < whole, "the same cells, so that the rest can follow"
    assert "rows" in _settings_that_differ(spec)


def test_columns_that_are_tests_of_one_training_share_its_cells(tiny: Path) -> None:
    spec = _plan(read_experiment_file(tiny), seeds=[0])
    assert len(spec.cells) == 2
    short, long, longest = _entries(spec, "the solver")
    assert short.cells == long.cells
    assert (short.test_length, long.test_length, longest.cells) == (8, 16, ())


def test_columns_with_settings_of_their_own_are_trained_apart(tiny: Path) -> None:
    experiment = read_experiment_file(tiny)
    columns = {"short": {"settings": {"length": 8}}, "longest": {"settings": {"length": 32}, "shell": {"width": 16}}}
    changed = experiment.model_dump(mode="json") | {"quick": {"columns": columns}}
    spec = _plan(Experiment.parse(changed, where="experiment"), seeds=[0])
    short, long, longest = _entries(spec, "the solver")
    assert not long.cells
    assert {short.cells, longest.cells} == {(cell.id,) for cell in _cells_of(spec, "the solver")}
    assert sorted(cell.shell.width for cell in _cells_of(spec, "the solver")) == [16, 32]


def test_what_a_run_is_compared_with_survives_the_disk(tmp_path: Path) -> None:
    spec = _plan("mamba/table1")
    store = Store(tmp_path)
    with store.writing():
        store.write_spec(spec)
    assert store.spec() == spec


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("title =", "titel =", "No setting is called 'titel' in experiment. Did you mean 'title'?"),
        (
            "[quick]\nsettings",
            "[quick]\nsetings",
            "No setting is called 'setings' in experiment.quick. Did",
        ),
        (
            'model = "gru"',
            'modell = "mingru"',
            "No setting is called 'modell' in experiment.rows.0. Did",
        ),
        ("better =", "beter =", "Did you mean 'better'?"),
        (
            'worse = ["the other"]',
            'worse = ["the others"]',
            "No row is called 'the others' in an ordering. Did",
        ),
        ('columns = ["long"]', 'columns = ["lang"]', "No column is called 'lang' in an ordering. Did you mean 'long'?"),
        ("columns = [8, 16]", "columns = [8, 16, 32, 64]", "quick has 4 columns, but 3 are published"),
        ("columns = [64, 128, 4096]", "columns = [64]", "paper has nothing for the published columns long, longest"),
        ("columns = [8, 16]", "columns = { shrt = 8 }", "No column is called 'shrt' in quick. Did you mean 'short'?"),
        ("columns = [8, 16]", "columns = [{ lenth = 8 }]", "No setting is called 'lenth'"),
        ("[100, 99.5,", "[99.5,", "the row 'the solver' has 2 published entries for 3 columns"),
        ("[100, 99.5,", "[100, 995,", "published"),
        ('"not reported"', '"not reproted"', "published"),
        ('label = "the other"', 'label = "the solver"', "two rows have the same name"),
        ("[paper]", "[papers]", "No setting is called 'papers' in experiment. Did you mean 'paper'?"),
        ("title", "= title", "is not valid TOML"),
    ],
)
def test_a_wrong_file_says_what_is_wrong_with_it(tiny: Path, old: str, new: str, said: str) -> None:
    assert old in TINY
    tiny.write_text(TINY.replace(old, new, 1))
    with pytest.raises(UsageError) as error:
        read_experiment_file(tiny)
    assert str(tiny) in str(error.value)
    assert said in str(error.value)


def test_a_file_of_the_other_command_is_told_apart(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Run it with `suite reproduce"):
        read_experiment(tiny)
    other = tmp_path / "other.toml"
    other.write_text('models = ["mamba"]')
    with pytest.raises(UsageError, match="Run it with `suite run"):
        read_experiment_file(other)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"preset": "standard"}, "No preset is called 'standard' for this experiment"),
        ({"rows": ["the sovler"]}, "No row is called 'the sovler' in this experiment. Did you mean 'the solver'?"),
        ({"rows": []}, "No rows were given"),
        ({"overrides": {"mamba": {"state_size": 8}}}, "No section is called 'mamba' in this experiment"),
        ({"overrides": {"preset": {"max_extensions": 2}}}, "No setting is called 'max_extensions' in preset of a repr"),
        ({"overrides": {"plain:lstm": {"conv_with": 8}}}, "Did you mean 'conv_width'?"),
        ({"overrides": {"budget": {"stops": 8}}}, "Did you mean 'steps'?"),
        ({"seeds": [-1]}, "reproduce.seeds.0 = -1"),
    ],
)
def test_what_cannot_be_asked_of_a_table_is_said(tiny: Path, asked: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as error:
        _plan(read_experiment_file(tiny), **asked)
    assert said in str(error.value)


def test_a_killed_reproduction_goes_on_and_ends_in_verdicts(tiny: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "results", tmp_path / "log"
    arguments = ["reproduce", tiny, "--device", "cpu", "--seeds", "0,1,2", "--jobs", "2", "--out", out]
    with log.open("w") as output:
        process = subprocess.Popen(suite_command(*arguments), stdout=output, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 60
        while "[1/6]" not in log.read_text() and process.poll() is None:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert 0 < len(Store(out).records()) < 6
    partial = render(build_report(Store(out).records(), Store(out).spec()), "text")
    assert re.search(r"\d cells? of 6 ha\w+ not been run yet", partial), partial
    done = suite(*arguments)
    assert done.returncode == 0, done.stderr
    assert "already done" in done.stdout
    assert Counter(record.cell_id for record in Store(out).records()) == Counter(
        cell.id for cell in _plan(read_experiment_file(tiny), seeds=[0, 1, 2]).cells
    )
    report = build_report(Store(out).records(), Store(out).spec())
    for written_as in ("text", "markdown", "csv", "latex", "html"):
        assert "the solver" in render(report, written_as)
    assert "Paper, ours, verdict" in done.stdout
    assert f"suite reproduce {tiny} --preset quick" in render(report, "text")


def test_a_table_can_be_planned_and_stores_nothing(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "results"
    done = suite("reproduce", tiny, "--device", "cpu", "--seeds", "0,1,2", "--jobs", "2", "--out", out, "--plan")
    assert done.returncode == 0, done.stderr
    assert "the solver" in done.stdout
    assert "6 cells on cpu in fp32, 2 accuracy cells at a time." in done.stdout
    assert re.search(r"About .+ in all", done.stdout)
    assert not out.exists()


def test_results_of_another_protocol_are_not_mixed_in(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "results"
    store = Store(out)
    with store.writing():
        store.add(record(cell(protocol=1)))
    done = suite("reproduce", tiny, "--device", "cpu", "--out", out)
    assert done.returncode == 2
    assert f"{out} holds results of protocol version 1" in done.stderr
    assert len(store.records()) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["mamba/table3"], "No experiment is called 'mamba/table3' (a file of your own ends in .toml). Did you mean"),
        (["gone.toml"], "Error: The experiment file gone.toml cannot be read"),
        (["mamba/table2", "--rows", "Mamab"], "No row is called 'Mamab' in this experiment. Did you mean 'Mamba'?"),
        (["mamba/table2", "--preset", "huge"], "No preset is called 'huge'"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(arguments: list[str], said: str) -> None:
    done = suite("reproduce", *arguments)
    assert done.returncode == 2, done.stdout
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_the_tables_are_listed_without_torch() -> None:
    code = "import sys; sys.argv = ['suite', 'reproduce']\nfrom suite.cli import app\ntry: app()\n"
    code += "except SystemExit: print('torch' in sys.modules)"
    said = subprocess.run([*suite_command()[:1], "-c", code], capture_output=True, text=True, check=True).stdout
    assert all(name in said for name in experiment_names())
    assert said.strip().endswith("False")
