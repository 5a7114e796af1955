"""A quick task and a model that fails in the way its setting says, to see what the engine makes of it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from suite import Batch, Budget, Model, Preset, Settings, ShellSettings, Split, Task


class Echo(Task):
    """Say the token that stands there."""

    name = "echo"

    class Options(Settings):
        length: int = 8
        seconds: float = 0.0
        """How long drawing a batch takes."""

    presets = {
        "quick": Preset(
            shell=ShellSettings(width=8, num_layers=1),
            budget=Budget(steps=4, batch_size=4, evaluate_every=2, validation_batches=1, test_batches=1),
            learning_rates=(1e-2,),
        )
    }

    @property
    def vocab_size(self) -> int:
        return 4

    @property
    def length(self) -> int:
        return int(self.options.length)

    def sample(self, rng: np.random.Generator, *, split: Split, batch_size: int, length: int) -> Batch:
        time.sleep(self.options.seconds)
        tokens = rng.integers(0, 4, (batch_size, length))
        return Batch(tokens, tokens)

    def baseline(self) -> float:
        return 0.25


class Faulty(Model):
    """Does nothing, or fails."""

    name = "faulty"

    class Options(Settings):
        fault: Literal[
            "none", "raise", "memory", "nan", "exit", "segfault", "kill", "hang", "print", "gpu", "environment"
        ] = "none"

    def branches(self, shell: ShellSettings) -> Sequence[nn.Module]:
        return [_FaultyBranch(shell.width, self.options.fault)]


class _FaultyBranch(nn.Module):
    def __init__(self, width: int, fault: str) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))
        self.fault = fault

    def forward(self, x: Tensor) -> Tensor:
        match self.fault:
            case "raise":
                raise RuntimeError("the branch broke\nin two lines")
            case "memory":
                torch.empty(1 << 50, dtype=torch.uint8)
            case "nan":
                return x * self.gain * float("nan")
            case "exit":
                os._exit(3)
            case "segfault":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "hang":
                time.sleep(3600)
            case "gpu":
                raise RuntimeError(os.environ["CUDA_VISIBLE_DEVICES"])
            case "environment":
                raise RuntimeError(f"GOMP_SPINCOUNT is {os.environ.get('GOMP_SPINCOUNT')}")
            case "print":
                print('{"event": "record"}', flush=True)
        return x * self.gain

    def initial_state(self, batch_size: int, max_length: int) -> Any:
        return None

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        return self(x), state
