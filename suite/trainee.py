"""A model on its device, with the optimizer and the precision that belong to it, and for a cell the data."""

from __future__ import annotations

import hashlib
import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from models.shell import Shell, parameter_groups
from suite.errors import PluginError
from suite.measure.memory import PeakMemory
from suite.plugin import Batch, IntArray, Model, Split, Task, keyed_generator
from suite.registry import Kind, Registry
from suite.spec import Budget, Cell, Choice, Precision, ShellSettings

_COST_LEARNING_RATE = 1e-3
"""What a cost cell trains with while it is timed; the time does not depend on it."""


class Learner:
    """A model in the shared shell with its optimizer and its precision: what a step of training needs."""

    def __init__(
        self,
        model: Model,
        shell: ShellSettings,
        vocab_size: int,
        *,
        device: torch.device,
        precision: Precision,
        budget: Budget,
        learning_rate: float,
        seed: int,
    ) -> None:
        self.budget = budget
        self.device = device
        self.memory = PeakMemory(device)
        self._precision = precision
        # Recurrent layers and convolutions would otherwise run in TF32 where matrix products run in float32.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        torch.manual_seed(seed)
        self.shell = Shell(shell, vocab_size, model).to(device)
        groups = parameter_groups(self.shell, learning_rate, budget.weight_decay)
        self.group_descriptions: list[dict[str, Any]] = [
            {"weight_decay": group["weight_decay"], "learning_rate": group["lr"], "names": list(group["names"])}
            for group in groups
        ]
        # A group's own peak may be lower than the learning rate asked for; the schedule scales each from where it is.
        self._peak_rates: list[float] = [group["lr"] for group in groups]
        self._rate_factor = 1.0
        is_on_gpu = device.type == "cuda"
        if is_on_gpu:
            # A CUDA graph holds numbers for ever; what is to change between its replays lies on the device.
            for group in groups:
                group["lr"] = torch.tensor(group["lr"], device=device)
        self._optimizer = torch.optim.AdamW(groups, fused=True, capturable=is_on_gpu)

    def logits(self, inputs: Tensor) -> Tensor:
        """(batch, length) to (batch, length, vocabulary), computed in the learner's precision."""
        with self.autocast():
            logits: Tensor = self.shell(inputs)
        return logits.float()

    def training_step(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """One optimizer step; gives the mean loss over the scored positions, in nats. Does not wait for the device."""
        self._optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            loss = self.shell.loss(inputs, targets)
        torch.autograd.backward(loss)
        norm = get_total_norm([weight.grad for weight in self.shell.parameters() if weight.grad is not None])
        excess = (norm / self.budget.gradient_clip).clamp_(min=1.0)
        # AdamW divides by it as it reads the gradients: clipped without a pass of its own.
        self._optimizer.grad_scale = excess  # type: ignore[attr-defined]  # torch's GradScaler sets it, too
        self._optimizer.step()
        return loss.detach()

    def set_learning_rate(self, step: int) -> None:
        """Warm-up, then the budget's schedule."""
        budget = self.budget
        factor = min(1.0, (step + 1) / budget.warmup_steps) if budget.warmup_steps else 1.0
        if budget.schedule == "cosine":
            done = max(0, step - budget.warmup_steps) / max(1, budget.steps - budget.warmup_steps)
            factor *= 0.1 + 0.45 * (1 + math.cos(math.pi * done))
        if factor == self._rate_factor:
            return
        self._rate_factor = factor
        for group, peak in zip(self._optimizer.param_groups, self._peak_rates, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(peak * factor)
            else:
                group["lr"] = peak * factor

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision policy: float32 throughout, or bfloat16 autocast over float32 weights."""
        if self._precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()


class Trainee(Learner):
    """A cell's learner and the data that it is trained and tested on."""

    def __init__(self, cell: Cell, registry: Registry) -> None:
        model, self.task = parse_plugins(cell, registry)
        super().__init__(
            model,
            cell.shell,
            self.task.vocab_size,
            device=torch.device(cell.device),
            precision=cell.precision,
            budget=cell.budget or Budget(),
            learning_rate=cell.learning_rate or _COST_LEARNING_RATE,
            seed=cell.seed or 0,
        )
        self.cell = cell
        self._digest = hashlib.sha256()

    @property
    def data_sha256(self) -> str:
        """Digest of every batch drawn with `hashed=True` so far."""
        return self._digest.hexdigest()

    def batch(self, split: Split, step: int, batch_size: int, length: int, *, hashed: bool) -> tuple[Tensor, Tensor]:
        """The inputs and targets of one batch, each (batch, length), on the device."""
        batch = self.sample(split, step, batch_size, length, hashed=hashed)
        inputs, targets = self.on_device(batch.inputs, batch.targets)
        return inputs, targets

    def drawn(self, split: Split, step: int, batch_size: int, length: int, *, hashed: bool) -> Tensor:
        """The inputs and targets of one batch, (2, batch, length), on the host."""
        batch = self.sample(split, step, batch_size, length, hashed=hashed)
        return self._staged(batch.inputs, batch.targets)

    def sample(self, split: Split, step: int, batch_size: int, length: int, *, hashed: bool) -> Batch:
        """One batch, as the task draws it."""
        rng = keyed_generator(self.cell.task, self.cell.seed or 0, split, step)
        batch = self.task.sample(rng, split=split, batch_size=batch_size, length=length)
        if hashed:
            self._digest.update(batch.sha256().encode())
        return batch

    def on_device(self, *arrays: IntArray) -> Tensor:
        """Arrays of one shape as one tensor, (arrays, *shape), on the device; does not wait for it."""
        return self._staged(*arrays).to(self.device, non_blocking=True)

    def _staged(self, *arrays: IntArray) -> Tensor:
        # From pageable memory the copy, and so the host, would wait for all that is queued on the device.
        pins = self.device.type == "cuda"
        staged = torch.empty((len(arrays), *arrays[0].shape), dtype=torch.int64, pin_memory=pins)
        for held, array in zip(staged, arrays, strict=True):
            held.numpy()[...] = array
        return staged


def parse_plugins(cell: Cell, registry: Registry) -> tuple[Model, Task]:
    """The cell's model and task with their settings.

    Raises:
        UsageError: a setting does not exist or fit.
        PluginError: a plugin's file is no longer the one that the cell was planned with.
    """
    kinds: tuple[tuple[Kind, Choice], ...] = (("model", cell.model), ("task", cell.task))
    for kind, choice in kinds:
        entry = registry.entry(kind, choice.name)
        if entry.source_sha256 != choice.source_sha256:
            raise PluginError(f"{entry.origin} has changed since the run was planned. Run the same command again")
    model_class, task_class = registry.model(cell.model.name), registry.task(cell.task.name)
    model = model_class(model_class.Options.parse(cell.model.settings, where=cell.model.name))
    task = task_class(task_class.Options.parse(cell.task.settings, where=cell.task.name))
    return model, task
