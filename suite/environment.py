"""The machine, the versions and the git state that a record is made with."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from suite.records import Environment

_DISTRIBUTIONS = (
    "seqsuite",
    "torch",
    "triton",
    "numpy",
    "numba",
    "flash-attn",
    "causal-conv1d",
    "mamba-ssm",
    "accelerated-scan",
    "mambapy",
    "datasets",
)


def describe_environment(device: str) -> Environment:
    """What a cell on `device` runs on; the GPU is described only if the cell uses it."""
    import torch

    gpu = torch.cuda.get_device_properties(0) if device == "cuda" else None
    commit, dirty = _git_state()
    return Environment(
        operating_system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        cpu=_cpu_name(),
        num_cores=os.cpu_count() or 1,
        num_threads=torch.get_num_threads(),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        gpu=gpu.name if gpu else None,
        gpu_memory_bytes=gpu.total_memory if gpu else None,
        gpu_driver=_gpu_driver() if gpu else None,
        versions=installed_versions(),
        git_commit=commit,
        git_dirty=dirty,
    )


@cache
def installed_versions() -> dict[str, str]:
    """Distribution -> version, of those that bear on results and are installed."""
    versions: dict[str, str] = {}
    for name in _DISTRIBUTIONS:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    if torch := sys.modules.get("torch"):
        # Its build (CPU, CUDA version) is in the module's own version only.
        versions["torch"] = str(torch.__version__)
        if torch.version.cuda:
            versions["cuda"] = str(torch.version.cuda)
            versions["cudnn"] = str(torch.backends.cudnn.version())
    return versions


@cache
def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


@cache
def _gpu_driver() -> str | None:
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        return str(pynvml.nvmlSystemGetDriverVersion())
    finally:
        pynvml.nvmlShutdown()


@cache
def _git_state() -> tuple[str | None, bool | None]:
    """Commit and whether tracked files differ from it, if the suite runs from a checkout of its own.

    Where the code was copied to a machine without its history, SUITE_GIT_COMMIT names the commit.
    """
    if commit := os.environ.get("SUITE_GIT_COMMIT"):
        return commit, None
    home = Path(__file__).resolve().parent.parent
    if not (home / ".git").exists():
        return None, None

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(home), *arguments], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    changes = git("status", "--porcelain", "--untracked-files=no")
    return commit, None if commit is None or changes is None else bool(changes)
