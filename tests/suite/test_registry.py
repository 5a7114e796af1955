"""Names lead to plugins; clashes, broken files and strangers are named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from suite.errors import PluginError, UsageError
from suite.registry import Registry
from tests.suite.builders import FAULTY

HOME = Path(__file__).parent.parent.parent


def _file(folder: Path, content: str) -> Path:
    path = folder / "mine.py"
    path.write_text(content)
    return path


def test_the_built_in_plugins_are_found() -> None:
    registry = Registry()
    assert {"mamba", "s4", "transformer", "lstm", "gru"} <= set(registry.model_names())
    assert {"selective_copying", "induction_heads", "long_range_lm"} <= set(registry.task_names())


def test_listing_names_imports_neither_torch_nor_a_plugin() -> None:
    code = """
import sys
from suite.registry import Registry
assert "mamba" in Registry().model_names()
assert "h3:s4d" in Registry().composition_names()
print([name for name in sys.modules if name.split(".")[0] in {"torch", "models", "tasks", "pandas", "numba"}])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=HOME, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_name_that_nobody_knows_gets_the_nearest_one() -> None:
    with pytest.raises(UsageError, match=r"No model is called 'mamab'\. Did you mean 'mamba'\? Known: .*gru"):
        Registry().model("mamab")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("h3:s4", r"No mixer is called 's4' in the composition 'h3:s4'\. Did you mean 's4d'\? Known: attention, "),
        ("mambo:s6", r"No block is called 'mambo' in the composition 'mambo:s6'\. Did you mean 'mamba'\? Known: h3, "),
        ("h3:", "No mixer is called ''"),
        (":s6", "No block is called ''"),
        ("h3:s6:s6", "No mixer is called 's6:s6'"),
    ],
)
def test_a_composition_of_parts_that_nobody_knows_gets_the_nearest_ones(name: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Registry().model(name)


def test_no_plugin_can_take_the_name_of_a_composition(tmp_path: Path) -> None:
    content = "from suite import Model\nclass Mine(Model):\n    name = 'h3:s6'"
    with pytest.raises(PluginError, match="cannot be called 'h3:s6'"):
        Registry([_file(tmp_path, content)])


def test_a_single_file_brings_its_models_and_tasks() -> None:
    registry = Registry([FAULTY])
    assert registry.model("faulty").name == "faulty"
    assert registry.task("echo").name == "echo"
    digest = registry.entry("task", "echo").source_sha256
    assert digest is not None
    assert len(digest) == 64


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("import not_there_at_all", r"ModuleNotFoundError: .*not_there_at_all.*\(line 1\)"),
        ("\n\n1 / 0", r"ZeroDivisionError: .*\(line 3\)"),
        ("def (", r"SyntaxError: .*\(line 1\)"),
        ("raise SystemExit(0)", "SystemExit"),
        ("x = 1", "defines no model and no task"),
        (
            "from suite import Task\nclass Mine(Task): ...",
            r'Mine in .* has no name\. Give the class a line `name = "…"`',
        ),
        (
            "from suite import Task\nclass Mine(Task):\n    name = 'long_range_lm'",
            r"tasks\.long_range_lm.*mine\.py.*Rename",
        ),
    ],
)
def test_a_plugin_that_does_not_work_is_one_clear_error(tmp_path: Path, content: str, said: str) -> None:
    with pytest.raises(PluginError, match=said):
        Registry([_file(tmp_path, content)])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("from suite import Task\nclass Mine(Task):\n    name = 'mine'", "lacks baseline, length, sample, vocab_size"),
        ("from suite import Model\nclass Mine(Model):\n    name = 'mine'", "lacks branches"),
        ("from suite import Task\nclass Mine(Task):\n    name = 'My Task'", "cannot be called 'My Task'"),
        ("from suite import Task\nclass Mine(Task):\n    name = 'budget'", "cannot be called 'budget'"),
        (
            "from suite import Task\nclass Mine(Task):\n    name = 'gru'",
            "the model from models.presets and the task from",
        ),
    ],
)
def test_a_plugin_that_is_incomplete_or_misnamed_says_what_it_lacks(tmp_path: Path, content: str, said: str) -> None:
    def load() -> None:
        registry = Registry([_file(tmp_path, content)])
        (registry.model if "Model" in content else registry.task)("mine")

    with pytest.raises(PluginError, match=said):
        load()


def test_a_plugin_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"There is no plugin file .*gone\.py"):
        Registry([tmp_path / "gone.py"])


def test_an_installed_package_brings_plugins_by_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "friend-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: friend\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[suite.tasks]\nfriendly = friend:Friendly\nlost = friend:Gone\n")
    source = FAULTY.read_text().replace("class Echo", "class Friendly").replace('name = "echo"', 'name = "friendly"')
    (tmp_path / "friend.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry()
    assert registry.task("friendly").name == "friendly"
    with pytest.raises(PluginError, match=r"The task 'lost' from friend \(friend:Gone\) cannot be imported"):
        registry.task("lost")


def test_a_folder_of_the_users_own_does_not_pass_for_the_suites(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("")
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(HOME)!r}]; import suite"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert str(tmp_path / "models" / "__init__.py") in done.stderr
    assert str(HOME / "models") in done.stderr
    assert "Rename that folder" in done.stderr
