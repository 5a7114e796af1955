"""What every test stands on: one thread, types checked at run time, no results in the working directory."""

from __future__ import annotations

import os

# Before torch and numba are imported: the tests of two processes must not fight for the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import jaxtyping
import pytest
from hypothesis import settings

settings.register_profile("suite", deadline=None, max_examples=50)
settings.load_profile("suite")

# The shapes in the models' signatures are promises; here they are checked at every call.
jaxtyping.install_import_hook("models", "beartype.beartype")


@pytest.fixture(autouse=True)
def _own_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
