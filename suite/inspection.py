"""What is here: implementations, machine, and whether a plugin keeps its promises. For `list`, `doctor` and `check`."""

from __future__ import annotations

import importlib
import os
import pkgutil
import shutil
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import kernels
from kernels.dispatch import Operation
from suite.environment import describe_environment
from suite.errors import SuiteError
from suite.registry import Registry

_EXTRAS = {
    "flash_attn": "FlashAttention's own kernels (extra `flash`)",
    "datasets": "text from the Hugging Face hub or from local files (extra `datasets`)",
    "triton": "Triton kernels on a GPU",
    "mamba_ssm": "the official Mamba kernels, to compare with",
}


def operations() -> list[Operation]:
    """Every operation that has a choice of implementations."""
    found: list[Operation] = []
    for module in pkgutil.iter_modules(kernels.__path__, "kernels."):
        if module.ispkg:
            values = vars(importlib.import_module(module.name)).values()
            found += [value for value in values if isinstance(value, Operation)]
    return found


def implementation_rows() -> list[tuple[str, str, str, str, str]]:
    """(operation, device, what auto takes, what else is there, what is not and why) for the devices of this machine."""
    import torch

    devices = [torch.device("cuda")] if torch.cuda.is_available() else []
    rows: list[tuple[str, str, str, str, str]] = []
    for operation in operations():
        for device in [*devices, torch.device("cpu")]:
            availability = operation.availability(device)
            present = [name for name, reason in availability.items() if reason is None]
            absent: dict[str, list[str]] = {}
            for name, reason in availability.items():
                if reason is not None:
                    absent.setdefault(reason, []).append(name)
            why = "\n".join(f"{', '.join(names)}: {reason}" for reason, names in absent.items())
            first, *others = present or ["nothing"]
            rows.append((operation.name, device.type, first, ", ".join(others), why))
    return rows


def examine_machine() -> Iterator[tuple[str, str]]:
    """What bears on a run here: hardware, versions, optional packages, room on the disk."""
    import torch

    has_gpu = torch.cuda.is_available()
    environment = describe_environment("cuda" if has_gpu else "cpu")
    yield "System", f"{environment.operating_system}, Python {environment.python}"
    yield "CPU", f"{environment.cpu}, {len(os.sched_getaffinity(0))} cores usable"
    yield "Memory", f"{environment.memory_bytes / 2**30:.0f} GiB"
    if environment.gpu is not None and environment.gpu_memory_bytes is not None:
        yield (
            "GPU",
            f"{environment.gpu}, {environment.gpu_memory_bytes / 2**30:.0f} GiB, driver {environment.gpu_driver}",
        )
    else:
        yield "GPU", _why_no_gpu()
    yield from environment.versions.items()
    for module, purpose in _EXTRAS.items():
        if find_spec(module) is None:
            yield module, f"not installed: {purpose}"
    yield "Disk", f"{shutil.disk_usage(Path.cwd()).free / 2**30:.0f} GiB free here"


def check_plugin(path: Path) -> Iterator[tuple[str, str | None]]:
    """Each promise of each plugin in a file, and how it is broken (None: it is kept).

    Raises:
        PluginError: the file cannot be imported or holds no plugin.
    """
    from suite.contracts.model import MODEL_CHECKS
    from suite.contracts.task import TASK_CHECKS

    built_in, registry = Registry(), Registry([path])
    for name in sorted(set(registry.model_names()) - set(built_in.model_names())):
        for model_check in MODEL_CHECKS:
            yield _claim(name, model_check), _violation(lambda: model_check(registry.model(name)()))  # noqa: B023
    for name in sorted(set(registry.task_names()) - set(built_in.task_names())):
        for task_check in TASK_CHECKS:
            yield _claim(name, task_check), _violation(lambda: task_check(registry.task(name)()))  # noqa: B023


def _claim(name: str, check: Callable[..., None]) -> str:
    return f"{name}: {(check.__doc__ or '').strip().partition(chr(10))[0]}"


def _violation(check: Callable[[], None]) -> str | None:
    try:
        check()
    except SuiteError as violation:
        return str(violation)
    return None


def _why_no_gpu() -> str:
    import torch

    if torch.version.cuda is None:
        return f"none usable: torch {torch.__version__} is built without CUDA"
    return (
        f"none found by torch {torch.__version__} (CUDA {torch.version.cuda}); `nvidia-smi` shows what the driver sees"
    )
