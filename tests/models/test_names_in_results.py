"""Names with a colon or a plus go through settings, results and reports as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from reports import build_report, render
from suite.plan import Request, parse_assignments, plan, read_experiment
from suite.records import Failure, Record
from suite.registry import Registry
from suite.store import Store

MODELS = ("h3:s4d", "transformer++", "hybrid")


def test_settings_are_read_from_the_command_line_and_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "experiment.toml"
    file.write_text('["h3:s4d"]\nstate_size = 8\n[hybrid]\npattern = "mamba*7,transformer"\n')
    from_file = read_experiment(file)["overrides"]
    from_command_line = parse_assignments(
        ["h3:s4d.state_size=8", "hybrid.pattern=mamba*7,transformer", "transformer++.num_heads=2"]
    )
    assert from_command_line == from_file | {"transformer++": {"num_heads": 2}}
    request = Request(models=MODELS, tasks=("induction_heads",), device="cpu", overrides=from_command_line)
    settings = {cell.model.name: cell.model.settings for cell in plan(request, Registry()).cells}
    assert settings["h3:s4d"]["state_size"] == 8
    assert settings["transformer++"]["num_heads"] == 2
    assert settings["hybrid"]["pattern"] == "mamba*7,transformer"


@pytest.mark.parametrize("format_", ["text", "markdown", "csv", "latex", "html"])
def test_every_report_shows_the_names(tmp_path: Path, format_: str) -> None:
    spec = plan(Request(models=MODELS, tasks=("induction_heads",), device="cpu", seeds=(0,)), Registry())
    store = Store(tmp_path)
    with store.writing():
        store.write_spec(spec)
        for cell in spec.cells:
            failure = Failure(kind="diverged", message="the loss became nan", step=3)
            store.add(
                Record(
                    cell=cell,
                    attempt="first",
                    started_at="2026-01-01T00:00:00.000+00:00",
                    duration_seconds=1.0,
                    failure=failure,
                    environment=None,
                )
            )
    shown = render(build_report(store.records(), store.spec()), format_)
    for name in MODELS:
        assert name in shown
