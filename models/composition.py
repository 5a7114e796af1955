"""Models by composition: a block around a mixer, by the name `block:mixer`, or under a name of its own.

    h3:s4d      the H3 block around S4D         mamba:hyena     the Mamba block around Hyena's long convolution

The grid of Mamba's table 1 (Gu and Dao 2023, arXiv:2312.00752): what does the block contribute, what the mixer? A file
in `models/blocks` adds a row to it, a file in `models/mixers` a column.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, ClassVar, TypeVar, get_type_hints

import pydantic
from torch import nn

import models
from models import blocks, mixers
from models.block import MLP, Block
from models.mixer import Mixer
from suite.errors import UsageError, unknown
from suite.plugin import Model
from suite.spec import Settings, ShellSettings

Part = TypeVar("Part", Block, Mixer, Model)


class Composition(Model):
    """A block around a mixer. Its settings are those of both, with the defaults that `defaults` changes."""

    block: ClassVar[type[Block]]
    mixer: ClassVar[type[Mixer]]
    defaults: ClassVar[Mapping[str, Any]] = {}
    """Setting -> what it is if nobody says otherwise, where that differs from the block's or the mixer's default."""

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        if hasattr(cls, "block") and hasattr(cls, "mixer"):
            cls.Options = _joined_options(cls)

    def branches(self, shell: ShellSettings) -> Sequence[nn.Module]:
        """The block, and the MLP if there is one."""
        try:
            branches: list[nn.Module] = [self.block(shell.width, self.mixer, self.options)]
        except UsageError as error:
            raise UsageError(f"{self.name}: {error}") from None
        if self.options.mlp_ratio:
            branches.append(MLP(shell.width, self.options.mlp_ratio))
        return branches


def model_class(name: str) -> type[Model]:
    """The built-in model of that name: `block:mixer`, or one that has a name of its own.

    Raises:
        UsageError: nobody has that name; names the nearest one.
    """
    if ":" in name:
        block, _, mixer = name.partition(":")
        return compose(block, mixer)
    known = _named(models, Model)  # type: ignore[type-abstract]  # only subclasses that are complete have names
    if name not in known:
        raise unknown("model", name, known)
    return known[name]


@functools.cache
def compose(block: str, mixer: str) -> type[Composition]:
    """The composition of a block and a mixer, both by name.

    Raises:
        UsageError: there is no such block or mixer; names the nearest one.
    """
    known_blocks = _named(blocks, Block)  # type: ignore[type-abstract]  # as in `model_class`
    known_mixers = _named(mixers, Mixer)  # type: ignore[type-abstract]  # as in `model_class`
    if block not in known_blocks:
        raise unknown("block", block, known_blocks)
    if mixer not in known_mixers:
        raise unknown("mixer", mixer, known_mixers)
    return type(
        "Composition",
        (Composition,),
        {
            "name": f"{block}:{mixer}",
            "block": known_blocks[block],
            "mixer": known_mixers[mixer],
            "__doc__": f"{_title(known_mixers[mixer])} in {_uncapitalised(_title(known_blocks[block]))}.",
            "__module__": __name__,
        },
    )


def part_rows() -> list[tuple[str, str]]:
    """(`block:…` or `…:mixer`, what it is) for every block and mixer."""
    known_blocks = _named(blocks, Block)  # type: ignore[type-abstract]  # as in `model_class`
    known_mixers = _named(mixers, Mixer)  # type: ignore[type-abstract]  # as in `model_class`
    rows = [(f"{name}:…", known_blocks[name].__doc__ or "") for name in sorted(known_blocks)]
    return rows + [(f"…:{name}", known_mixers[name].__doc__ or "") for name in sorted(known_mixers)]


def _joined_options(model: type[Composition]) -> type[Settings]:
    bases = (model.block.Options, model.mixer.Options)
    defaults = dict(model.defaults)
    if model.mixer.is_linear and "output" in model.block.Options.model_fields:
        defaults.setdefault("output", "glu")
    fields: dict[str, Any] = {}
    for name, default in defaults.items():
        (base,) = (base for base in bases if name in base.model_fields)
        description = base.model_fields[name].description
        hint = get_type_hints(base, include_extras=True)[name]
        fields[name] = (hint, pydantic.Field(default, description=description))
    return pydantic.create_model(f"{model.__name__}Options", __base__=bases, __module__=__name__, **fields)


def _named(package: ModuleType, base: type[Part]) -> dict[str, type[Part]]:
    return {
        value.name: value
        for module in _modules(package)
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, base) and "name" in vars(value)
    }


def _modules(package: ModuleType) -> list[ModuleType]:
    found = pkgutil.iter_modules(package.__path__, f"{package.__name__}.")
    return [importlib.import_module(module.name) for module in found if not module.ispkg]


def _title(part: type[Block] | type[Mixer]) -> str:
    """What comes before the colon of the docstring."""
    return (part.__doc__ or part.name).partition(":")[0]


def _uncapitalised(title: str) -> str:
    return title[0].lower() + title[1:]
