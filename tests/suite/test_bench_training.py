"""`suite bench training`: what it measures, writes and shows, and what it refuses."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from suite.bench import training
from suite.bench.training import TrainingBenchmark, TrainingRequest, measure_training, render, training_request
from suite.errors import DeviceError, SuiteError, UsageError
from suite.registry import Registry
from suite.store import read_checked
from tests.suite.builders import suite

REGISTRY = Registry()
SMALL = ("--layers", "1", "--width", "8", "--vocab-size", "11", "--batch-size", "2", "--length", "6", "--device", "cpu")


def request(model: str = "mamba", **changes: Any) -> TrainingRequest:
    values: dict[str, Any] = {
        "overrides": {},
        "num_layers": 1,
        "width": 8,
        "vocab_size": 11,
        "batch_size": 2,
        "length": 6,
        "precision": None,
        "device": "cpu",
    }
    return training_request(model, REGISTRY, **(values | changes))


@pytest.mark.parametrize("model", ["mamba", "transformer", "gru"])
def test_every_timed_step_is_kept_and_what_ran_is_named(model: str) -> None:
    benchmark = measure_training(request(model), REGISTRY, num_steps=4)
    timing = benchmark.trained.timing
    assert len(timing.samples_seconds) == 4
    assert all(seconds > 0 for seconds in [timing.first_call_seconds, *timing.samples_seconds])
    assert timing.tokens_per_call == 12
    assert benchmark.implementations["cross_entropy"] == ["whole"]
    assert {"rms_norm", "cross_entropy"} <= set(benchmark.implementations)
    names = [name for group in benchmark.parameter_groups for name in group["names"]]
    assert "head.weight" in names
    assert benchmark.trained.num_parameters > 2 * 11 * 8


def test_tokens_per_second_are_those_of_the_median_step() -> None:
    benchmark = measure_training(request(), REGISTRY, num_steps=1)
    timing = benchmark.trained.timing.model_copy(update={"samples_seconds": [0.1, 0.2, 0.3, 0.4, 9.0]})
    trained = benchmark.trained.model_copy(update={"timing": timing})
    assert trained.tokens_per_second == pytest.approx(12 / 0.3)
    slow, fast = trained.tokens_per_second_range
    assert slow < trained.tokens_per_second < fast


def test_the_file_holds_the_benchmark_again(tmp_path: Path) -> None:
    benchmark = measure_training(request(overrides={"mamba": {"state_size": 3}}), REGISTRY, num_steps=2)
    path = benchmark.save(tmp_path)
    assert path.name == "training_mamba_1x8_V11_B2_L6_fp32_cpu.json"
    read = TrainingBenchmark.model_validate_json(json.dumps(read_checked(path)))
    assert read == benchmark
    assert read.request.model.settings["state_size"] == 3
    assert read.environment.versions["torch"] == torch.__version__


def test_the_table_shows_rates_memory_and_what_ran() -> None:
    benchmark = measure_training(request("gru"), REGISTRY, num_steps=2)
    console = Console(width=120)
    with console.capture() as capture:
        console.print(render(benchmark))
    shown = capture.get()
    for said in ("Training gru, 1 layer of width 8", "Tokens/s", "Memory", "cross_entropy: whole", "Median of 2 steps"):
        assert said in shown


@pytest.mark.parametrize(
    ("given", "meant"), [("bfloat16", "bf16"), ("bf16", "bf16"), ("float32", "fp32"), ("fp32", "fp32"), (None, "fp32")]
)
def test_precision_may_be_called_like_its_dtype(given: str | None, meant: str) -> None:
    assert request(precision=given).precision == meant


def test_bfloat16_is_timed_too() -> None:
    benchmark = measure_training(request(precision="bf16"), REGISTRY, num_steps=1)
    assert benchmark.request.precision == "bf16"


@pytest.mark.parametrize(
    ("asked", "error", "said"),
    [
        (lambda: request("mamab"), UsageError, "Did you mean 'mamba'"),
        (lambda: request(overrides={"mamba": {"state": 3}}), UsageError, "Did you mean 'state_size'"),
        (lambda: request(overrides={"shell": {"width": 3}}), UsageError, "No section is called 'shell'"),
        (lambda: request(width=0), UsageError, "training.shell.width"),
        (lambda: request(precision="float8"), UsageError, "training.precision = 'float8'"),
        (lambda: request(device="tpu"), UsageError, "training.device = 'tpu'"),
    ],
)
def test_a_bad_request_is_one_clear_message(
    asked: Callable[[], TrainingRequest], error: type[SuiteError], said: str
) -> None:
    with pytest.raises(error, match=said):
        asked()


def test_a_gpu_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="suite doctor"):
        request(device="cuda")


@pytest.mark.parametrize(
    ("implementation", "error", "said"),
    [
        ("cuda", DeviceError, "cannot run its 'cuda' implementation on cpu"),
        ("cuba", UsageError, "has no implementation 'cuba'"),
    ],
)
def test_an_implementation_that_cannot_run_is_named(implementation: str, error: type[SuiteError], said: str) -> None:
    asked = request(overrides={"mamba": {"implementation": implementation}})
    with pytest.raises(error, match=said):
        measure_training(asked, REGISTRY, num_steps=1)


def test_running_out_of_memory_is_said_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def step(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(training.Learner, "training_step", step)
    with pytest.raises(DeviceError, match="smaller --batch-size"):
        measure_training(request(), REGISTRY, num_steps=1)


def test_a_graph_needs_a_gpu() -> None:
    with pytest.raises(UsageError, match="--graph records a CUDA graph"):
        measure_training(request(), REGISTRY, num_steps=1, is_graphed=True)


def test_a_peer_that_is_not_installed_or_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"No peer is called 'mamba_sm'\. Did you mean 'mamba_ssm'"):
        measure_training(request(), REGISTRY, num_steps=1, peers=["mamba_sm"])
    monkeypatch.setattr(training.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="the package is not installed"):
        measure_training(request(), REGISTRY, num_steps=1, peers=["mamba_ssm"])
    monkeypatch.setattr(training.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(UsageError, match="mamba_ssm has no gru"):
        measure_training(request("gru"), REGISTRY, num_steps=1, peers=["mamba_ssm"])
    with pytest.raises(UsageError, match="runs on a GPU only"):
        measure_training(request(), REGISTRY, num_steps=1, peers=["mamba_ssm"])


class _StandIn(nn.Module):
    """Has the interface of the official language model."""

    def __init__(self, config: SimpleNamespace, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config.d_model, device=device, dtype=dtype)
        self.head = nn.Linear(config.d_model, config.vocab_size, device=device, dtype=dtype)

    def forward(self, tokens: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.head(self.embedding(tokens)))


def test_a_peer_is_timed_in_turns_and_shown_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    config, model = ModuleType("mamba_ssm.models.config_mamba"), ModuleType("mamba_ssm.models.mixer_seq_simple")
    config.MambaConfig = SimpleNamespace  # type: ignore[attr-defined]
    model.MambaLMHeadModel = _StandIn  # type: ignore[attr-defined]
    for module in (ModuleType("mamba_ssm"), ModuleType("mamba_ssm.models"), config, model):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(training, "_expect_peer", lambda peer, request: None)
    benchmark = measure_training(request(), REGISTRY, num_steps=3, peers=["mamba_ssm"])
    peer = benchmark.peers["mamba_ssm"]
    assert len(peer.timing.samples_seconds) == len(benchmark.trained.timing.samples_seconds)
    assert peer.num_parameters == 2 * 11 * 8 + 11
    console = Console(width=120)
    with console.capture() as capture:
        console.print(render(benchmark))
    assert "the tokens per second of mamba_ssm" in capture.get()


def test_the_command_prints_a_table_and_names_its_file(tmp_path: Path) -> None:
    done = suite("bench", "training", *SMALL, "--steps", "2", "--out", tmp_path / "new" / "folder")
    assert done.returncode == 0, done.stderr
    assert "Tokens/s" in done.stdout
    assert "What ran" in done.stdout
    (path,) = (tmp_path / "new" / "folder").glob("*.json")
    assert path.name in done.stdout


def test_bad_input_to_the_command_is_one_sentence_and_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = suite("bench", "training", *SMALL, "--out", tmp_path / "file")
    assert done.returncode == 2
    assert done.stderr.startswith("Error: The folder")
    assert "Traceback" not in done.stderr
    done = suite("bench", "training", "--layers", "0")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
