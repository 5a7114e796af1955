"""The file of an experiment: a published table, its protocol, and smaller sizes of it. Torch-free.

    title, claim, source                    what is reproduced, what the paper concludes from it, where it stands
    task, columns, columns_title            the task, and the columns of the table as the paper calls them
    choices                                 what the paper leaves open and what was chosen, a sentence each
    [tolerance]                             how far from a published number is near enough
    [paper], [standard], [quick]            a size: how it departs from the task's preset of that name, and what stands
                                            here for each published column (the last ones may be left out)
    [[rows]]                                a row: its model, what is published of it in each column, and in
                                            `paper`, `standard`, `quick` how its training departs from the size
    [[orderings]]                           which row is published to do better than which, in which columns

The shipped files lie in `suite/experiments/`; the name of one is its path there, as in `mamba/table2`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from suite.errors import UsageError, unknown
from suite.plan import read_toml
from suite.spec import PositiveFloat, PositiveInt, Published, Settings, Tolerance

HOME = Path(__file__).resolve().parent.parent / "experiments"

SIZES = ("paper", "standard", "quick")


class _Departure(Settings):
    """Settings that are to be other than those it departs from."""

    settings: dict[str, Any] = Field(default_factory=dict)
    """Of the task; in a row, of its model."""
    shell: dict[str, Any] = Field(default_factory=dict)
    budget: dict[str, Any] = Field(default_factory=dict)


class Column(_Departure):
    """What stands for a published column: a training of its own, or a test length of the one that all share."""

    test_length: PositiveInt | None = None
    """Tokens of the test; the trained length if not given."""


class Size(_Departure):
    """How a size of the experiment departs from the task's preset of that name."""

    learning_rates: tuple[PositiveFloat, ...] | None = None
    num_seeds: PositiveInt | None = None
    columns: tuple[PositiveInt | Column, ...] | dict[str, PositiveInt | Column] = ()
    """What stands for the published columns, by their names or in their order; a number is a test length, and the
    trained length is what there is if none are given."""

    def named_columns(self, names: Sequence[str]) -> dict[str, Column]:
        """Published column -> what stands for it; the last ones may be left out."""
        here = self.columns or (Column(),)
        named = here.items() if isinstance(here, dict) else zip(names, here, strict=False)
        return {name: Column(test_length=column) if isinstance(column, int) else column for name, column in named}

    @property
    def test_lengths(self) -> list[int]:
        """Those of the training that columns share."""
        here = self.columns.values() if isinstance(self.columns, dict) else self.columns
        return [column for column in here if isinstance(column, int)]


class RowSize(_Departure):
    """How a row's training departs from that of the size."""

    learning_rates: tuple[PositiveFloat, ...] | None = None
    """In the order in which they are to be run."""


class ExperimentRow(Settings):
    """One row of the published table."""

    label: str
    """What the paper calls it."""
    model: str
    settings: dict[str, Any] = Field(default_factory=dict)
    """Of the model, in every size."""
    published: Published | tuple[Published, ...]
    """A number in percent or words, one for each column; one for all of them."""
    paper: RowSize = RowSize()
    standard: RowSize = RowSize()
    quick: RowSize = RowSize()

    def size(self, name: str) -> RowSize:
        """How its training departs from that of the size `name`."""
        size: RowSize = getattr(self, name)
        return size


class ExperimentOrdering(Settings):
    """Rows that are published to do better than others."""

    better: str
    worse: tuple[str, ...]
    columns: tuple[str, ...] = ()
    """All if none are given."""


class Experiment(Settings):
    """A published table and how to come by it."""

    title: str
    claim: str
    source: str
    task: str
    columns: Annotated[tuple[str, ...], Field(min_length=1)] = ("accuracy",)
    columns_title: str = "Column"
    choices: tuple[str, ...] = ()
    tolerance: Tolerance = Tolerance()
    paper: Size
    standard: Size | None = None
    quick: Size | None = None
    rows: Annotated[tuple[ExperimentRow, ...], Field(min_length=1)]
    orderings: tuple[ExperimentOrdering, ...] = ()

    @model_validator(mode="after")
    def _table_is_whole(self) -> Self:
        for names, what in ((self.columns, "columns"), (self.labels, "rows")):
            if len(set(names)) < len(names):
                raise ValueError(f"two {what} have the same name: {', '.join(names)}")
        for row in self.rows:
            if isinstance(row.published, tuple) and len(row.published) != len(self.columns):
                raise ValueError(
                    f"the row '{row.label}' has {len(row.published)} published entries for {len(self.columns)} columns"
                )
        for name in self.sizes:
            columns = self.size(name).columns
            if isinstance(columns, dict):
                for column in columns:
                    self._expect_column(column, where=f"in {name}")
            elif len(columns) > len(self.columns):
                raise ValueError(f"{name} has {len(columns)} columns, but {len(self.columns)} are published")
        if missing := [name for name in self.columns if name not in self.paper.named_columns(self.columns)]:
            raise ValueError(f"paper has nothing for the published columns {', '.join(missing)}")
        for ordering in self.orderings:
            for label in (ordering.better, *ordering.worse):
                if label not in self.labels:
                    raise unknown("row", label, self.labels, where="in an ordering")
            for column in ordering.columns:
                self._expect_column(column, where="in an ordering")
        return self

    def _expect_column(self, name: str, *, where: str) -> None:
        if name not in self.columns:
            raise unknown("column", name, self.columns, where=where)

    @property
    def labels(self) -> tuple[str, ...]:
        """Of the rows."""
        return tuple(row.label for row in self.rows)

    @property
    def sizes(self) -> tuple[str, ...]:
        """The names of those that the file has."""
        return tuple(name for name in SIZES if getattr(self, name) is not None)

    def size(self, name: str) -> Size:
        """Raises UsageError if the file has no such size."""
        if name not in self.sizes:
            raise unknown("preset", name, self.sizes, where="for this experiment")
        size: Size = getattr(self, name)
        return size

    def published(self, row: ExperimentRow) -> tuple[Published, ...]:
        """What is published of the row, an entry for each column."""
        return row.published if isinstance(row.published, tuple) else (row.published,) * len(self.columns)


def experiment_names() -> list[str]:
    """The shipped experiments."""
    return sorted(path.relative_to(HOME).with_suffix("").as_posix() for path in HOME.rglob("*.toml"))


def load_experiment(name: str) -> Experiment:
    """A shipped experiment by its name, or a user's by the path of its file.

    Raises:
        UsageError: there is no such experiment (names the nearest one), or its file cannot be read or is wrong.
    """
    if name.endswith(".toml"):
        return read_experiment_file(Path(name))
    if name not in experiment_names():
        raise unknown("experiment", name, experiment_names(), where="(a file of your own ends in .toml)")
    return read_experiment_file(HOME / f"{name}.toml")


def read_experiment_file(path: Path) -> Experiment:
    """Raises UsageError: the file cannot be read, is not TOML, has an unknown key or a table that is not whole."""
    content = read_toml(path)
    if {"models", "tasks"} & content.keys():
        raise UsageError(f"The experiment file {path} holds no published table. Run it with `suite run {path}`")
    try:
        return Experiment.parse(content, where="experiment")
    except UsageError as error:
        raise UsageError(f"The experiment file {path}: {error}") from None
