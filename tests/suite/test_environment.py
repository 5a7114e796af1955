"""A record says what it was made with."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from suite import environment

HOME = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SUITE_GIT_COMMIT", raising=False)
    environment._git_state.cache_clear()


def test_the_commit_is_the_checkouts_own() -> None:
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=HOME, capture_output=True, text=True, check=True)
    assert environment.describe_environment("cpu").git_commit == head.stdout.strip()


def test_a_copy_without_history_is_told_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUITE_GIT_COMMIT", "0123abc")
    described = environment.describe_environment("cpu")
    assert described.git_commit == "0123abc"
    assert described.git_dirty is None


def test_versions_hold_what_bears_on_a_result() -> None:
    versions = environment.describe_environment("cpu").versions
    assert {"seqsuite", "torch", "numpy", "numba"} <= set(versions)
