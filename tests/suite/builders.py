"""Small cells, records and commands for the tests of the engine."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

from suite.records import Failure, Record
from suite.spec import Budget, Cell, Choice, RunSpec, ShellSettings

FAULTY = Path(__file__).parent / "plugins" / "faulty.py"
FAULTY_SHA256 = hashlib.sha256(FAULTY.read_bytes()).hexdigest()


def cell(seed: int = 0, **changes: Any) -> Cell:
    """An accuracy cell of the faulty model on the echo task."""
    values: dict[str, Any] = {
        "kind": "accuracy",
        "model": Choice(name="faulty", settings={"fault": "none"}, source_sha256=FAULTY_SHA256),
        "task": Choice(name="echo", settings={"length": 8, "seconds": 0.0}, source_sha256=FAULTY_SHA256),
        "shell": ShellSettings(width=8, num_layers=1),
        "precision": "fp32",
        "device": "cpu",
        "budget": Budget(steps=4, batch_size=4, evaluate_every=2, validation_batches=1, test_batches=1),
        "seed": seed,
        "learning_rate": 1e-2,
    }
    return Cell(**(values | changes))


def record(of: Cell | None = None, attempt: str = "first", **changes: Any) -> Record:
    """A record of a failure, the least that a record can be."""
    values: dict[str, Any] = {
        "cell": of or cell(),
        "attempt": attempt,
        "started_at": "2026-01-01T00:00:00.000+00:00",
        "duration_seconds": 1.0,
        "environment": None,
        "failure": Failure(kind="error", message="it broke"),
    }
    return Record(**(values | changes))


def run_spec(*cells: Cell) -> RunSpec:
    return RunSpec(models=("faulty",), tasks=("echo",), preset="quick", plugins=(str(FAULTY),), cells=cells)


def suite(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs the command in a process of its own, as a user does."""
    return subprocess.run(suite_command(*arguments), capture_output=True, text=True, timeout=120, **options)


def suite_command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "suite", *map(str, arguments)]
