"""The floors of the house hold, and what is installed is the whole of it."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

HOME = Path(__file__).parent.parent.parent


def test_nothing_points_back_up() -> None:
    done = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"], cwd=HOME, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_what_reads_results_imports_no_torch() -> None:
    code = "import sys, reports, suite.store, suite.records, suite.spec, suite.cli; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=HOME, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_wheel_holds_everything_that_runs(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(HOME)]
    subprocess.run(build, check=True, capture_output=True, text=True)
    (wheel,) = tmp_path.glob("seqsuite-*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    tracked = subprocess.run(["git", "ls-files"], cwd=HOME, capture_output=True, text=True, check=True).stdout.split()
    packages = ("suite/", "models/", "kernels/", "tasks/", "reports/")
    missing = [path for path in tracked if path.startswith(packages) and path not in packed]
    assert not missing
    assert not [name for name in packed if name.startswith("tests/")]
