"""The contract of a task, as checks. Each takes a second or less, but for a task that is slow to draw from.

What is estimated is estimated from a given number of sequences, whatever the time that takes: where a clock decided, a
slow task or a busy machine would pass with faults that are caught elsewhere.
"""

from __future__ import annotations

import itertools
import pickle
import random
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, get_args

import numpy as np

from suite.contracts.claim import claim, fail
from suite.errors import UsageError
from suite.plugin import IGNORED, Batch, IntArray, Metric, Split, Task, keyed_generator

TaskCheck = Callable[[Task], None]

_SPLITS: tuple[Split, ...] = ("train", "validation", "test")

_METRICS = get_args(Metric)

_NUM_ROWS = 8
"""Sequences of a batch that is only looked at."""

_LONGEST = 4096
"""Longer test and cost lengths are left out, for the sake of time."""

_NUM_SAMPLED = 1024
"""Sequences that statistics are taken from.

Found nine times in ten: a baseline of 1/2, scored once a sequence, that is off by 0.11; and, where there is no oracle,
that training and test share a pool of 36,000 sequences.
"""

_SECONDS_PER_BATCH = 1.0


@claim
def it_introduces_itself(task: Task) -> None:
    """Its name fits the command line, its docstring has a first line, and its metric is one that the suite knows."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", task.name):
        fail(task, f"name = {task.name!r}", "a name of lower-case letters, digits, '_' and '-'")
    if not task.summary().strip():
        fail(task, "a class without a docstring", "a docstring whose first line introduces the task")
    if task.metric not in _METRICS:
        fail(task, f"metric = {task.metric!r}", f"one of {', '.join(_METRICS)}")


@claim
def its_sizes_are_positive(task: Task) -> None:
    """Vocabulary and lengths are whole positive numbers, and there is a test length."""
    if not (_is_positive(task.vocab_size) and _is_positive(task.length)):
        seen = f"vocab_size = {task.vocab_size!r} and length = {task.length!r}"
        fail(task, seen, "whole numbers of at least 1")
    if not (task.test_lengths and all(_is_positive(length) for length in task.test_lengths)):
        fail(task, f"test_lengths = {task.test_lengths!r}", "at least one length, each a positive int")


@claim
def its_presets_fit(task: Task) -> None:
    """There is a preset `quick`, and every preset's settings make a task."""
    kind = type(task)
    presets = getattr(kind, "presets", None) or {}
    if "quick" not in presets:
        fail(task, f"presets {sorted(presets)}", "at least the preset 'quick'")
    for name, preset in presets.items():
        try:
            made = kind(kind.Options.parse(preset.settings, where=f"preset '{name}'"))
        except UsageError as error:
            fail(task, str(error), "presets whose settings make a task")
        its_sizes_are_positive(made)
        for length in (length for length in preset.cost_lengths if name == "quick" and length <= _LONGEST):
            _draw(made, "train", num_rows=1, length=length)


@claim
def its_settings_survive_storage(task: Task) -> None:
    """Settings written as JSON and read again are the same settings, so a worker builds the same task."""
    stored = task.choice().settings
    try:
        restored = type(task).Options.parse(stored, where=task.name)
    except UsageError as error:
        fail(task, f"the settings {stored} cannot be read again: {error}", "settings that survive JSON")
    if restored != task.options:
        fail(task, f"{task.options!r} came back as {restored!r}", "settings that survive JSON")


@claim
def its_batches_have_the_promised_shape(task: Task) -> None:
    """Inputs and targets of every split and length are int64 of shape (batch, length), within the vocabulary."""
    for split in _SPLITS:
        for length in _lengths(task):
            batch = _draw(task, split, num_rows=_NUM_ROWS, length=length)
            where = f"sample(split='{split}', batch_size={_NUM_ROWS}, length={length})"
            for field in ("inputs", "targets"):
                array = getattr(batch, field)
                if not isinstance(array, np.ndarray) or array.dtype != np.int64 or array.shape != (_NUM_ROWS, length):
                    seen = f"{where}.{field} is {_described(array)}"
                    fail(task, seen, f"a numpy array, int64 of shape ({_NUM_ROWS}, {length})")
            scored = batch.targets[batch.targets != IGNORED]
            for field, tokens in (("inputs", batch.inputs), ("targets", scored)):
                if tokens.size and not (tokens.min() >= 0 and tokens.max() < task.vocab_size):
                    seen = f"{where}.{field} reach from {tokens.min()} to {tokens.max()}"
                    allowed = " or IGNORED" if field == "targets" else ""
                    fail(task, seen, f"tokens from 0 to vocab_size - 1 = {task.vocab_size - 1}{allowed}")


@claim
def every_sequence_is_scored_somewhere(task: Task) -> None:
    """Every sequence of every split and length has at least one target."""
    for split in _SPLITS:
        for length in _lengths(task):
            batch = _draw(task, split, num_rows=_NUM_ROWS, length=length)
            num_unscored = int((batch.targets == IGNORED).all(axis=1).sum())
            if num_unscored:
                seen = f"{num_unscored} of {_NUM_ROWS} {split} sequences of {length} tokens have only IGNORED targets"
                fail(task, seen, "something to score in every sequence")


@claim
def its_slices_are_named(task: Task) -> None:
    """Slices have names of their own, every position of every batch lies in one of them, and without names in none."""
    names = task.slices
    if len(set(names)) != len(names) or not all(isinstance(name, str) and name.strip() for name in names):
        fail(task, f"slices = {names!r}", "names that differ, none of them empty")
    for split in _SPLITS:
        for length in _lengths(task):
            slices = _draw(task, split, num_rows=_NUM_ROWS, length=length).slices
            where = f"sample(split='{split}', batch_size={_NUM_ROWS}, length={length}).slices"
            if slices is None and not names:
                continue
            if not names:
                fail(task, f"{where} is {_described(slices)}", "None from a task that names no slices")
            shapes = itertools.product((_NUM_ROWS, 1), (length, 1))
            if not isinstance(slices, np.ndarray) or slices.dtype != np.int64 or slices.shape not in shapes:
                fail(task, f"{where} is {_described(slices)}", f"int64, to be broadcast to ({_NUM_ROWS}, {length})")
            if not (slices.min() >= 0 and slices.max() < len(names)):
                seen = f"{where} reach from {slices.min()} to {slices.max()}"
                fail(task, seen, f"indices into the {len(names)} slices that the task names")


@claim
def a_batch_is_a_pure_function_of_its_key(task: Task) -> None:
    """The same key gives the same bits: again, after other batches, and from a new instance."""
    for split in _SPLITS:
        first = _draw(task, split).sha256()
        again = _draw(task, split).sha256()
        for other in _SPLITS:
            _draw(task, other, step=7)
        later = _draw(task, split).sha256()
        anew = _draw(type(task)(task.options), split).sha256()
        for digest, when in ((again, "at once"), (later, "after other batches"), (anew, "from a new instance")):
            if digest != first:
                seen = f"the same {split} batch, drawn again {when}, has other bits"
                fail(task, seen, "a batch that depends on the generator it is given and nothing else")


@claim
def another_key_gives_another_batch(task: Task) -> None:
    """Another step, seed or split gives other data."""
    digests: dict[str, str] = {}
    for split, seed, step in (*((split, 0, 0) for split in _SPLITS), ("train", 0, 1), ("train", 1, 0), ("test", 1, 0)):
        key = f"(split {split}, seed {seed}, step {step})"
        digest = _draw(task, split, seed=seed, step=step, num_rows=4 * _NUM_ROWS).sha256()
        if digest in digests:
            seen = f"the same batch of {4 * _NUM_ROWS} for {digests[digest]} and {key}"
            fail(task, seen, "fresh data from the generator for every step, seed and split")
        digests[digest] = key


@claim
def global_generators_are_left_alone(task: Task) -> None:
    """Python's, numpy's and torch's global generators are neither used nor moved."""
    with _global_generators_restored():
        digests = set()
        for seed in (1, 2):
            _seed_global_generators(seed)
            before = _global_generator_states()
            digests.add(tuple(_draw(task, split).sha256() for split in _SPLITS))
            after = _global_generator_states()
            moved = [name for name in before if before[name] != after[name]]
            if moved:
                fail(task, f"drawing a batch moved the global generator of {', '.join(moved)}", _OWN_RANDOMNESS)
        if len(digests) > 1:
            fail(task, "seeding the global generators changes the batch", _OWN_RANDOMNESS)


@claim
def the_oracle_is_always_right(task: Task) -> None:
    """Where there is an oracle, it gives every target of every split and length."""
    for split in _SPLITS:
        for length in _lengths(task):
            batch = _draw(task, split, num_rows=4 * _NUM_ROWS, length=length)
            answers = _ask_oracle(task, batch)
            if answers is None:
                continue
            scored = batch.targets != IGNORED
            wrong = np.argwhere(scored & (answers != batch.targets))
            if len(wrong):
                row, position = wrong[0]
                seen = (
                    f"the oracle is wrong at {len(wrong)} of {scored.sum()} scored positions of {split} at length "
                    f"{length}; first in sequence {row} at position {position}, where it says "
                    f"{answers[row, position]} and the target is {batch.targets[row, position]}"
                )
                fail(task, seen, "an oracle that is always right, or None")


@claim
def the_oracle_sees_only_the_inputs(task: Task) -> None:
    """The oracle answers the same when the targets are hidden from it."""
    batch = _draw(task, "test")
    answers = _ask_oracle(task, batch)
    if answers is None:
        return
    blind = _ask_oracle(task, Batch(batch.inputs.copy(), np.zeros_like(batch.targets)))
    scored = batch.targets != IGNORED
    if blind is None or (blind[scored] != answers[scored]).any():
        fail(task, "the oracle answers otherwise when the targets are zeros", "answers from the inputs alone")


@claim
def the_answer_is_not_the_token_at_its_own_position(task: Task) -> None:
    """The targets are not just the inputs, as when next-token targets were not shifted."""
    batch = _draw(task, "train", num_rows=4 * _NUM_ROWS)
    scored = batch.targets != IGNORED
    if scored.any() and (batch.inputs[scored] == batch.targets[scored]).all():
        seen = f"all {scored.sum()} targets equal the input at their own position"
        fail(task, seen, "something to find out; for a language model, targets are the inputs shifted by one")


@claim
def the_baseline_is_what_the_best_blind_guess_scores(task: Task) -> None:
    """`baseline()` is the metric of guessing without seeing the sequence, as measured on samples."""
    stated = task.baseline()
    if not (isinstance(stated, int | float) and np.isfinite(stated)):
        fail(task, f"baseline() = {stated!r}", "a finite number")
    train, test = _rows(task, "train").targets, _rows(task, "test").targets
    if task.metric == "bits_per_byte":
        measured, tolerance = _unigram_bits(train, test, task.vocab_size), 0.05 * stated
    else:
        measured, tolerance = _blind_accuracy(train, test, whole_sequences=task.metric == "sequence_accuracy")
    if abs(stated - measured) > tolerance:
        seen = (
            f"baseline() = {stated:.4g}, but guessing from the training targets alone has a {task.metric} of "
            f"{measured:.4g} ± {tolerance:.2g} on {len(test)} test sequences"
        )
        fail(task, seen, "the metric of a model that knows the task but cannot see the sequence")


@claim
def the_test_is_not_on_training_sequences(task: Task) -> None:
    """Test sequences do not turn up in training, unless training sequences also repeat each other by chance."""
    train, more_train, test = (
        {row.tobytes() for row in batch.inputs}
        for batch in (_rows(task, "train"), _rows(task, "train", first_step=1000), _rows(task, "test"))
    )
    num_seen, num_repeated = len(train & test), len(train & more_train)
    # Two draws from a small space of sequences repeat each other too; nothing can be held against the test then.
    allowed = len(test) // 50 if _ask_oracle(task, _draw(task, "test")) is None else 10 * (1 + num_repeated)
    if num_seen > allowed:
        seen = (
            f"{num_seen} of {len(test)} test sequences were among {len(train)} training sequences "
            f"({num_repeated} of as many other training sequences were)"
        )
        fail(task, seen, "test data that was not trained on")


@claim
def a_batch_is_drawn_within_a_second(task: Task) -> None:
    """A training batch of the preset `quick` is ready within a second."""
    preset = type(task).presets.get("quick")
    num_rows = preset.budget.batch_size if preset else 4 * _NUM_ROWS
    _draw(task, "train", num_rows=num_rows)
    seconds = []
    for step in range(3):
        started = time.perf_counter()
        _draw(task, "train", step=step, num_rows=num_rows)
        seconds.append(time.perf_counter() - started)
    if min(seconds) > _SECONDS_PER_BATCH:
        seen = f"a training batch of {num_rows} took {min(seconds):.2f} s at best"
        fail(task, seen, f"a batch within {_SECONDS_PER_BATCH:g} s, so that training does not wait for data")


TASK_CHECKS: tuple[TaskCheck, ...] = (
    it_introduces_itself,
    its_sizes_are_positive,
    its_presets_fit,
    its_settings_survive_storage,
    its_batches_have_the_promised_shape,
    every_sequence_is_scored_somewhere,
    its_slices_are_named,
    a_batch_is_a_pure_function_of_its_key,
    another_key_gives_another_batch,
    global_generators_are_left_alone,
    the_oracle_is_always_right,
    the_oracle_sees_only_the_inputs,
    the_answer_is_not_the_token_at_its_own_position,
    the_baseline_is_what_the_best_blind_guess_scores,
    the_test_is_not_on_training_sequences,
    a_batch_is_drawn_within_a_second,
)
"""Every check, each callable alone on any task."""

_OWN_RANDOMNESS = "randomness from the generator that sample is given, and from no other"


def _is_positive(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _described(array: Any) -> str:
    return f"{array.dtype} of shape {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__


def _lengths(task: Task) -> list[int]:
    return sorted({task.length, *(length for length in task.test_lengths if length <= _LONGEST)})


def _draw(
    task: Task, split: Split, *, seed: int = 0, step: int = 0, num_rows: int = _NUM_ROWS, length: int | None = None
) -> Batch:
    """The batch that the engine would draw."""
    rng = keyed_generator(task.choice(), seed, split, step)
    length = task.length if length is None else length
    batch: object = task.sample(rng, split=split, batch_size=num_rows, length=length)
    if not isinstance(batch, Batch):
        fail(task, f"sample returned a {type(batch).__name__}", "a Batch")
    return batch


def _ask_oracle(task: Task, batch: Batch) -> IntArray | None:
    """The oracle's answers; answers of another shape are the task's violation."""
    answers = task.oracle(batch)
    if answers is not None and (not isinstance(answers, np.ndarray) or answers.shape != batch.inputs.shape):
        seen = f"oracle(batch) returned {_described(answers)}"
        fail(task, seen, f"a numpy array of shape (batch, length) = {batch.inputs.shape}, or None")
    return answers


def _rows(task: Task, split: Split, *, first_step: int = 0) -> Batch:
    """Many sequences of the training length."""
    per_batch = 64
    steps = range(first_step, first_step + _NUM_SAMPLED // per_batch)
    batches = [_draw(task, split, step=step, num_rows=per_batch) for step in steps]
    return Batch(
        np.concatenate([batch.inputs for batch in batches]), np.concatenate([batch.targets for batch in batches])
    )


def _unigram_bits(train: IntArray, test: IntArray, vocab_size: int) -> float:
    """Bits per token of `test` under the token frequencies of `train`, each plus one."""
    counts = np.bincount(train[train != IGNORED], minlength=vocab_size) + 1
    return float(-np.log2(counts / counts.sum())[test[test != IGNORED]].mean())


def _blind_accuracy(train: IntArray, test: IntArray, *, whole_sequences: bool) -> tuple[float, float]:
    """The best accuracy on `test` of three guesses that `train` suggests, and the error it may have.

    The guesses: the commonest token of all, the commonest at each position, the commonest whole sequence.
    """
    test = test[(test != IGNORED).any(axis=1)]
    num_rows, length = test.shape
    scored = test != IGNORED
    by_position = np.array([_commonest(train[:, position]) for position in range(length)])
    sequences, counts = np.unique(train, axis=0, return_counts=True)
    guesses = (np.full(length, _commonest(train)), by_position, sequences[counts.argmax()])
    best, tolerance = -1.0, 0.0
    for guess in guesses:
        right = scored & (test == guess)
        if whole_sequences:
            per_sequence = (right == scored).all(axis=1)
            accuracy = float(per_sequence.mean())
        else:
            per_sequence = right.sum(axis=1) / scored.sum(axis=1)
            accuracy = float(right.sum() / scored.sum())
        if accuracy > best:
            best, tolerance = accuracy, 0.01 + 5 * float(per_sequence.std()) / num_rows**0.5
    return best, tolerance


def _commonest(tokens: IntArray) -> int:
    scored = tokens[tokens != IGNORED]
    return int(np.bincount(scored).argmax()) if scored.size else IGNORED


def _seed_global_generators(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(seed)


def _global_generator_states() -> dict[str, Any]:
    """Comparable states; torch only if something has imported it."""
    states: dict[str, Any] = {"random": random.getstate(), "numpy.random": pickle.dumps(np.random.get_state())}
    if torch := sys.modules.get("torch"):
        states["torch"] = torch.get_rng_state().numpy().tobytes()
    return states


@contextmanager
def _global_generators_restored() -> Iterator[None]:
    python, numpy_state = random.getstate(), np.random.get_state()
    torch = sys.modules.get("torch")
    torch_state = torch.get_rng_state() if torch else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy_state)
        if torch:
            torch.set_rng_state(torch_state)
