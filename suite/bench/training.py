"""`suite bench training`: how many tokens a second a whole model trains on, and in how much memory.

The model stands in the shared shell and is trained by the engine's own step: forward, loss, backward, clipping, AdamW.
Only the tokens are random. Steps follow one another as in training, so that the host may run ahead of the device. Raw
seconds of every timed step go to one JSON file; what is shown is derived from them.
"""

from __future__ import annotations

import contextlib
import importlib.util
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from kernels.dispatch import ImplementationUnavailable, receipt
from models.shell import parameter_groups
from reports.formatting import byte_size, compact_count, counted, duration, exact_count, ratio
from suite.environment import describe_environment
from suite.errors import DeviceError, StoreError, UsageError, unknown
from suite.measure.memory import PeakMemory, is_out_of_memory
from suite.measure.time import call_seconds, consecutive_seconds
from suite.plugin import Model
from suite.records import Environment, Timing
from suite.registry import Registry
from suite.spec import Budget, Choice, Device, PositiveInt, Precision, Seed, Settings, ShellSettings
from suite.store import write_checked
from suite.trainee import Learner
from suite.training_steps import TrainingSteps

FORMAT_VERSION = 1
"""Version of the file's layout."""

PEERS = {"mamba_ssm": "mamba"}
"""Package -> the model that it has an implementation of."""

_PRECISIONS = {"bfloat16": "bf16", "float32": "fp32"}
"""A dtype's name -> the precision whose matrix products have it."""

_LEARNING_RATE = 1e-3
_WEIGHT_DECAY = 0.1
_WARMUP_STEPS = 3
_STEPS_A_TURN = 10
_PERCENTILES = (10, 90)


class TrainingRequest(Settings):
    """What is trained, on how many tokens a step, and where."""

    model: Choice
    shell: ShellSettings
    vocab_size: PositiveInt
    batch_size: PositiveInt
    length: PositiveInt
    precision: Precision
    device: Device
    seed: Seed = 0
    """Of the weights and the tokens."""

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.length

    @property
    def file_name(self) -> str:
        """What the file of its benchmark is called."""
        sizes = f"{self.shell.num_layers}x{self.shell.width}_V{self.vocab_size}_B{self.batch_size}_L{self.length}"
        return f"training_{self.model.name.replace(':', '-')}_{sizes}_{self.precision}_{self.device}.json"


class Trained(Settings):
    """One implementation of the model, timed."""

    num_parameters: int
    timing: Timing

    @property
    def tokens_per_second(self) -> float:
        """From the median step."""
        return self.timing.tokens_per_call / float(np.median(self.timing.samples_seconds))

    @property
    def tokens_per_second_range(self) -> tuple[float, float]:
        """From the slow and the fast steps: the 10th and the 90th percentile."""
        slow, fast = np.percentile(self.timing.samples_seconds, _PERCENTILES[::-1])
        return self.timing.tokens_per_call / float(slow), self.timing.tokens_per_call / float(fast)


class TrainingBenchmark(Settings):
    """One invocation of `suite bench training`."""

    format: int = FORMAT_VERSION
    kind: Literal["training"] = "training"
    started_at: str
    """UTC, ISO 8601."""
    environment: Environment
    request: TrainingRequest
    implementations: dict[str, list[str]]
    """Operation -> the implementations that really ran."""
    parameter_groups: list[dict[str, Any]]
    """Per optimizer group: weight_decay, learning_rate and the names of its parameters."""
    trained: Trained
    """As the engine trains: each kernel launched from Python."""
    graphed: Trained | None = None
    """The same step as one CUDA graph, without the host; its memory is that of the capture."""
    peers: dict[str, Trained] = {}

    def save(self, folder: Path) -> Path:
        """Writes the file into `folder` and says where; one of the same request is replaced.

        Raises:
            StoreError: it cannot be written.
        """
        path = folder / self.request.file_name
        write_checked(path, self.model_dump(mode="json"))
        return path


def training_request(
    model: str,
    registry: Registry,
    *,
    overrides: Mapping[str, Mapping[str, Any]],
    num_layers: int,
    width: int,
    vocab_size: int,
    batch_size: int,
    length: int,
    precision: str | None,
    device: str | None,
) -> TrainingRequest:
    """The request of a command line: the GPU if there is one, bf16 on a GPU and fp32 on a CPU if nothing else is asked.

    Raises:
        UsageError: a name or a value that does not exist or does not fit.
        DeviceError: a GPU is asked for and there is none.
    """
    registry.entry("model", model)
    for section in overrides:
        if section != model:
            raise unknown("section", section, [model])
    model_class = registry.model(model)
    settings = model_class.Options.parse(overrides.get(model, {}), where=model)
    choice = model_class(settings).choice(registry.entry("model", model).source_sha256)
    if device == "cuda" and not torch.cuda.is_available():
        raise DeviceError(
            "A GPU was asked for (--device cuda), but torch finds none. "
            "`suite doctor` says why; --device cpu runs without"
        )
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    precision = precision or ("bf16" if device == "cuda" else "fp32")
    values = {
        "model": choice.model_dump(mode="json"),
        "shell": {"width": width, "num_layers": num_layers},
        "vocab_size": vocab_size,
        "batch_size": batch_size,
        "length": length,
        "precision": _PRECISIONS.get(precision, precision),
        "device": device,
    }
    return TrainingRequest.parse(values, where="training")


def make_folder(folder: Path) -> None:
    """Makes the folder that results go to, before anything is measured in vain.

    Raises:
        StoreError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"The folder {folder} cannot be made: {error.strerror}. Choose another --out") from error


def measure_training(
    request: TrainingRequest,
    registry: Registry,
    *,
    num_steps: int,
    is_graphed: bool = False,
    peers: Sequence[str] = (),
) -> TrainingBenchmark:
    """Builds the model and times `num_steps` steps after a warm-up; the graph and the peers take turns with it.

    Memory is that of the step after the first one, over what was in use before the model was built: weights, gradients,
    optimizer and activations.

    Raises:
        UsageError: a graph is asked for without a GPU, a peer is not installed, has no such model or does not run on
            the device, or no implementation has the name that a setting gives.
        DeviceError: memory runs out, or an implementation that was asked for cannot run on the device.
    """
    if is_graphed and request.device != "cuda":
        raise UsageError("--graph records a CUDA graph and needs --device cuda")
    for peer in peers:
        _expect_peer(peer, request)
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    device = torch.device(request.device)
    inputs, targets = _random_tokens(request, device)
    learner = Learner(
        _model(request, registry),
        request.shell,
        request.vocab_size,
        device=device,
        precision=request.precision,
        budget=Budget(batch_size=request.batch_size, weight_decay=_WEIGHT_DECAY),
        learning_rate=_LEARNING_RATE,
        seed=request.seed,
    )
    with receipt() as ran, _explained():
        contestants = {
            "seqsuite": _rehearsed(
                learner.shell, lambda: learner.training_step(inputs, targets), learner.memory, device
            )
        }
    with _explained():
        if is_graphed:
            contestants["graphed"] = _graphed(learner, inputs, targets)
        for peer in peers:
            memory = PeakMemory(device)
            model, step = _mamba_ssm(request, learner, inputs, targets)
            contestants[peer] = _rehearsed(model, step, memory, device)
    samples = _in_turns({name: contestant.step for name, contestant in contestants.items()}, device, num_steps)
    trained = {
        name: Trained(
            num_parameters=contestant.num_parameters,
            timing=Timing(
                first_call_seconds=contestant.first_call_seconds,
                samples_seconds=samples[name],
                tokens_per_call=request.tokens_per_step,
                peak_memory_bytes=contestant.peak_memory_bytes,
            ),
        )
        for name, contestant in contestants.items()
    }
    return TrainingBenchmark(
        started_at=started_at,
        environment=describe_environment(request.device),
        request=request,
        implementations={operation: sorted(names) for operation, names in sorted(ran.items())},
        parameter_groups=learner.group_descriptions,
        trained=trained["seqsuite"],
        graphed=trained.get("graphed"),
        peers={peer: trained[peer] for peer in peers},
    )


def render(benchmark: TrainingBenchmark) -> RenderableType:
    """What the terminal shows: a row for each contestant, and what ran."""
    request = benchmark.request
    title = (
        f"Training {request.model.name}, {counted(request.shell.num_layers, 'layer')} of width {request.shell.width}, "
        f"vocabulary {exact_count(request.vocab_size)}, {request.batch_size} × {exact_count(request.length)} tokens, "
        f"{request.precision}, on {benchmark.environment.gpu or benchmark.environment.cpu}"
    )
    columns = ("", "Tokens/s", "p10 to p90", "A step", "Memory", "First step", "Weights")
    table = Table(*columns, title=title, title_justify="left")
    contestants = {"seqsuite": benchmark.trained}
    if benchmark.graphed is not None:
        contestants["as a CUDA graph"] = benchmark.graphed
    contestants |= benchmark.peers
    for name, trained in contestants.items():
        slow, fast = trained.tokens_per_second_range
        table.add_row(
            name,
            exact_count(trained.tokens_per_second),
            f"{exact_count(slow)} to {exact_count(fast)}",
            duration(float(np.median(trained.timing.samples_seconds))),
            byte_size(trained.timing.peak_memory_bytes),
            duration(trained.timing.first_call_seconds),
            compact_count(trained.num_parameters),
        )
    lines = [
        f"{ratio(benchmark.trained.tokens_per_second / trained.tokens_per_second)} the tokens per second of {peer}"
        for peer, trained in benchmark.peers.items()
    ]
    ran = ", ".join(f"{operation}: {' and '.join(names)}" for operation, names in benchmark.implementations.items())
    lines.append(f"Median of {counted(len(benchmark.trained.timing.samples_seconds), 'step')}. What ran: {ran}")
    return Group(table, *(Text(line) for line in lines))


@dataclass(frozen=True)
class _Contestant:
    """A model that has taken its first two steps."""

    num_parameters: int
    step: Callable[[], object]
    first_call_seconds: float
    peak_memory_bytes: int | None


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """What a first step fails with is said in the suite's own words."""
    try:
        yield
    except ImplementationUnavailable as error:
        raise DeviceError(str(error)) from error
    except ValueError as error:
        raise UsageError(str(error)) from error
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise DeviceError(
            "The step does not fit into memory. Use a smaller --batch-size, --length, --width or --layers"
        ) from error


def _rehearsed(model: nn.Module, step: Callable[[], object], memory: PeakMemory, device: torch.device) -> _Contestant:
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    return _Contestant(num_parameters, step, call_seconds(step, device), memory.of(step))


def _graphed(learner: Learner, inputs: Tensor, targets: Tensor) -> _Contestant:
    steps, batch = TrainingSteps(learner), torch.stack([inputs, targets])
    steps(batch)
    started = time.perf_counter()
    peak_memory_bytes = learner.memory.of(lambda: steps(batch))
    torch.cuda.synchronize(learner.device)
    if steps.not_graphed is not None:
        raise UsageError(f"--graph: a step of this model cannot be a CUDA graph: {steps.not_graphed}")
    first_call_seconds = time.perf_counter() - started
    return _Contestant(learner.shell.num_parameters, lambda: steps(batch), first_call_seconds, peak_memory_bytes)


def _in_turns(
    steps: Mapping[str, Callable[[], object]], device: torch.device, num_steps: int
) -> dict[str, list[float]]:
    """Seconds of `num_steps` steps of each, in turns of a few, so that a slow spell touches all alike."""
    for step in steps.values():
        for _ in range(_WARMUP_STEPS):
            step()
    samples: dict[str, list[float]] = {name: [] for name in steps}
    for first in range(0, num_steps, _STEPS_A_TURN):
        for name, step in steps.items():
            samples[name] += consecutive_seconds(step, device, min(_STEPS_A_TURN, num_steps - first))
    return samples


def _model(request: TrainingRequest, registry: Registry) -> Model:
    model_class = registry.model(request.model.name)
    return model_class(model_class.Options.parse(request.model.settings, where=request.model.name))


def _random_tokens(request: TrainingRequest, device: torch.device) -> tuple[Tensor, Tensor]:
    """Inputs and what follows each of them, (batch, length)."""
    generator = torch.Generator().manual_seed(request.seed)
    tokens = torch.randint(request.vocab_size, (request.batch_size, request.length + 1), generator=generator)
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    return inputs.to(device), targets.to(device)


def _expect_peer(peer: str, request: TrainingRequest) -> None:
    if peer not in PEERS:
        raise unknown("peer", peer, PEERS)
    if importlib.util.find_spec(peer) is None:
        raise UsageError(f"--peer {peer}: the package is not installed. Install it, or leave the peer out")
    if request.model.name != PEERS[peer]:
        raise UsageError(f"--peer {peer} has no {request.model.name}. It can be compared with --model {PEERS[peer]}")
    if request.device != "cuda":
        raise UsageError(f"--peer {peer} runs on a GPU only. Use --device cuda, or leave the peer out")


def _mamba_ssm(
    request: TrainingRequest, learner: Learner, inputs: Tensor, targets: Tensor
) -> tuple[nn.Module, Callable[[], None]]:
    """The official model of the same sizes, and a step of its training with the learner's settings."""
    from mamba_ssm.models.config_mamba import MambaConfig
    from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel

    settings = request.model.settings
    config = MambaConfig(
        d_model=request.shell.width,
        n_layer=request.shell.num_layers,
        vocab_size=request.vocab_size,
        ssm_cfg={"d_state": settings["state_size"], "d_conv": settings["conv_width"], "expand": settings["expand"]},
    )
    model: nn.Module = MambaLMHeadModel(config, device=learner.device, dtype=torch.float32)
    optimizer = torch.optim.AdamW(parameter_groups(model, _LEARNING_RATE, _WEIGHT_DECAY), fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with learner.autocast():
            logits = model(inputs).logits
        torch.autograd.backward(cross_entropy(logits.float().flatten(0, 1), targets.flatten()))
        torch.nn.utils.clip_grad_norm_(model.parameters(), learner.budget.gradient_clip)
        optimizer.step()

    return model, step
