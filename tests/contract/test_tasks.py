"""Every registered task keeps the contract, and the contract catches tasks that do not."""

from __future__ import annotations

import itertools
import random
import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from suite import IGNORED, Batch, Preset, Settings, Split, Task
from suite.contracts import task as contract
from suite.contracts.task import TASK_CHECKS, TaskCheck
from suite.errors import ContractViolation, UsageError
from suite.registry import Registry

EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "examples" / "reverse_copy.py"
REGISTRY = Registry([EXAMPLE])
CONFIGURATIONS = [
    (name, preset)
    for name in REGISTRY.task_names()
    for preset in ("quick", "standard")
    if preset in REGISTRY.task(name).presets
]


@pytest.mark.parametrize("check", TASK_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize(("name", "preset"), CONFIGURATIONS)
def test_every_registered_task_keeps_the_contract(name: str, preset: str, check: TaskCheck) -> None:
    kind = REGISTRY.task(name)
    check(kind(kind.Options.parse(kind.presets[preset].settings, where=name)))


@pytest.mark.parametrize("name", REGISTRY.task_names())
def test_a_task_that_a_seed_solves_or_does_not_has_five_seeds_or_the_published_one(name: str) -> None:
    for preset in REGISTRY.task(name).presets.values():
        if preset.budget.stop_at is not None:
            assert preset.num_seeds in (1, 5)


def test_the_four_tasks_are_there() -> None:
    names = {"induction_heads", "long_range_lm", "reverse_copy", "selective_copying"}
    assert names <= set(REGISTRY.task_names())


class Recall(Task):
    """Say the first token at the end: keeps every promise, and is broken in many ways below."""

    name = "recall"

    class Options(Settings):
        length: int = 10

    presets: ClassVar = {"quick": Preset(cost_lengths=(10,))}

    @property
    def vocab_size(self) -> int:
        return 8

    @property
    def length(self) -> int:
        return int(self.options.length)

    def sample(self, rng: np.random.Generator, *, split: Split, batch_size: int, length: int) -> Batch:
        inputs = rng.integers(0, 8, (batch_size, length))
        targets = np.full_like(inputs, IGNORED)
        targets[:, -1] = inputs[:, 0]
        return Batch(inputs, targets)

    def oracle(self, batch: Batch) -> Any:
        return np.repeat(batch.inputs[:, :1], batch.inputs.shape[1], axis=1)

    def baseline(self) -> float:
        return 1 / 8


@pytest.mark.parametrize("check", TASK_CHECKS, ids=lambda check: check.__name__)
def test_a_good_task_passes(check: TaskCheck) -> None:
    check(Recall())


def test_good_slices_pass() -> None:
    contract.its_slices_are_named(SlicedByRow())


class BadName(Recall):
    name = "Recall it!"


class NoDocstring(Recall):
    __doc__ = None


class UnknownMetric(Recall):
    """Says how it is scored in words that nobody knows."""

    metric = "accuracy"  # type: ignore[assignment]


class NoVocabulary(Recall):
    vocab_size = 0  # type: ignore[assignment]


class NoTestLengths(Recall):
    test_lengths = ()


class NoQuickPreset(Recall):
    presets: ClassVar = {"standard": Preset()}


class PresetWithATypo(Recall):
    presets: ClassVar = {"quick": Preset(settings={"lenght": 20})}


class UncostableLength(Recall):
    presets: ClassVar = {"quick": Preset(cost_lengths=(1,))}

    def sample(self, rng: np.random.Generator, *, split: Split, batch_size: int, length: int) -> Batch:
        if length < 2:
            raise ValueError("too short to recall anything")
        return super().sample(rng, split=split, batch_size=batch_size, length=length)


class ForgetfulSettings(Recall):
    class Options(Settings):
        length: int = 10
        where: Any = Path("data")


class Floats(Recall):
    def sample(self, rng: np.random.Generator, **request: Any) -> Batch:
        batch = super().sample(rng, **request)
        return Batch(batch.inputs.astype(np.float64), batch.targets)  # type: ignore[arg-type]


class DeafToLength(Recall):
    test_lengths = (10, 20)

    def sample(self, rng: np.random.Generator, *, length: int, **request: Any) -> Batch:
        return super().sample(rng, length=10, **request)


class OutOfRange(Recall):
    def sample(self, rng: np.random.Generator, **request: Any) -> Batch:
        batch = super().sample(rng, **request)
        return Batch(batch.inputs + 1, batch.targets)


class OutOfRangeTargets(Recall):
    def sample(self, rng: np.random.Generator, **request: Any) -> Batch:
        batch = super().sample(rng, **request)
        return Batch(batch.inputs, batch.targets - 1)


class NotABatch(Recall):
    def sample(self, rng: np.random.Generator, **request: Any) -> Any:
        batch = super().sample(rng, **request)
        return batch.inputs, batch.targets


class Crashing(Recall):
    def sample(self, rng: np.random.Generator, *, split: Split, **request: Any) -> Batch:
        if split == "test":
            raise IndexError("the test set is empty")
        return super().sample(rng, split=split, **request)


class NothingScored(Recall):
    def sample(self, rng: np.random.Generator, **request: Any) -> Batch:
        batch = super().sample(rng, **request)
        return Batch(batch.inputs, np.full_like(batch.targets, IGNORED))


class SlicedByRow(Recall):
    """Keeps every promise: the first half of a batch lies in one slice, the rest in the other."""

    slices = ("first", "second")

    def sample(self, rng: np.random.Generator, **request: Any) -> Batch:
        batch = super().sample(rng, **request)
        rows = np.arange(len(batch.inputs))[:, np.newaxis]
        return Batch(batch.inputs, batch.targets, rows * 2 // len(rows))


class TwinSlices(SlicedByRow):
    slices = ("first", "first")


class NamelessSlices(SlicedByRow):
    slices = ()


class UnfilledSlices(Recall):
    slices = ("first", "second")


class FloatingSlices(SlicedByRow):
    def sample(self, rng: np.random.Generator, **request: Any) -> Batch:
        batch = super().sample(rng, **request)
        return Batch(batch.inputs, batch.targets, np.ones(batch.inputs.shape))  # type: ignore[arg-type]


class FlatSlices(SlicedByRow):
    def sample(self, rng: np.random.Generator, **request: Any) -> Batch:
        batch = super().sample(rng, **request)
        return Batch(batch.inputs, batch.targets, np.zeros(len(batch.inputs), dtype=np.int64))


class OneSliceTooMany(SlicedByRow):
    slices = ("first",)


class OwnEntropy(Recall):
    def sample(self, rng: np.random.Generator, **request: Any) -> Batch:
        return super().sample(np.random.default_rng(), **request)


class RemembersEarlierBatches(Recall):
    def __init__(self, options: Settings | None = None) -> None:
        super().__init__(options)
        self.calls = itertools.count()

    def sample(self, rng: np.random.Generator, **request: Any) -> Batch:
        batch = super().sample(rng, **request)
        batch.inputs[:, 1] = next(self.calls) % 8
        return batch


class SameForEveryStep(Recall):
    def sample(self, rng: np.random.Generator, *, split: Split, **request: Any) -> Batch:
        return super().sample(np.random.default_rng(0), split=split, **request)


class UsesNumpysGlobalGenerator(Recall):
    def sample(self, rng: np.random.Generator, **request: Any) -> Batch:
        return super().sample(np.random.default_rng(np.random.randint(1000)), **request)


class UsesPythonsGlobalGenerator(Recall):
    def sample(self, rng: np.random.Generator, **request: Any) -> Batch:
        return super().sample(np.random.default_rng(random.randrange(1000)), **request)


class SeedsTheGlobalGenerator(Recall):
    def sample(self, rng: np.random.Generator, **request: Any) -> Batch:
        np.random.seed(0)
        return super().sample(rng, **request)


class WrongOracle(Recall):
    def oracle(self, batch: Batch) -> Any:
        return np.repeat(batch.inputs[:, 1:2], batch.inputs.shape[1], axis=1)


class MisshapenOracle(Recall):
    def oracle(self, batch: Batch) -> Any:
        return batch.inputs[:, 0]


class CheatingOracle(Recall):
    def oracle(self, batch: Batch) -> Any:
        return batch.targets.copy()


class Unshifted(Recall):
    def sample(self, rng: np.random.Generator, **request: Any) -> Batch:
        inputs = super().sample(rng, **request).inputs
        return Batch(inputs, inputs.copy())


class ModestBaseline(Recall):
    def baseline(self) -> float:
        return 0.01


class EndlessBaseline(Recall):
    def baseline(self) -> float:
        return float("nan")


class LopsidedAnswers(Recall):
    """Guessing token 0 is right in half of the cases, which the baseline does not say."""

    def sample(self, rng: np.random.Generator, **request: Any) -> Batch:
        batch = super().sample(rng, **request)
        zeroed = rng.random(len(batch.inputs)) < 0.5
        batch.inputs[zeroed, 0] = batch.targets[zeroed, -1] = 0
        return batch


class WrongUnit(Recall):
    """The entropy of eight even tokens is 3 bits; the baseline gives it in nats."""

    metric = "bits_per_byte"

    def baseline(self) -> float:
        return float(np.log(8))


class OptimisticCoin(Recall):
    """A coin that is said to be guessed a tenth too often."""

    def sample(self, rng: np.random.Generator, **request: Any) -> Batch:
        batch = super().sample(rng, **request)
        return Batch(batch.inputs, np.where(batch.targets == IGNORED, IGNORED, batch.targets % 2))

    def baseline(self) -> float:
        return 0.61


class ExaminesOnItsTrainingData(Recall):
    """A pool of sequences, to train on and to be tested on."""

    num_sequences = 500

    def sample(self, rng: np.random.Generator, *, split: Split, batch_size: int, length: int) -> Batch:
        pool = super().sample(np.random.default_rng(0), split=split, batch_size=self.num_sequences, length=length)
        chosen = rng.integers(0, self.num_sequences, batch_size)
        return Batch(pool.inputs[chosen], pool.targets[chosen])

    def oracle(self, batch: Batch) -> Any:
        return None


class ExaminesOnManyTrainingSequences(ExaminesOnItsTrainingData):
    num_sequences = 36_000


class Slow(Recall):
    def sample(self, rng: np.random.Generator, **request: Any) -> Batch:
        time.sleep(0.02)
        return super().sample(rng, **request)


@pytest.mark.parametrize(
    ("broken", "check", "words"),
    [
        (BadName, contract.it_introduces_itself, "name = 'Recall it!'"),
        (NoDocstring, contract.it_introduces_itself, "without a docstring"),
        (UnknownMetric, contract.it_introduces_itself, "metric = 'accuracy'"),
        (NoVocabulary, contract.its_sizes_are_positive, "vocab_size = 0"),
        (NoTestLengths, contract.its_sizes_are_positive, r"test_lengths = \(\)"),
        (NoQuickPreset, contract.its_presets_fit, r"presets \['standard'\]"),
        (PresetWithATypo, contract.its_presets_fit, "Did you mean 'length'"),
        (UncostableLength, contract.its_presets_fit, r"too short to recall anything \(.*test_tasks.py, line \d+\)"),
        (ForgetfulSettings, contract.its_settings_survive_storage, "came back as"),
        (Floats, contract.its_batches_have_the_promised_shape, "float64 of shape"),
        (DeafToLength, contract.its_batches_have_the_promised_shape, r"int64 of shape \(8, 10\).*\(8, 20\)"),
        (OutOfRange, contract.its_batches_have_the_promised_shape, "inputs reach from 1 to 8"),
        (OutOfRangeTargets, contract.its_batches_have_the_promised_shape, "targets reach from -101"),
        (NotABatch, contract.its_batches_have_the_promised_shape, "returned a tuple. Promised: a Batch"),
        (Crashing, contract.its_batches_have_the_promised_shape, "IndexError: the test set is empty"),
        (NothingScored, contract.every_sequence_is_scored_somewhere, "8 of 8 train sequences of 10 tokens"),
        (TwinSlices, contract.its_slices_are_named, r"slices = \('first', 'first'\)"),
        (NamelessSlices, contract.its_slices_are_named, r"int64 of shape \(8, 1\). Promised: None"),
        (UnfilledSlices, contract.its_slices_are_named, "slices is NoneType"),
        (FloatingSlices, contract.its_slices_are_named, r"float64 of shape \(8, 10\). Promised: int64"),
        (FlatSlices, contract.its_slices_are_named, r"int64 of shape \(8,\). Promised: int64, to be broadcast"),
        (OneSliceTooMany, contract.its_slices_are_named, "reach from 0 to 1. Promised: indices into the 1 slices"),
        (OwnEntropy, contract.a_batch_is_a_pure_function_of_its_key, "drawn again at once"),
        (RemembersEarlierBatches, contract.a_batch_is_a_pure_function_of_its_key, "drawn again at once"),
        (SameForEveryStep, contract.another_key_gives_another_batch, "the same batch of 32 for"),
        (UsesNumpysGlobalGenerator, contract.global_generators_are_left_alone, "moved .* numpy.random"),
        (UsesPythonsGlobalGenerator, contract.global_generators_are_left_alone, "moved .* random"),
        (SeedsTheGlobalGenerator, contract.global_generators_are_left_alone, "moved .* numpy.random"),
        (WrongOracle, contract.the_oracle_is_always_right, "the oracle is wrong at .* at position 9"),
        (MisshapenOracle, contract.the_oracle_is_always_right, r"int64 of shape \(32,\)"),
        (CheatingOracle, contract.the_oracle_sees_only_the_inputs, "when the targets are zeros"),
        (Unshifted, contract.the_answer_is_not_the_token_at_its_own_position, "shifted by one"),
        (ModestBaseline, contract.the_baseline_is_what_the_best_blind_guess_scores, r"baseline\(\) = 0.01, but"),
        (EndlessBaseline, contract.the_baseline_is_what_the_best_blind_guess_scores, r"baseline\(\) = nan"),
        (LopsidedAnswers, contract.the_baseline_is_what_the_best_blind_guess_scores, "token_accuracy of 0.5"),
        (OptimisticCoin, contract.the_baseline_is_what_the_best_blind_guess_scores, r"baseline\(\) = 0.61, but"),
        (WrongUnit, contract.the_baseline_is_what_the_best_blind_guess_scores, "bits_per_byte of 3"),
        (ExaminesOnItsTrainingData, contract.the_test_is_not_on_training_sequences, "test sequences were among"),
        (ExaminesOnManyTrainingSequences, contract.the_test_is_not_on_training_sequences, "test sequences were among"),
    ],
)
def test_a_broken_task_is_caught(broken: type[Task], check: TaskCheck, words: str) -> None:
    with pytest.raises(ContractViolation, match=words) as caught:
        check(broken())
    assert str(caught.value).startswith(f"{broken.name}: ")
    assert "Promised: " in str(caught.value)


def test_a_slow_task_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "_SECONDS_PER_BATCH", 0.01)
    with pytest.raises(ContractViolation, match=r"a training batch of 32 took 0\.0\d s at best"):
        contract.a_batch_is_drawn_within_a_second(Slow())


def test_an_error_for_the_user_is_not_taken_for_a_broken_promise() -> None:
    class NeedsAPackage(Recall):
        def sample(self, rng: np.random.Generator, **request: Any) -> Batch:
            raise UsageError("install the package")

    with pytest.raises(UsageError, match="install the package"):
        contract.its_batches_have_the_promised_shape(NeedsAPackage())


def test_a_task_with_few_sequences_may_meet_them_again_in_the_test() -> None:
    class OneBit(Recall):
        def sample(self, rng: np.random.Generator, *, split: Split, batch_size: int, length: int) -> Batch:
            inputs = np.zeros((batch_size, length), dtype=np.int64)
            inputs[:, 0] = rng.integers(0, 2, batch_size)
            targets = np.full_like(inputs, IGNORED)
            targets[:, -1] = inputs[:, 0]
            return Batch(inputs, targets)

    contract.the_test_is_not_on_training_sequences(OneBit())


def test_the_global_generators_are_restored_after_the_check() -> None:
    np.random.seed(3)
    random.seed(3)
    expected = np.random.RandomState(3).random(), random.Random(3).random()
    contract.global_generators_are_left_alone(Recall())
    assert (np.random.random(), random.random()) == expected


def test_every_check_is_a_claim_with_a_sentence() -> None:
    for check in TASK_CHECKS:
        assert check.__doc__ is not None
        assert len(check.__doc__.splitlines()) == 1
        assert check.__doc__.endswith(".")
