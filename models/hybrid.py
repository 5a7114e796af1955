"""Hybrids: layers of several models in turn, by a pattern.

    mamba*7,transformer        seven Mamba layers, then one of attention and MLP, and from the start again

A few attention layers give a state space the recall that it lacks (Fu et al. 2022, arXiv:2212.14052; Lieber et al.
2024, arXiv:2403.19887: one in eight). The pattern is repeated over the layers of the shell, and cut off at the last.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field
from torch import nn

from models.composition import model_class
from suite.errors import UsageError
from suite.plugin import Model
from suite.spec import Settings, ShellSettings

_PART = re.compile(r"(?P<name>[a-z0-9][a-z0-9_+:-]*)(\*(?P<count>[1-9][0-9]*))?")


class Hybrid(Model):
    """Layers of several models in turn, by a pattern such as mamba*7,transformer."""

    name = "hybrid"

    class Options(Settings):
        """Settings of a hybrid."""

        pattern: str = "mamba,transformer"
        """Names of models, or block:mixer, in the order of the layers; NAME*3 stands for three of them."""
        settings: dict[str, dict[str, Any]] = Field(default_factory=dict)
        """Settings of the models in the pattern, by name."""

    def __init__(self, options: Settings | None = None) -> None:
        super().__init__(options)
        self._models = _models_of(self.options.pattern, self.options.settings)
        self._num_layers_built = 0

    def branches(self, shell: ShellSettings) -> Sequence[nn.Module]:
        """The branches of the next layer: the shell asks for one layer after the other, and for all of them.

        Raises:
            UsageError: the shell has fewer layers than the pattern, or a model does not fit the shell.
        """
        if shell.num_layers < len(self._models):
            raise UsageError(
                f"{self.name}: the pattern '{self.options.pattern}' has {len(self._models)} layers and the shell "
                f"{shell.num_layers}, so that a part would be missing. Set shell.num_layers={len(self._models)} or more"
            )
        layer = self._num_layers_built
        self._num_layers_built = (layer + 1) % shell.num_layers
        try:
            return self._models[layer % len(self._models)].branches(shell)
        except UsageError as error:
            self._num_layers_built = 0
            raise UsageError(f"{self.name}: {error}") from None


def _models_of(pattern: str, settings: Mapping[str, Mapping[str, Any]]) -> list[Model]:
    """One model for each layer of the pattern.

    Raises:
        UsageError: a part of the pattern is no name and count, a name is not known, or the settings do not fit.
    """
    names: list[str] = []
    for part in pattern.split(","):
        match = _PART.fullmatch(part.strip())
        if match is None:
            raise UsageError(
                f"hybrid.pattern = '{pattern}': '{part.strip()}' is not a model's name, or NAME*COUNT. "
                "For example mamba*7,transformer"
            )
        if match["name"] == Hybrid.name:
            raise UsageError(f"hybrid.pattern = '{pattern}': a hybrid cannot stand in its own pattern")
        names += [match["name"]] * int(match["count"] or 1)
    for name in settings:
        if name not in names:
            raise UsageError(f"hybrid.settings has '{name}', which is not in the pattern '{pattern}'")
    models = {}
    for name in dict.fromkeys(names):
        model = model_class(name)
        models[name] = model(model.Options.parse(settings.get(name, {}), where=f"hybrid.settings.{name}"))
    return [models[name] for name in names]
