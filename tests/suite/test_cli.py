"""The command as a user meets it: lean, clear about mistakes, and no traceback."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from suite.store import Store
from tests.suite.builders import FAULTY, cell, record, run_spec, suite, suite_command

HOME = Path(__file__).parent.parent.parent

BEHIND_TYPER = {
    "annotated_doc", "click", "markdown_it", "mdurl", "pygments", "rich", "shellingham", "typer", "typing_extensions",
}  # fmt: skip
"""The command line and what it stands on."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder of a small run: two seeds of a sound model, and the cost of it."""
    out = tmp_path_factory.mktemp("cli") / "results"
    done = suite(
        "run", "--models", "faulty", "--tasks", "echo", "--plugin", FAULTY, "--seeds", "0,1", "--device", "cpu",
        "--set", "preset.cost_lengths=[8]", "--out", out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"Report: {out / 'report.html'}" in done.stdout
    return out


def test_help_imports_nothing_but_what_draws_it() -> None:
    code = """
import sys
before = set(sys.modules)
sys.argv = ["suite", "--help"]
from suite.cli import app
try:
    app()
except SystemExit:
    pass
print("imported:", *sorted({name.partition(".")[0] for name in set(sys.modules) - before} - sys.stdlib_module_names))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=HOME, capture_output=True, text=True, check=True)
    imported = done.stdout.splitlines()[-1].split()
    assert imported[0] == "imported:"
    assert {"suite", "typer"} <= set(imported[1:]) <= {"suite"} | BEHIND_TYPER


def test_help_is_little_work() -> None:
    """Processor time beside that of an empty interpreter, for a busy machine slows down both."""
    pairs = [(_cpu_seconds(sys.executable, "-c", "pass"), _cpu_seconds(*suite_command("--help"))) for _ in range(5)]
    empty, of_help = (min(seconds) for seconds in zip(*pairs, strict=True))
    assert of_help < 15 * empty, f"{of_help:.3f} s, and {empty:.3f} s for an interpreter that does nothing"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "--models", "mamab"], "No model is called 'mamab'. Did you mean 'mamba'?"),
        (["run", "--tasks", "induction"], "No task is called 'induction'. Did you mean 'induction_heads'?"),
        (["run", "--preset", "qick"], "No preset is called 'qick' for the task"),
        (["run", "--set", "mamba.state_sise=8"], "Did you mean 'state_size'?"),
        (["run", "--set", "mamba.state_size=-8"], "mamba.state_size = -8"),
        (["run", "--set", "steps=8"], "expected section.key=value"),
        (["run", "--seeds", "one"], "--seeds one: expected whole numbers"),
        (["run", "--tasks", "pathfinder", "--set", "pathfinder.size=8"], "had room for two contours of 4 dashes"),
        (
            [
                "run",
                "--tasks",
                "long_range_lm",
                "--set",
                "long_range_lm.parts=[]",
                "--set",
                "long_range_lm.corpus=/gone",
            ],
            "There is no corpus at /gone",
        ),
        (["run", "--match", "width"], "No matching policy is called 'width'. Known: flops, parameters, state"),
        (["plan", "--set", "preset.learning_rates=[]"], "preset.learning_rates = []"),
        (["run", "--device", "cuda"], "torch finds none"),
        (["run", "--out", "/dev/null/results"], "cannot be written to /dev/null/results"),
        (["run", "--plugin", "gone.py"], "There is no plugin file"),
        (["run", "gone.toml"], "gone.toml cannot be read"),
        (["report", "gone"], "gone is not a results folder"),
        (["compare", "gone", "gone"], "gone is not a results folder"),
        (["check", "gone.py"], "There is no plugin file"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(arguments: list[str], said: str) -> None:
    if "cuda" in arguments and _has_gpu():
        pytest.skip("this machine has the GPU that the test wants missing")
    done = suite(*arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not Path("results").exists(), "bad input must not leave a results folder behind"


@pytest.mark.parametrize("arguments", [["run", "--modles", "mamba"], ["rum"], ["report", "--format", "pdf"]])
def test_a_mistyped_option_or_command_is_exit_code_2_too(arguments: list[str]) -> None:
    done = suite(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_an_installed_command_of_that_name_exists() -> None:
    assert 'suite = "suite.cli:main"' in (HOME / "pyproject.toml").read_text()


@pytest.mark.parametrize("name", ["text", "markdown", "latex"])
def test_a_report_names_what_ran(finished: Path, name: str) -> None:
    done = suite("report", finished, "--format", name)
    assert done.returncode == 0, done.stderr
    assert "faulty" in done.stdout
    assert "echo" in done.stdout


def test_a_folder_of_another_run_is_named_before_its_report_is_replaced(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "results"
    shutil.copytree(finished, out)
    arguments = ["run", "--models", "faulty", "--tasks", "echo", "--plugin", FAULTY, "--device", "cpu", "--out", out]
    same = suite(*arguments, "--seeds", "0", "--measure", "accuracy")
    assert "held another run" not in same.stdout
    other = suite(*arguments, "--seeds", "7", "--measure", "accuracy")
    assert f"{out} held another run: 1 model × 1 task, preset quick. Its records stay" in other.stdout
    assert len(Store(out).records()) == len(Store(finished).records()) + 1


def test_a_csv_report_can_be_read_by_a_program(finished: Path) -> None:
    done = suite("report", finished, "--format", "csv")
    rows = list(csv.reader(io.StringIO(done.stdout)))
    assert any("faulty" in row for row in rows)


def test_an_html_report_is_written_where_it_was_asked_for(finished: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert suite("report", finished, "--format", "html", "--out", page).returncode == 0
    assert page.read_text().startswith("<!doctype html>")


def test_a_report_that_cannot_be_written_says_so(finished: Path) -> None:
    done = suite("report", finished, "--format", "html", "--out", "/dev/null/page.html")
    assert done.returncode == 2
    assert "cannot be written to /dev/null/page.html" in done.stderr


def test_a_damaged_record_is_named_with_the_way_out(tmp_path: Path) -> None:
    store = Store(tmp_path / "results")
    with store.writing():
        store.write_spec(run_spec(cell()))
        store.add(record())
    (path,) = (store.folder / "records").iterdir()
    path.write_text(path.read_text().replace("it broke", "it works"))
    done = suite("report", store.folder)
    assert done.returncode == 2
    assert f"{path} is damaged" in done.stderr
    assert "Delete it and run the same command again" in done.stderr


def test_two_folders_are_compared(finished: Path) -> None:
    done = suite("compare", finished, finished)
    assert done.returncode == 0, done.stderr
    assert "faulty" in done.stdout


def test_list_shows_models_tasks_and_what_runs_here() -> None:
    done = suite("list", "--plugin", FAULTY, env=os.environ | {"COLUMNS": "200"})
    assert done.returncode == 0, done.stderr
    for word in ("mamba", "transformer", "selective_copying", "echo", "faulty", "selective_scan", "quick"):
        assert word in done.stdout


def test_a_grid_is_extended_until_the_same_command_finds_nothing_left_to_do(tmp_path: Path) -> None:
    command = [
        "run", "--models", "faulty", "--tasks", "echo", "--plugin", FAULTY, "--device", "cpu", "--measure", "accuracy",
        "--set", "preset.learning_rates=[1e-4, 1e-3]", "--set", "preset.max_extensions=2", "--out", tmp_path / "out",
    ]  # fmt: skip
    done = suite(*command)
    assert done.returncode == 0, done.stderr
    assert "The best learning rate is at the edge of the grid; 1 cell more: faulty on echo at 0.01." in done.stdout
    assert "3 cells, 3 already done" in suite(*command).stdout
    assert {each.cell.learning_rate for each in Store(tmp_path / "out").records()} == {1e-4, 1e-3, 1e-2}


def test_a_plan_counts_and_stores_nothing(tmp_path: Path) -> None:
    done = suite(
        "plan", "--models", "faulty,gru", "--tasks", "echo", "--plugin", FAULTY, "--seeds", "0,1,2", "--device", "cpu",
        "--match", "parameters=500", "--set", "preset.match_tolerance=0.1", "--jobs", "2", "--no-measure",
        "--set", "preset.learning_rates=[1e-3, 1e-2]", "--set", "preset.max_extensions=2",
        cwd=tmp_path, env=os.environ | {"COLUMNS": "200", "PYTHONPATH": str(HOME)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(r"echo +│ faulty +│ +7 │ +24 │ +768 ", done.stdout)
    assert re.search(r"all +│ +│ +14 │ +48 │ +1.54k ", done.stdout)
    assert "14 cells on cpu in fp32, 2 accuracy cells at a time." in done.stdout
    assert "Up to 12 cells more" in done.stdout
    assert "Matched by non-embedding parameters" in done.stdout
    assert not list(tmp_path.iterdir())


def test_doctor_shows_the_machine() -> None:
    done = suite("doctor", env=os.environ | {"COLUMNS": "200"})
    assert done.returncode == 0, done.stderr
    for word in ("torch", "CPU", "GPU", "Memory", "Python"):
        assert word in done.stdout


@pytest.mark.parametrize("example", ["reverse_copy.py", "running_mean.py"])
def test_check_passes_the_examples(example: str) -> None:
    done = suite("check", HOME / "docs" / "examples" / example)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Every promise is kept" in done.stdout


def test_check_fails_a_broken_task(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    text = (HOME / "docs" / "examples" / "reverse_copy.py").read_text()
    broken.write_text(re.sub(r"rng\.integers", "np.random.default_rng().integers", text))
    done = suite("check", broken)
    assert done.returncode == 1
    assert "✗" in done.stdout
    assert "Traceback" not in done.stderr


def test_a_terminal_sees_bars_and_the_time_left(tmp_path: Path) -> None:
    said = _in_a_terminal(
        "run", "--models", "faulty", "--tasks", "echo", "--plugin", FAULTY, "--seeds", "0,1,2", "--device", "cpu",
        "--jobs", "1", "--measure", "accuracy", "--set", "echo.seconds=0.1", "--out", tmp_path / "results", width=160,
    )  # fmt: skip
    assert "3 cells" in said
    assert "1 done" in said
    assert "loss" in said
    assert "left" in said
    assert "✓ faulty · echo · seed 2" in said


@pytest.mark.parametrize("width", [80, 140])
def test_a_report_is_as_wide_as_the_terminal(finished: Path, width: int) -> None:
    lines = _in_a_terminal("report", finished, width=width).splitlines()
    assert max(len(line) for line in lines if not line.startswith("    ")) in range(width - 8, width + 1)


def test_the_record_on_disk_is_plain_json_without_nan(finished: Path) -> None:
    for path in (finished / "records").iterdir():

        def refuse(name: str) -> None:
            raise AssertionError(f"{name} in a record")

        json.loads(path.read_text(), parse_constant=refuse)


def _cpu_seconds(*command: str) -> float:
    """What the processor worked for it, waiting left out."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True, cwd=HOME)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _in_a_terminal(*arguments: object, width: int) -> str:
    """What a person sees of a command that ends well, in a pseudo-terminal and without escape sequences."""
    leader, follower = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": str(width), "LINES": "40"}
    process = subprocess.Popen(
        suite_command(*arguments), stdin=follower, stdout=follower, stderr=follower, env=environment
    )
    os.close(follower)
    seen = b""
    while True:
        try:
            chunk = os.read(leader, 1 << 16)
        except OSError:  # the other end is closed: the command has ended
            break
        seen += chunk
    os.close(leader)
    assert process.wait() == 0
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode())


def _has_gpu() -> bool:
    return torch.cuda.is_available()
