"""The GPUs of this machine, and the service that lets several processes work on one of them at the same moment."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from suite.errors import DeviceError

_CONTROL = "nvidia-cuda-mps-control"
_START_SECONDS = 10.0
_END_SECONDS = 10.0


def visible_gpus() -> tuple[str, ...]:
    """The GPUs that torch sees, as CUDA_VISIBLE_DEVICES calls each."""
    import torch

    num_gpus = torch.cuda.device_count()
    asked = os.environ.get("CUDA_VISIBLE_DEVICES")
    return tuple(asked.split(",")[:num_gpus]) if asked else tuple(str(index) for index in range(num_gpus))


def can_be_shared() -> bool:
    """Whether the service is installed."""
    return shutil.which(_CONTROL) is not None


@contextlib.contextmanager
def multi_process_service() -> Iterator[Mapping[str, str]]:
    """NVIDIA's multi-process service while inside; gives the environment by which processes join it.

    Without it, processes on a GPU take turns of milliseconds and one small kernel has the whole GPU. The service is a
    daemon of ours alone, in a folder of its own, and changes no setting of the GPU. One that is there is joined.

    Raises:
        DeviceError: it does not start.
    """
    if "CUDA_MPS_PIPE_DIRECTORY" in os.environ:
        yield {}
        return
    with tempfile.TemporaryDirectory(prefix="suite-mps-") as folder:
        joined = {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
        # Of a daemon that sees some of the GPUs, their names would be others.
        environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"} | joined
        daemon = subprocess.Popen(
            [sys.executable, "-P", "-m", "suite.lifeline", _CONTROL, "-f"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env=environment,
        )
        try:
            _await(Path(folder) / "control", daemon)
            yield joined
        finally:
            with contextlib.suppress(OSError, subprocess.SubprocessError):
                subprocess.run([_CONTROL], input=b"quit\n", env=environment, timeout=_END_SECONDS, check=False)
                daemon.wait(_END_SECONDS)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(daemon.pid, signal.SIGKILL)
            daemon.wait()


def _await(pipe: Path, daemon: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not pipe.exists():
        if daemon.poll() is not None or time.monotonic() > deadline:
            raise DeviceError(
                f"{_CONTROL} does not start, and without it cells on a GPU only take turns. Use --jobs 1 for each GPU"
            )
        time.sleep(0.05)
