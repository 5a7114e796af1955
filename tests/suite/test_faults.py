"""Whatever a cell does, it becomes a row with a reason, and the cells beside it finish."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from suite.errors import DeviceError
from suite.executors.local import Advanced, Ended, LocalExecutor, PutOff, Started
from suite.records import Record
from suite.spec import Budget, Cell, Choice
from tests.suite.builders import FAULTY, FAULTY_SHA256, cell


def _faulty(fault: str, seed: int = 0, **changes: Any) -> Cell:
    model = Choice(name="faulty", settings={"fault": fault}, source_sha256=FAULTY_SHA256)
    return cell(seed, model=model, **changes)


def _run(*cells: Cell, num_jobs: int = 1, silence_seconds: float = 60.0) -> dict[str, Record]:
    executor = LocalExecutor(num_jobs=num_jobs, silence_seconds=silence_seconds, plugins=(str(FAULTY),))
    return {event.record.cell_id: event.record for event in executor.execute(cells) if isinstance(event, Ended)}


def test_every_fault_is_told_apart_and_the_others_finish() -> None:
    expected = {
        "raise": ("error", "RuntimeError: the branch broke"),
        "memory": ("out_of_memory", "can't allocate memory"),
        "nan": ("diverged", "the loss became nan at step 1"),
        "exit": ("crashed", "exited with code 3 without a result"),
        "segfault": ("crashed", "died of SIGSEGV"),
        "kill": ("crashed", "killed (SIGKILL)"),
    }
    faulty = {fault: _faulty(fault) for fault in expected}
    sound = [_faulty("none", seed) for seed in range(len(expected))]
    records = _run(*(each for pair in zip(faulty.values(), sound, strict=True) for each in pair), num_jobs=2)
    for fault, (kind, message) in expected.items():
        failure = records[faulty[fault].id].failure
        assert failure is not None
        assert failure.kind == kind
        assert message in failure.message
    assert all(records[each.id].measurement is not None for each in sound)
    diverged = records[faulty["nan"].id].failure
    assert diverged is not None
    assert diverged.step == 1
    raised = records[faulty["raise"].id].failure
    assert raised is not None
    assert raised.details is not None
    assert "in two lines" in raised.details


@pytest.mark.parametrize(
    ("said", "wanted"), [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)]
)
def test_threads_that_wait_give_up_their_core_if_the_user_does_not_say_otherwise(
    said: dict[str, str], wanted: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    failure = _run(asking := _faulty("environment"))[asking.id].failure
    assert failure is not None
    assert f"GOMP_SPINCOUNT is {wanted}" in failure.message


def test_a_cell_that_hangs_is_given_up_and_the_next_one_runs() -> None:
    hanging, sound = _faulty("hang"), _faulty("none")
    records = _run(hanging, sound, silence_seconds=8.0)
    failure = records[hanging.id].failure
    assert failure is not None
    assert failure.kind == "timed_out"
    assert "no sign of life for 8 s" in failure.message
    assert records[sound.id].measurement is not None


def test_a_plugin_that_changed_since_the_plan_is_not_run() -> None:
    planned = cell(model=Choice(name="faulty", settings={"fault": "none"}, source_sha256="0" * 64))
    failure = _run(planned)[planned.id].failure
    assert failure is not None
    assert "faulty.py has changed since the run was planned" in failure.message


def test_a_record_longer_than_a_pipe_holds_arrives_whole() -> None:
    """Its end must not wait in a buffer that nobody listens to."""
    budget = Budget(steps=600, batch_size=1, evaluate_every=1, validation_batches=1, test_batches=1)
    long = _faulty("none", budget=budget)
    record = _run(long, silence_seconds=20.0)[long.id]
    assert len(record.model_dump_json()) > 1 << 17
    assert record.measurement is not None


def test_what_a_plugin_prints_does_not_disturb_the_conversation() -> None:
    printing = _faulty("print")
    assert _run(printing)[printing.id].measurement is not None


def test_cost_cells_run_after_the_others_and_never_beside_one() -> None:
    cost = {"kind": "cost", "budget": None, "seed": None, "learning_rate": None, "batch_size": 2}
    cells = [
        _faulty("none", **cost, length=4),
        _faulty("none", 0),
        _faulty("none", 1),
        _faulty("none", **cost, length=8),
    ]
    at_work: set[str] = set()
    order: list[str] = []
    for event in LocalExecutor(num_jobs=2, silence_seconds=60.0, plugins=(str(FAULTY),)).execute(cells):
        match event:
            case Started(started):
                if started.kind == "cost":
                    assert not at_work
                at_work.add(started.id)
                order.append(started.kind)
            case Ended(record):
                at_work.remove(record.cell_id)
            case Advanced(advanced, fraction, _):
                assert advanced.id in at_work
                assert fraction is None or 0 <= fraction <= 1
    assert order == ["accuracy", "accuracy", "cost", "cost"]


@pytest.mark.parametrize("kind", ["accuracy", "cost"])
def test_a_record_says_what_really_ran_and_where(kind: str) -> None:
    cost: dict[str, Any] = {
        "kind": "cost",
        "budget": None,
        "seed": None,
        "learning_rate": None,
        "length": 8,
        "batch_size": 2,
    }
    asked = _faulty("none", **(cost if kind == "cost" else {}))
    record = _run(asked)[asked.id]
    assert record.environment is not None
    assert record.environment.versions["torch"]
    assert record.environment.num_threads >= 1
    measurement = record.measurement
    assert measurement is not None
    names = [name for group in measurement.parameter_groups for name in group["names"]]
    assert "branches.0.gain" in names
    assert len(names) == len(set(names))


def test_what_fails_beside_others_on_a_gpu_runs_again_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A service that does not end when asked to, and must be ended.
    script = 'test "$1" = -f || exit 0; touch "$CUDA_MPS_PIPE_DIRECTORY/control"; sleep 3600'
    _put_on_path(tmp_path, monkeypatch, script)
    monkeypatch.setattr("suite.executors.gpus._END_SECONDS", 0.1)
    broken, sound = _faulty("exit"), [_faulty("none", seed) for seed in range(3)]
    executor = LocalExecutor(num_jobs=2, silence_seconds=60.0, plugins=(str(FAULTY),), gpus=("0",))
    events = list(executor.execute([broken, *sound]))
    assert [event.cell for event in events if isinstance(event, PutOff)] == [broken]
    assert [event.cell for event in events if isinstance(event, Started)].count(broken) == 2
    records = {event.record.cell_id: event.record for event in events if isinstance(event, Ended)}
    assert set(records) == {broken.id, *(each.id for each in sound)}
    assert records[broken.id].failure is not None
    assert events.index(next(event for event in events if isinstance(event, PutOff))) < len(events) - 1
    assert isinstance(events[-1], Ended)
    assert events[-1].record.cell_id == broken.id, "it is the last to end"


def test_a_service_that_does_not_start_is_an_error_that_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _put_on_path(tmp_path, monkeypatch, "exit 1")
    executor = LocalExecutor(num_jobs=2, silence_seconds=60.0, gpus=("0",))
    with pytest.raises(DeviceError, match=r"does not start.*--jobs 1"):
        list(executor.execute([_faulty("none", seed) for seed in range(2)]))


def test_workers_are_spread_over_the_gpus() -> None:
    executor = LocalExecutor(num_jobs=2, silence_seconds=60.0, plugins=(str(FAULTY),), gpus=("GPU-a", "GPU-b"))
    cells = [_faulty("gpu", seed) for seed in range(2)]
    failures = [event.record.failure for event in executor.execute(cells) if isinstance(event, Ended)]
    assert {failure.message for failure in failures if failure} == {"RuntimeError: GPU-a", "RuntimeError: GPU-b"}


def _put_on_path(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Something that is called like the service's program and does as told."""
    program = folder / "nvidia-cuda-mps-control"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
