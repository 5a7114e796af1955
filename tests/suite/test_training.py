"""Training, selection and scoring mean what the protocol says."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from kernels.dispatch import ImplementationUnavailable
from models.shell import parameter_groups
from suite.accuracy import measure_accuracy
from suite.errors import UsageError
from suite.evaluation import _SliceTally, _Tally, evaluate
from suite.plugin import IGNORED, Batch, Split, keyed_generator
from suite.progress import Progress
from suite.records import Accuracy, Measurement
from suite.registry import Registry
from suite.spec import Budget, Cell, Choice, ShellSettings
from suite.trainee import Trainee
from suite.trial import run_cell
from tests.suite.builders import FAULTY, cell

REGISTRY = Registry([FAULTY])


def _unheard(progress: Progress) -> None:
    """Nobody listens."""


def _copying(model: str = "gru", **changes: Any) -> Cell:
    """A small cell of a real model on a real task."""
    model_class, task_class = REGISTRY.model(model), REGISTRY.task("selective_copying")
    values: dict[str, Any] = {
        "model": model_class().choice(),
        "task": task_class(task_class.Options(length=12, num_tokens=2, vocab_size=6)).choice(),
        "shell": ShellSettings(width=16, num_layers=1),
        "budget": Budget(steps=6, batch_size=4, evaluate_every=2, validation_batches=2, test_batches=2),
    }
    return cell(**(values | changes))


def _run(of: Cell) -> Measurement:
    return run_cell(of, REGISTRY, _unheard)


def _accuracy(of: Cell) -> Accuracy:
    accuracy = _run(of).accuracy
    assert accuracy is not None
    return accuracy


def _without_seconds(accuracy: Accuracy) -> dict[str, Any]:
    content = accuracy.model_dump(exclude={"train_seconds"})
    for point in content["curve"]:
        del point["seconds"]
    return content


@pytest.mark.parametrize("model", ["mamba", "gru"])
def test_the_same_cell_twice_gives_the_same_bits(model: str) -> None:
    first, second = _accuracy(_copying(model)), _accuracy(_copying(model))
    assert _without_seconds(first) == _without_seconds(second)


def test_another_seed_gives_other_weights_and_other_data() -> None:
    first, second = _accuracy(_copying(seed=0)), _accuracy(_copying(seed=1))
    assert first.data_sha256 != second.data_sha256
    assert first.curve[0].train_loss != second.curve[0].train_loss


def test_every_model_sees_the_same_data_at_every_learning_rate() -> None:
    digests = {
        _accuracy(_copying(model, learning_rate=learning_rate)).data_sha256
        for model in ("mamba", "s4", "transformer", "lstm", "gru")
        for learning_rate in (1e-3, 1e-2)
    }
    assert len(digests) == 1


def test_validation_selects_the_weights_that_are_tested() -> None:
    trainee = Trainee(_copying(learning_rate=0.3), REGISTRY)  # so high that the last step is not the best
    accuracy = measure_accuracy(trainee, _unheard)
    best = max(accuracy.curve, key=lambda point: (point.validation.token_accuracy, -point.validation.loss))
    assert accuracy.selected_step == best.step
    again = evaluate(trainee, "validation", trainee.task.length, 8, hashed=False, listener=_unheard)
    assert again == best.validation


def test_training_ends_early_by_the_same_rule_for_all() -> None:
    budget = Budget(steps=100, batch_size=4, evaluate_every=2, validation_batches=1, test_batches=1, stop_at=0.01)
    accuracy = _accuracy(_copying(budget=budget, learning_rate=1e-2))
    assert accuracy.stopped_early
    assert accuracy.curve[-1].validation.token_accuracy >= 0.01
    assert all(point.validation.token_accuracy < 0.01 for point in accuracy.curve[:-1])
    assert accuracy.steps_run == accuracy.curve[-1].step


def test_a_last_step_between_two_validations_is_validated_too() -> None:
    budget = Budget(steps=5, batch_size=4, evaluate_every=2, validation_batches=1, test_batches=1)
    assert [point.step for point in _accuracy(_copying(budget=budget)).curve] == [2, 4, 5]


def test_bfloat16_runs_with_float32_weights() -> None:
    trainee = Trainee(_copying("mamba", precision="bf16"), REGISTRY)
    accuracy = measure_accuracy(trainee, _unheard)
    assert all(parameter.dtype == torch.float32 for parameter in trainee.shell.parameters())
    assert accuracy.test[0].loss != _accuracy(_copying("mamba")).test[0].loss


@pytest.mark.parametrize("clip", [0.01, 100.0])
def test_a_step_is_that_of_adamw_after_clipping(clip: float) -> None:
    of = _copying(learning_rate=0.1, budget=Budget(batch_size=4, gradient_clip=clip, weight_decay=0.1))
    ours, plain = Trainee(of, REGISTRY), Trainee(of, REGISTRY)
    optimizer = torch.optim.AdamW(parameter_groups(plain.shell, 0.1, 0.1))
    for step in range(2):
        batch = ours.batch("train", step, 4, ours.task.length, hashed=False)
        ours.training_step(*batch)
        optimizer.zero_grad()
        torch.autograd.backward(plain.shell.loss(*batch))
        torch.nn.utils.clip_grad_norm_(plain.shell.parameters(), clip)
        optimizer.step()
    for mine, expected in zip(ours.shell.parameters(), plain.shell.parameters(), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5)


def test_the_learning_rate_warms_up_and_then_follows_a_cosine() -> None:
    budget = Budget(steps=110, warmup_steps=10, schedule="cosine", batch_size=4)
    trainee = Trainee(_copying("s4", budget=budget, learning_rate=1e-2), REGISTRY)
    groups = trainee._optimizer.param_groups
    peaks = [group["lr"] for group in groups]
    assert {1e-2, 1e-3} <= set(peaks), "S4 trains A and Delta at a rate of their own"
    for step, factor in ((0, 0.1), (9, 1.0), (10, 1.0), (60, 0.55), (109, 0.1)):
        trainee.set_learning_rate(step)
        for group, peak in zip(groups, peaks, strict=True):
            assert group["lr"] == pytest.approx(peak * factor, rel=0.01)


def test_scores_are_those_of_their_definition() -> None:
    trainee = Trainee(_copying(), REGISTRY)
    length, num_sequences = 14, 10
    evaluation = evaluate(trainee, "test", length, num_sequences, hashed=False, listener=_unheard)
    batches = [
        trainee.task.sample(
            keyed_generator(trainee.cell.task, 0, "test", step), split="test", batch_size=size, length=length
        )
        for step, size in enumerate((4, 4, 2))
    ]
    with torch.no_grad():
        logits = torch.cat([trainee.logits(torch.from_numpy(batch.inputs)) for batch in batches]).double()
    targets = torch.cat([torch.from_numpy(batch.targets) for batch in batches])
    is_scored = targets != IGNORED
    assert evaluation.num_sequences == num_sequences
    assert evaluation.num_scored == int(is_scored.sum())
    assert evaluation.loss == pytest.approx(float(functional.cross_entropy(logits[is_scored], targets[is_scored])))
    is_right = logits.argmax(-1) == targets
    assert evaluation.token_accuracy == pytest.approx(float(is_right[is_scored].double().mean()))
    by_sequence = (is_right | ~is_scored).all(1).double().mean()
    assert evaluation.sequence_accuracy == pytest.approx(float(by_sequence))


@given(lead=st.floats(-200.0, 80.0), num_others=st.integers(1, 20))
def test_the_loss_of_a_sure_model_is_small_and_not_zero(lead: float, num_others: int) -> None:
    logits = torch.zeros(1, 2, num_others + 1)
    logits[..., 0] = lead
    tally = _Tally(2, torch.device("cpu"), is_text=False)
    tally.add(logits, torch.tensor([[0, IGNORED]]))
    assert tally.result().loss == pytest.approx(math.log1p(num_others * math.exp(-lead)), rel=1e-5)


def test_a_slice_is_scored_as_if_it_were_a_test_of_its_own() -> None:
    task_class = REGISTRY.task("state_tracking")
    task = task_class(task_class.Options(length=4, test_lengths=(4, 12)))
    trainee = Trainee(_copying(task=task.choice()), REGISTRY)
    evaluation = evaluate(trainee, "test", 12, 10, hashed=False, listener=_unheard)
    size = 4 * 4 // 12
    batches = [
        task.sample(keyed_generator(trainee.cell.task, 0, "test", step), split="test", batch_size=size, length=12)
        for step in range(10)
    ]
    with torch.no_grad():
        logits = torch.cat([trainee.logits(torch.from_numpy(batch.inputs)) for batch in batches])
    is_right = logits.argmax(-1).numpy() == np.concatenate([batch.targets for batch in batches])
    assert evaluation.slices is not None
    assert [score.name for score in evaluation.slices] == ["positions 1–4", "positions 5–8", "positions from 9"]
    for score, part in zip(evaluation.slices, np.split(is_right, [4, 8], axis=1), strict=True):
        assert (score.num_sequences, score.num_scored) == (10, 40)
        assert score.token_accuracy == pytest.approx(part.mean())
        assert score.sequence_accuracy == pytest.approx(part.all(axis=1).mean())


def test_slices_of_whole_sequences_leave_out_those_that_nothing_fell_into() -> None:
    tally = _SliceTally(("few", "many", "none"), torch.device("cpu"))
    is_scored = torch.tensor([[True, False], [True, True], [True, True]])
    is_right = torch.tensor([[True, False], [True, False], [True, True]])
    for rows in (slice(0, 2), slice(2, 3)):
        tally.add(is_right[rows], is_scored[rows], torch.tensor([[0, 0], [1, 1], [1, 1]])[rows])
    few, many = tally.result()
    assert (few.name, few.num_sequences, few.token_accuracy, few.sequence_accuracy) == ("few", 1, 1.0, 1.0)
    assert (many.name, many.num_sequences, many.token_accuracy, many.sequence_accuracy) == ("many", 2, 0.75, 0.5)


def test_only_the_test_is_scored_by_slice() -> None:
    task = REGISTRY.task("state_tracking")
    accuracy = _accuracy(_copying(task=task(task.Options(length=8, test_lengths=(8,))).choice()))
    assert [len(evaluation.slices or []) for evaluation in accuracy.test] == [2]
    assert all(point.validation.slices is None for point in accuracy.curve)


def test_the_loss_by_position_covers_every_position_once() -> None:
    task = REGISTRY.task("long_range_lm")
    budget = Budget(steps=1, batch_size=2, evaluate_every=1, validation_batches=1, test_batches=1)
    of = _copying(task=task(task.Options.parse({"length": 50}, where="task")).choice(), budget=budget)
    evaluation = evaluate(Trainee(of, REGISTRY), "test", 50, 4, hashed=False, listener=_unheard)
    buckets = evaluation.loss_by_position
    assert buckets is not None
    assert [position for first, last, _ in buckets for position in range(first, last + 1)] == list(range(50))
    mean = sum((last - first + 1) * loss for first, last, loss in buckets) / 50
    assert mean == pytest.approx(evaluation.loss)
    assert evaluation.bits_per_byte == pytest.approx(evaluation.loss / math.log(2))


def test_a_test_length_that_does_not_fit_is_named_and_the_others_are_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    task = REGISTRY.task("selective_copying")
    options = task.Options(length=12, num_tokens=2, vocab_size=6, test_lengths=(12, 24, 48, 96))
    original = task.sample

    def sample(self: Any, rng: np.random.Generator, *, split: Split, batch_size: int, length: int) -> Batch:
        if length == 26:
            raise UsageError("too long for the table")
        if length == 50:
            raise MemoryError
        return original(self, rng, split=split, batch_size=batch_size, length=length)

    monkeypatch.setattr(task, "sample", sample)
    accuracy = _accuracy(_copying(task=task(options).choice()))
    assert [each.length for each in accuracy.test] == [14, 98]
    assert accuracy.untested == {"26": "too long for the table", "50": "out of memory"}


def test_no_longer_test_is_made_than_the_budget_allows_and_training_does_not_notice() -> None:
    task = REGISTRY.task("selective_copying")
    choice = task(task.Options(length=12, num_tokens=2, vocab_size=6, test_lengths=(12, 24, 48))).choice()
    whole = _copying(task=choice)
    assert whole.budget is not None
    short = whole.model_copy(update={"budget": whole.budget.model_copy(update={"longest_test": 26})})
    seen, unbounded = _accuracy(short), _accuracy(whole)
    assert seen.untested == {"50": "longer than budget.longest_test = 26"}
    assert seen.test == unbounded.test[:2]
    assert [point.validation for point in seen.curve] == [point.validation for point in unbounded.curve]


@pytest.mark.parametrize("model", ["mamba", "s4", "transformer", "lstm", "gru"])
def test_a_cost_cell_measures_all_three_activities(model: str) -> None:
    of = _copying(model, kind="cost", budget=None, seed=None, learning_rate=None, length=14, batch_size=3)
    measurement = _run(of)
    cost = measurement.cost
    assert cost is not None
    assert cost.training.tokens_per_call == cost.inference.tokens_per_call == 42
    assert cost.generation.tokens_per_call == 3
    assert cost.generation_context == 14
    assert cost.state_bytes > 0
    for timing in (cost.training, cost.inference, cost.generation):
        assert len(timing.samples_seconds) >= 5
        assert all(seconds > 0 for seconds in timing.samples_seconds)
        assert timing.first_call_seconds > 0
    assert measurement.implementations, "the record must say what ran"


def test_generation_is_timed_after_the_whole_length() -> None:
    of = _copying("mamba", kind="cost", budget=None, seed=None, learning_rate=None, length=1100, batch_size=1)
    cost = _run(of).cost
    assert cost is not None
    assert cost.generation_context == 1100
    assert len(cost.generation.samples_seconds) == 30


def test_an_implementation_that_is_not_there_is_an_error_and_not_another_one() -> None:
    settings = REGISTRY.model("mamba")().choice().settings | {"implementation": "cuda"}
    if torch.cuda.is_available():
        pytest.skip("this machine has the GPU that the test wants missing")
    with pytest.raises((ImplementationUnavailable, ValueError), match="cuda"):
        _run(_copying().model_copy(update={"model": Choice(name="mamba", settings=settings)}))
