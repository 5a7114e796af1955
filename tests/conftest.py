"""What every test stands on: one thread, types checked at run time, no results in the working directory."""

from __future__ import annotations

import os

# Before torch and numba are imported: the tests of two processes must not fight for the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
from hypothesis import settings

settings.register_profile("suite", deadline=None, max_examples=50)
settings.load_profile("suite")

# The shapes in the models' signatures are promises; here they are checked at every call.
jaxtyping.install_import_hook("models", "beartype.beartype")

_checked = jaxtyping.jaxtyped


def _checked_if_lasting_or_shaped(*, typechecker: Callable[..., Any]) -> Callable[[Any], Any]:
    """What the hook decorates with, but for functions made in calls of others that promise no shape.

    Those would be compiled into a check again and again: more than half the time of the models' tests.
    """

    def decorate(function: Any) -> Any:
        is_passing = "<locals>" in function.__qualname__
        if is_passing and not any("'" in annotation for annotation in function.__annotations__.values()):
            return function
        return _checked(typechecker=typechecker)(function)

    return decorate


jaxtyping.jaxtyped = _checked_if_lasting_or_shaped


@pytest.fixture(autouse=True)
def _own_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
