"""ListOps: evaluate nested lists (Nangia & Bowman 2018, arXiv:1804.06028; Tay et al. 2020, arXiv:2011.04006).

    [MAX 2 9 [MIN 4 7 ] 0 ]   has the value 9

The recipe is that of the Long Range Arena: a node above the greatest depth is an operator with probability 1/4 and a
digit otherwise; an operator, drawn from four, has 2 to `max_args` arguments; expressions of an unwanted length are
thrown away. What differs: expressions are drawn afresh, where the published ones are 100,000 distinct; they end at the
last position, with the padding before them, so that a causal model reads the end last; and a symbol is one of 16 tokens
(digits, operators, the bracket, padding), without the redundant parentheses.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Annotated, Self

import numpy as np
from pydantic import Field, model_validator

from suite import IGNORED, Batch, Budget, Preset, Settings, ShellSettings, Split, Task
from suite.errors import UsageError
from suite.plugin import IntArray
from suite.spec import PositiveInt
from tasks.training_set import training_generator

NUM_DIGITS = 10
OPERATORS = ("MIN", "MAX", "MED", "SM")
"""Minimum, maximum, median (rounded down) and sum modulo 10."""
END = NUM_DIGITS + len(OPERATORS)
PADDING = END + 1

OPERATOR_CHANCE = 0.25

_NUM_TREES_AT_MOST = 200_000
"""Expressions that are thrown away before the sizes are called impossible."""


class ListOps(Task):
    """Evaluate a nested expression of MIN, MAX, MED and SM (sum modulo 10) over digits.

    Tokens 0 to 9 are digits, 10 to 13 open an operator's list, 14 closes it, 15 is padding. Scored is the last position
    alone, which closes the outermost list; its target is the value.
    """

    name = "listops"

    class Options(Settings):
        min_length: Annotated[int, Field(ge=4)] = 8
        """Tokens of the shortest expression."""
        max_length: Annotated[int, Field(ge=4)] = 64
        """Tokens of the longest expression, and of a training sequence."""
        max_depth: Annotated[int, Field(ge=2, le=20)] = 5
        """Levels of the deepest tree, the digits' level included."""
        max_args: Annotated[int, Field(ge=2)] = 5
        """Arguments of an operator at most."""
        num_train_sequences: PositiveInt | None = None
        """Expressions that there are to train on; if not given, they are fresh at every step."""
        test_lengths: tuple[Annotated[int, Field(ge=4)], ...] = ()
        """Greatest lengths of the expressions in the tests, each with no shorter ones than `min_length`;
        `max_length` alone if empty."""

        @model_validator(mode="after")
        def _there_are_such_expressions(self) -> Self:
            for length in (self.max_length, *self.test_lengths):
                if length < self.min_length:
                    raise ValueError(
                        f"no expression has at least min_length {self.min_length} and at most {length} tokens"
                    )
            longest = 1
            for _ in range(self.max_depth - 1):
                longest = 2 + self.max_args * longest
            if longest < self.min_length:
                raise ValueError(
                    f"max_depth {self.max_depth} and max_args {self.max_args} give expressions of at most {longest} "
                    f"tokens, fewer than min_length {self.min_length}"
                )
            return self

    presets = {
        "quick": Preset(
            settings={"min_length": 4, "max_length": 24, "max_depth": 3, "max_args": 4},
            shell=ShellSettings(width=32, num_layers=2),
            budget=Budget(steps=1000, batch_size=32, warmup_steps=50, schedule="cosine", evaluate_every=100),
            learning_rates=(3e-3,),
            cost_lengths=(24,),
        ),
        "standard": Preset(
            settings={"min_length": 50, "max_length": 256, "max_depth": 6, "max_args": 8},
            shell=ShellSettings(width=128, num_layers=4),
            budget=Budget(
                steps=20_000,
                batch_size=64,
                weight_decay=0.05,
                warmup_steps=1000,
                schedule="cosine",
                evaluate_every=1000,
                validation_batches=16,
                test_batches=32,
            ),
            learning_rates=(3e-4, 1e-3, 3e-3),
            max_extensions=2,
            num_seeds=3,
            cost_lengths=(256,),
        ),
        # The sizes of the Long Range Arena, whose bounds are exclusive; width, depth and budget of S4's experiments.
        "paper": Preset(
            settings={
                "min_length": 501,
                "max_length": 1999,
                "max_depth": 10,
                "max_args": 10,
                "num_train_sequences": 96_000,
            },
            shell=ShellSettings(width=128, num_layers=8),
            budget=Budget(
                steps=80_000,
                batch_size=50,
                weight_decay=0.05,
                warmup_steps=2000,
                schedule="cosine",
                evaluate_every=2000,
                validation_batches=40,
                test_batches=40,
            ),
            learning_rates=(1e-3, 1e-2),
            cost_lengths=(1999,),
        ),
    }

    @property
    def vocab_size(self) -> int:
        return PADDING + 1

    @property
    def length(self) -> int:
        return int(self.options.max_length)

    @property
    def test_lengths(self) -> tuple[int, ...]:
        return self.options.test_lengths or (self.length,)

    @property
    def slices(self) -> tuple[str, ...]:
        """By the depth that an expression reaches."""
        return tuple(f"depth {depth}" for depth in range(2, self.options.max_depth + 1))

    def sample(self, rng: np.random.Generator, *, split: Split, batch_size: int, length: int) -> Batch:
        options = self.options
        if length < options.min_length:
            raise UsageError(
                f"{self.name}: expressions have at least min_length {options.min_length} tokens, not {length}"
            )
        rng = training_generator(rng, split, batch_size, options.num_train_sequences)
        inputs = np.full((batch_size, length), PADDING, dtype=np.int64)
        targets = np.full_like(inputs, IGNORED)
        slices = np.zeros((batch_size, 1), dtype=np.int64)
        num_drawn = num_thrown_away = 0
        # About one tree in five is kept at the published sizes.
        num_trees = 8 * batch_size
        while num_drawn < batch_size:
            forest = _grow(rng, num_trees, options.max_depth, options.max_args)
            kept = np.flatnonzero((forest.lengths >= options.min_length) & (forest.lengths <= length))
            kept = kept[: batch_size - num_drawn]
            rows = slice(num_drawn, num_drawn + len(kept))
            forest.write(kept, inputs[rows])
            targets[rows, -1] = forest.values[kept]
            slices[rows, 0] = forest.depths[kept] - 2
            num_drawn += len(kept)
            num_thrown_away += num_trees - len(kept)
            if num_thrown_away > _NUM_TREES_AT_MOST and num_drawn < batch_size:
                raise UsageError(
                    f"{self.name}: hardly an expression of {options.min_length} to {length} tokens turned up among "
                    f"{num_thrown_away:,}; widen the lengths, or raise max_depth or max_args"
                )
        return Batch(inputs, targets, slices)

    def oracle(self, batch: Batch) -> IntArray:
        answers = np.full_like(batch.inputs, IGNORED)
        answers[:, -1] = [evaluated(row) for row in batch.inputs.tolist()]
        return answers

    def baseline(self) -> float:
        """The share of the commonest value, which has no closed form: as counted in 4,000 expressions."""
        return _share_of_the_commonest_value(self.options)


def evaluated(tokens: list[int]) -> int:
    """The value of one expression, read from left to right with a stack; padding is skipped."""
    open_lists: list[list[int]] = [[]]
    for token in tokens:
        if token == PADDING:
            continue
        if token == END:
            operator, *arguments = open_lists.pop()
            token = _apply(OPERATORS[operator - NUM_DIGITS], arguments)
        elif token >= NUM_DIGITS:
            open_lists.append([])
        open_lists[-1].append(token)
    return open_lists[0][0]


def _apply(operator: str, arguments: list[int]) -> int:
    match operator:
        case "MIN":
            return min(arguments)
        case "MAX":
            return max(arguments)
        case "MED":
            in_order, num_arguments = sorted(arguments), len(arguments)
            return (in_order[(num_arguments - 1) // 2] + in_order[num_arguments // 2]) // 2
    return sum(arguments) % 10


@functools.cache
def _share_of_the_commonest_value(options: ListOps.Options) -> float:
    rng = np.random.Generator(np.random.Philox(key=0))
    counts = np.zeros(NUM_DIGITS, dtype=np.int64)
    for _ in range(40):
        batch = ListOps(options).sample(rng, split="train", batch_size=100, length=options.max_length)
        counts += np.bincount(batch.targets[:, -1], minlength=NUM_DIGITS)
    return float(counts.max() / counts.sum())


@dataclass(frozen=True)
class _Level:
    """The nodes of all trees at one depth, one after the other; siblings stand together. All arrays are (nodes)."""

    trees: IntArray
    parents: IntArray
    """Index into the level above."""
    symbols: IntArray
    """A digit or an operator's token."""
    num_args: IntArray
    """0 for a digit."""

    @property
    def operators(self) -> IntArray:
        """Which nodes are operators. Their arguments are the next level, in this order."""
        return np.flatnonzero(self.num_args)


class _Forest:
    """Many expressions as trees, evaluated level by level."""

    def __init__(self, levels: list[_Level]) -> None:
        self._levels = levels
        self._sizes = [np.ones_like(level.symbols) for level in levels]
        """Tokens of the expression under each node."""
        values = [level.symbols.copy() for level in levels]
        for depth in reversed(range(len(levels) - 1)):
            level, operators = levels[depth], levels[depth].operators
            num_args = level.num_args[operators]
            starts = np.cumsum(num_args) - num_args
            self._sizes[depth][operators] = 2 + np.add.reduceat(self._sizes[depth + 1], starts)
            kinds = level.symbols[operators] - NUM_DIGITS
            values[depth][operators] = _values(kinds, values[depth + 1], starts, num_args)
        self.lengths, self.values = self._sizes[0], values[0]
        self.depths = np.ones_like(self.lengths)
        for depth, level in enumerate(levels, start=1):
            self.depths[level.trees] = depth

    def write(self, trees: IntArray, rows: IntArray) -> None:
        """Writes some of the expressions into rows of tokens, one each, to end where the rows end."""
        row_of_tree = np.full(len(self.lengths), -1)
        row_of_tree[trees] = np.arange(len(trees))
        first = rows.shape[1] - self.lengths
        for depth, (level, sizes) in enumerate(zip(self._levels, self._sizes, strict=True)):
            if depth:
                # An argument stands after its operator and the arguments before it.
                before = np.cumsum(sizes) - sizes
                siblings = self._levels[depth - 1].num_args
                starts = np.cumsum(siblings) - siblings
                first = first[level.parents] + 1 + before - before[starts[level.parents]]
            row = row_of_tree[level.trees]
            is_written = row >= 0
            rows[row[is_written], first[is_written]] = level.symbols[is_written]
            closed = level.operators[is_written[level.operators]]
            rows[row[closed], first[closed] + sizes[closed] - 1] = END


def _grow(rng: np.random.Generator, num_trees: int, max_depth: int, max_args: int) -> _Forest:
    """Random trees whose roots are operators; all that were digits alone are too short to be kept anyway."""
    levels: list[_Level] = []
    parents = trees = np.arange(num_trees)
    for depth in range(1, max_depth + 1):
        is_operator = rng.random(len(trees)) < OPERATOR_CHANCE if depth > 1 else np.ones(num_trees, dtype=bool)
        if depth == max_depth:
            is_operator[:] = False
        symbols = rng.integers(0, NUM_DIGITS, len(trees))
        num_args = np.zeros_like(symbols)
        operators = np.flatnonzero(is_operator)
        symbols[operators] = NUM_DIGITS + rng.integers(0, len(OPERATORS), len(operators))
        num_args[operators] = rng.integers(2, max_args + 1, len(operators))
        levels.append(_Level(trees, parents, symbols, num_args))
        if not len(operators):
            break
        parents = np.repeat(np.arange(len(trees)), num_args)
        trees = trees[parents]
    return _Forest(levels)


def _values(operators: IntArray, args: IntArray, starts: IntArray, num_args: IntArray) -> IntArray:
    """Each operator applied to its arguments, `num_args` of them from `starts` on."""
    of_operator = np.repeat(np.arange(len(starts)), num_args)
    in_order = args[np.lexsort((args, of_operator))]
    lower, upper = in_order[starts + (num_args - 1) // 2], in_order[starts + num_args // 2]
    minima, maxima = in_order[starts], in_order[starts + num_args - 1]
    values: IntArray = np.choose(operators, [minima, maxima, (lower + upper) // 2, np.add.reduceat(args, starts) % 10])
    return values
