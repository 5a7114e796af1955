"""Models brought to one size: for each, the width whose size is nearest to a target.

Three sizes can be matched: non-embedding parameters, the bytes of a sequence's generation state at the task's training
length, and the operations of a token (`models/flops.py`). All of them grow with the width of the shell, so the width is
found by bisection; the depth and the model's own settings stay as they are. Models are built without memory for their
weights, and widths that a model cannot have, such as those that its heads do not divide, are stepped over.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from models.flops import flops_per_token
from models.shell import Shell
from models.state import state_bytes
from suite.errors import UsageError
from suite.plugin import Model, Task
from suite.spec import MATCHED_UNITS, Device, MatchedSize, Matching, MatchingPolicy, Precision, ShellSettings

_MAX_WIDTH = 1 << 16
_MAX_STEP = 256
"""Widths in a row that may not fit a model before none is looked for any further."""

_NEAR = 32
"""How far around a width others are looked at for a target that all models reach."""


@dataclass(frozen=True)
class Candidate:
    """A model on a task, of which the width is free."""

    model: Model
    task: Task
    shell: ShellSettings
    """The preset's: its depth is kept, its width is where the search begins."""
    precision: Precision
    device: Device

    def size(self, policy: MatchingPolicy, width: int) -> float:
        """What the policy counts at this width.

        Raises:
            UsageError: the model cannot have it, or does not say how many operations it does.
        """
        shell = self.shell.model_copy(update={"width": width})
        if policy == "state":
            # Not on the meta device: whether autocast makes a state smaller depends on where it lies.
            with FakeTensorMode(), torch.device(self.device):
                built = Shell(shell, self.task.vocab_size, self.model)
                with torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16"):
                    return state_bytes(built.initial_state(1, self.task.length))
        with torch.device("meta"):
            built = Shell(shell, self.task.vocab_size, self.model)
        if policy == "parameters":
            return built.num_non_embedding_parameters
        return flops_per_token(built.branches, self.task.length)


def match(candidates: Sequence[Candidate], matching: Matching, tolerance: float) -> list[MatchedSize]:
    """The width of each candidate, all of them on one task, whose size is nearest to the target.

    Raises:
        UsageError: a model reaches no size within `tolerance` of the target, as a share of it. Says which sizes it
            reaches, and a target near by that all models reach, if there is one.
    """
    searches = [_Search(candidate, matching.policy) for candidate in candidates]
    target = matching.target or searches[0].size_of_preset()
    matched = [search.nearest(target) for search in searches]
    for search, found in zip(searches, matched, strict=True):
        if not abs(found.residual) <= tolerance:
            raise UsageError(_miss(search, searches, target, tolerance, is_given=matching.target is not None))
    return matched


@dataclass
class _Search:
    """The sizes that a candidate reaches, by width; each is found once."""

    candidate: Candidate
    policy: MatchingPolicy
    _sizes: dict[int, float | None] = field(default_factory=dict)
    _misfit: UsageError | None = None
    """Why the last width that does not fit does not."""

    def size_at(self, width: int) -> float | None:
        """The size at this width; None if the model cannot have it."""
        if width not in self._sizes:
            try:
                self._sizes[width] = self.candidate.size(self.policy, width)
            except UsageError as error:
                self._sizes[width], self._misfit = None, error
        return self._sizes[width]

    def size_of_preset(self) -> float:
        """The size at the width of the preset, for the others to be matched to.

        Raises:
            UsageError: the model cannot have that width, or has no such size.
        """
        size = self.size_at(self.candidate.shell.width)
        if size is None and self._misfit is not None:
            raise self._misfit
        if not size:
            name = self.candidate.model.name
            raise UsageError(
                f"{name} has no {MATCHED_UNITS[self.policy]} to match the others to. Give --match {self.policy}=…"
            )
        return size

    def nearest(self, target: float) -> MatchedSize:
        """The width whose size is nearest to the target."""
        return min(self.neighbours(target), key=lambda found: abs(found.residual))

    def neighbours(self, target: float) -> list[MatchedSize]:
        """The greatest size below the target and the least one from it on, as far as there are such.

        Raises:
            UsageError: no width fits the model, or it does not tell its size.
        """
        below: int | None = None
        above = self._first_fitting(self.candidate.shell.width)
        while above is not None and self._is_below(above, target):
            below = above
            above = self._first_fitting(2 * above) if above < _MAX_WIDTH else None
        if below is None and above is None and self._misfit is not None:
            raise self._misfit
        # Of the widths between `low` and `high`, neither of them included, nothing is known yet.
        low, high = below or 0, above or 0
        while high - low > 1:
            middle = (low + high) // 2
            width = self._first_fitting(middle, before=high)
            if width is not None and self._is_below(width, target):
                below = low = width
            else:
                above, high = width or above, middle
        return [self._at(width, target) for width in (below, above) if width is not None]

    def near(self, width: int) -> list[float]:
        """The sizes at the widths around this one."""
        widths = range(max(1, width - _NEAR), width + _NEAR + 1)
        return [size for size in map(self.size_at, widths) if size]

    def _first_fitting(self, width: int, *, before: int | None = None) -> int | None:
        """The first width from this one on, and before another, that the model can have."""
        widths = range(width, width + _MAX_STEP if before is None else before)
        return next((fitting for fitting in widths if self.size_at(fitting) is not None), None)

    def _is_below(self, width: int, target: float) -> bool:
        size = self.size_at(width)
        return size is not None and size < target

    def _at(self, width: int, target: float) -> MatchedSize:
        candidate = self.candidate
        return MatchedSize(
            model=candidate.model.name,
            task=candidate.task.name,
            width=width,
            size=self.size_at(width) or 0,
            target=target,
        )


def _miss(search: _Search, searches: Sequence[_Search], target: float, tolerance: float, *, is_given: bool) -> str:
    """What cannot be matched, what comes nearest, and the ways out; `is_given`: the target is no model's."""
    name, policy = search.candidate.model.name, search.policy
    reached = ", ".join(f"{found.size:,.0f} at width {found.width:,}" for found in search.neighbours(target))
    common = _common_target(search, searches, target, tolerance)
    ways_out = ["another target" if common is None else f"--match {policy}={common:.0f}, which all of them reach"]
    if not is_given:
        ways_out.append("a larger shell.width, of which a step is a smaller share")
    wide_enough = math.ceil(100 * abs(search.nearest(target).residual)) / 100
    if wide_enough < 1:
        ways_out.append(f"--set preset.match_tolerance={wide_enough:g}")
    return (
        f"{name} has no width with {target:,.0f} {MATCHED_UNITS[policy]} to within {tolerance:.3g} on "
        f"{search.candidate.task.name}; nearest are {reached}. Use {', or '.join(ways_out)}"
    )


def _common_target(search: _Search, searches: Sequence[_Search], target: float, tolerance: float) -> float | None:
    """A size of this model, near the target, that all others reach too; None if there is none."""
    sizes = sorted(search.near(search.nearest(target).width), key=lambda size: abs(size / target - 1))
    for size in sizes:
        if all(abs(other.nearest(size).residual) <= tolerance for other in searches):
            return size
    return None
