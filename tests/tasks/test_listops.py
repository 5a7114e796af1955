"""ListOps against the published recipe, stated here a second time as the recursion that it is."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
from scipy.stats import chi2_contingency, chisquare

from suite.errors import UsageError
from suite.plugin import IGNORED, Batch
from tasks.listops import END, PADDING, ListOps, evaluated

Tree = int | tuple[str, list["Tree"]]

_NAMES = ("MIN", "MAX", "MED", "SM")


def _task(**settings: Any) -> ListOps:
    return ListOps(ListOps.Options.parse(settings, where="listops"))


def _parsed(tokens: list[int]) -> tuple[Tree, list[int]]:
    """The expression that some tokens begin with, and the tokens after it."""
    first, rest = tokens[0], tokens[1:]
    if first < 10:
        return first, rest
    arguments = []
    while rest[0] != END:
        argument, rest = _parsed(rest)
        arguments.append(argument)
    return (_NAMES[first - 10], arguments), rest[1:]


def _value(tree: Tree) -> int:
    if isinstance(tree, int):
        return tree
    operator, arguments = tree
    values = [_value(argument) for argument in arguments]
    return {
        "MIN": min(values),
        "MAX": max(values),
        "MED": int(np.median(values)),
        "SM": sum(values) % 10,
    }[operator]


def _depth(tree: Tree) -> int:
    return 1 if isinstance(tree, int) else 1 + max(_depth(argument) for argument in tree[1])


def _length(tree: Tree) -> int:
    return 1 if isinstance(tree, int) else 2 + sum(_length(argument) for argument in tree[1])


def _drawn_by_the_recipe(draw: random.Random, depth: int, max_depth: int, max_args: int) -> Tree:
    if depth == max_depth or draw.random() > 0.25:
        return draw.randrange(10)
    arguments = [_drawn_by_the_recipe(draw, depth + 1, max_depth, max_args) for _ in range(draw.randint(2, max_args))]
    return draw.choice(_NAMES), arguments


def _trees(batch: Batch) -> list[Tree]:
    trees = []
    for row in batch.inputs.tolist():
        tree, rest = _parsed([token for token in row if token != PADDING])
        assert rest == []
        trees.append(tree)
    return trees


def test_every_sequence_is_an_expression_that_ends_with_it_and_its_value_is_the_target() -> None:
    task = _task(min_length=5, max_length=80, max_depth=5, max_args=4)
    batch = task.sample(np.random.default_rng(0), split="train", batch_size=300, length=80)
    assert batch.slices is not None
    for row, target, at, tree in zip(
        batch.inputs.tolist(), batch.targets.tolist(), batch.slices[:, 0], _trees(batch), strict=True
    ):
        length = _length(tree)
        assert 5 <= length <= 80
        assert row[: 80 - length] == [PADDING] * (80 - length)
        assert target == [IGNORED] * 79 + [_value(tree)]
        assert task.slices[at] == f"depth {_depth(tree)}"
    assert {_depth(tree) for tree in _trees(batch)} == {2, 3, 4, 5}


def test_lengths_depths_and_values_are_those_of_the_published_recipe() -> None:
    draw = random.Random(0)
    wanted: list[Tree] = []
    while len(wanted) < 2000:
        tree = _drawn_by_the_recipe(draw, 1, 5, 4)
        if 12 <= _length(tree) <= 60:
            wanted.append(tree)
    task = _task(min_length=12, max_length=60, max_depth=5, max_args=4)
    seen = _trees(task.sample(np.random.default_rng(1), split="train", batch_size=2000, length=60))
    for measure in (lambda tree: _length(tree) // 7, _depth, _value, lambda tree: tree[0]):
        counts = [Counter(measure(tree) for tree in trees) for trees in (wanted, seen)]
        kinds = sorted(counts[0] | counts[1])
        table = [[of[kind] for kind in kinds] for of in counts]
        assert chi2_contingency(table).pvalue > 1e-3


def test_digits_operators_and_numbers_of_arguments_are_uniform() -> None:
    # Two levels of operators with two or three arguments: no length is thrown away, so nothing is conditioned.
    task = _task(min_length=4, max_length=17, max_depth=3, max_args=3)
    trees = _trees(task.sample(np.random.default_rng(2), split="train", batch_size=4000, length=17))
    arguments = [argument for tree in trees if isinstance(tree, tuple) for argument in tree[1]]
    inner = [argument for argument in arguments if isinstance(argument, tuple)]
    num_digits = len(arguments) - len(inner)
    assert chisquare([num_digits, len(inner)], [0.75 * len(arguments), 0.25 * len(arguments)]).pvalue > 1e-3
    assert chisquare(list(Counter(operator for operator, _ in inner).values())).pvalue > 1e-3
    assert chisquare(list(Counter(len(args) for _, args in inner).values())).pvalue > 1e-3
    assert (
        chisquare(list(Counter(argument for argument in arguments if isinstance(argument, int)).values())).pvalue > 1e-3
    )


@pytest.mark.parametrize(
    ("expression", "value"),
    [("MAX 2 9 [ MIN 4 7 ] 0 ]", 9), ("MED 1 2 3 4 ]", 2), ("MED 5 1 9 ]", 5), ("SM 9 8 [ SM 1 2 ] ]", 0)],
)
def test_expressions_have_the_values_that_the_definition_gives(expression: str, value: int) -> None:
    tokens = {"[": None, "]": END} | {name: 10 + number for number, name in enumerate(_NAMES)}
    spelled = [tokens.get(word, int(word) if word.isdigit() else None) for word in expression.split()]
    assert evaluated([PADDING, *(token for token in spelled if token is not None)]) == value


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_length": 40, "max_length": 30}, "no expression has at least min_length 40 and at most 30 tokens"),
        ({"test_lengths": [7]}, "no expression has at least min_length 8 and at most 7 tokens"),
        (
            {"min_length": 20, "max_length": 30, "max_depth": 3, "max_args": 3},
            "max_depth 3 and max_args 3 give expressions of at most 17 tokens, fewer than min_length 20",
        ),
        ({"max_args": 1}, "max_args = 1"),
    ],
)
def test_sizes_that_no_expression_has_are_refused_with_the_reason(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        _task(**settings)
    assert message in str(caught.value)


def test_lengths_that_hardly_ever_turn_up_are_refused_while_drawing() -> None:
    task = _task(min_length=122, max_length=122, max_depth=4, max_args=5)
    with pytest.raises(UsageError, match="hardly an expression of 122 to 122 tokens turned up among 200,"):
        task.sample(np.random.default_rng(0), split="train", batch_size=64, length=122)
    with pytest.raises(UsageError, match="at least min_length 122 tokens, not 100"):
        task.sample(np.random.default_rng(0), split="train", batch_size=1, length=100)
