"""What the checks of both contracts share: a violation that says whose it is, what was seen, where, and the promise."""

from __future__ import annotations

import functools
import inspect
import traceback
from collections.abc import Callable
from typing import NoReturn, TypeVar

from suite.errors import ContractViolation, SuiteError
from suite.plugin import Model, Task

Plugin = TypeVar("Plugin", Model, Task)


def claim(check: Callable[[Plugin], None]) -> Callable[[Plugin], None]:
    """Turns what a plugin raises of itself into a violation of the promise in the check's docstring."""

    @functools.wraps(check)
    def checked(plugin: Plugin) -> None:
        try:
            check(plugin)
        except SuiteError:
            raise
        except Exception as error:
            seen = f"{type(error).__name__}: {error} ({_place(error, plugin)})"
            raise ContractViolation(_violation(plugin, seen, str(check.__doc__))) from error

    return checked


def fail(plugin: Model | Task, seen: str, promised: str) -> NoReturn:
    """Raises the violation."""
    raise ContractViolation(_violation(plugin, seen, promised))


def _violation(plugin: Model | Task, seen: str, promised: str) -> str:
    return f"{plugin.name}: {seen}. Promised: {promised}"


def _place(error: Exception, plugin: Model | Task) -> str:
    """The last line that the error passed through, in the plugin's own file where it passed there."""
    frames = traceback.extract_tb(error.__traceback__)
    try:
        own_file = inspect.getfile(type(plugin))
    except (OSError, TypeError):
        own_file = None
    own = [frame for frame in frames if frame.filename == own_file]
    frame = (own or frames)[-1]
    return f"{frame.filename}, line {frame.lineno}"
