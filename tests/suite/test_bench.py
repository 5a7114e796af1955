"""`suite bench kernels`: nothing wrong is timed, nothing finished is lost, and every number says what it is."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from typer.testing import CliRunner

from kernels.dispatch import Operation
from reports import render
from reports.plain_text import render_text
from suite.bench import kernels as engine
from suite.bench.benchmark import Inputs, KernelBenchmark, Peer, Shape, Work, benchmark, benchmark_names
from suite.bench.comparison import build_comparison
from suite.bench.floors import floor
from suite.bench.recorded import of_device, recorded_times
from suite.bench.request import Part, Plan, Request, plan
from suite.bench.results import Anchors, Case, Check, Device, KernelBench, load
from suite.bench.tables import build_report
from suite.bench.timing import Effort, Stopwatch, timed_in_rounds
from suite.cli import app
from suite.environment import describe_environment
from suite.errors import DeviceError, StoreError, UsageError
from tests.suite.builders import suite

HOME = Path(__file__).parent.parent.parent
CPU = torch.device("cpu")
H100 = Device(
    name="NVIDIA H100 80GB HBM3",
    kind="cuda",
    copy_bytes_per_second=3.0e12,
    matrix_flops_per_second={"bfloat16": 7e14},
    num_multiprocessors=132,
    special_functions_per_clock=16,
    float32_per_clock=128,
    sm_clock_hz=1.755e9,
)


def scaled(x: Tensor, weight: Tensor) -> Tensor:
    return x * weight


def wrong_output(x: Tensor, weight: Tensor) -> Tensor:
    return x * weight + (0.001 * x * weight).detach()


def wrong_gradient(x: Tensor, weight: Tensor) -> Tensor:
    return x * weight.detach() + 0.5 * x.detach() * (weight - weight.detach())


def not_finite(x: Tensor, weight: Tensor) -> Tensor:
    return x * weight / 0.0


def crashing(x: Tensor, weight: Tensor) -> Tensor:
    raise RuntimeError("the kernel fell over")


def hungry(x: Tensor, weight: Tensor) -> Tensor:
    if x.shape[1] > 20:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 80 GiB")
    return x * weight


IMPLEMENTATIONS = {
    function.__name__: function for function in (scaled, wrong_output, wrong_gradient, not_finite, crashing, hungry)
}


class Scaling(KernelBenchmark):
    """y = weight x, right and in many ways wrong."""

    operation = Operation("scaling", {"reference": "scaling_scaled"} | {n: f"scaling_{n}" for n in IMPLEMENTATIONS})
    axes = {"B": None, "L": None, "D": 4}
    shapes = {"cuda": ("B1_L8",), "cpu": ("B1_L8",), "quick": ("B2_L5", "B2_L40")}
    check_shapes = ("B1_L8", "B2_L3_D7")
    peers = (Peer(name="their_scaling", module="torch", call=lambda inputs: scaled(**inputs), devices=("cpu",)),)
    baselines = ("absent", "their_scaling")

    def inputs(self, shape: Shape, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Inputs:
        x = torch.randn(shape["B"], shape["L"], shape["D"], generator=generator, dtype=dtype)
        return {"x": x, "weight": torch.randn(shape["D"], generator=generator)}

    def call(self, inputs: Inputs, implementation: str) -> Tensor:
        module = self.operation.choose(implementation, inputs["x"].device)
        y: Tensor = module.scaling(inputs["x"], inputs["weight"].to(inputs["x"].dtype))
        return y

    def work(self, shape: Shape, bytes_per_value: int) -> tuple[Work, Work]:
        wide = shape["B"] * shape["L"] * shape["D"]
        return Work(bytes=2 * wide * bytes_per_value), Work(bytes=3 * wide * bytes_per_value)

    def of_length(self, length: int) -> str | None:
        return f"B1_L{length}"


@pytest.fixture(autouse=True)
def _modules(monkeypatch: pytest.MonkeyPatch) -> None:
    _install_modules(monkeypatch)


def _install_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, function in IMPLEMENTATIONS.items():
        module = ModuleType(f"scaling_{name}")
        module.scaling = function  # type: ignore[attr-defined]
        module.unavailable = lambda device: None  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)


def scaling_plan(*names: str, dtype: torch.dtype = torch.float32) -> Plan:
    one = Scaling()
    contenders = tuple(one.contenders()[name] for name in names)
    shapes = tuple(shape for text in one.shapes["quick"] if (shape := one.parse(text)) is not None)
    part = Part(benchmark=one, contenders=contenders, shapes=shapes, dtypes=(dtype,))
    return Plan(parts=(part,), device=CPU, seed=1, is_quick=True)


def benched(*names: str, dtype: torch.dtype = torch.float32) -> KernelBench:
    """What one run over the scaling operation saw."""
    seen = list(engine.run(scaling_plan(*names, dtype=dtype)))
    (device,) = [event for event in seen if isinstance(event, Device)]
    return KernelBench(
        kind="kernels",
        command="suite bench kernels scaling",
        started_at="2026-01-01T00:00:00+00:00",
        duration_seconds=1.0,
        is_complete=True,
        seed=1,
        environment=describe_environment("cpu"),
        device=device,
        checks=[event for event in seen if isinstance(event, Check)],
        cases=[event for event in seen if isinstance(event, Case)],
    )


@pytest.fixture(scope="module")
def sound() -> Iterator[KernelBench]:
    with pytest.MonkeyPatch.context() as patch:
        _install_modules(patch)
        yield benched("scaled", "their_scaling")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("wrong_output", "output is off by"),
        ("wrong_gradient", "gradient of weight is off by 5.0e-01"),
        ("not_finite", "output is not finite everywhere"),
        ("crashing", "RuntimeError: the kernel fell over"),
    ],
)
def test_what_is_wrong_is_shown_and_not_timed(name: str, said: str) -> None:
    bench = benched("scaled", name)
    assert any(said in (check.failure or "") for check in bench.checks if check.implementation == name)
    assert bench.num_failed > 0
    for case in bench.cases:
        right, wrong = case.entries
        assert right.timings.keys() == {"forward", "forward_backward"}
        assert not wrong.timings
        assert wrong.trouble is not None and wrong.trouble.kind == "failed_check"
        assert said in wrong.trouble.message
    text = render_text(build_report(bench), width=100)
    assert said in text.replace("\n  ", " ")
    assert "NO" in text


def test_what_is_right_is_timed_with_its_receipt(sound: KernelBench) -> None:
    assert sound.num_failed == 0
    assert [check.is_passed for check in sound.checks] == [True] * len(sound.checks)
    for case in sound.cases:
        ours, theirs = case.entries
        assert (ours.is_peer, theirs.is_peer) == (False, True)
        assert ours.receipt == {"scaling": ["scaled"]}
        assert theirs.receipt == {}
        for timing in ours.timings.values():
            assert len(timing.eager_seconds) >= 6
            assert timing.first_call_seconds > 0
            assert timing.graphed_seconds is None and timing.not_graphed is not None


def test_a_table_of_errors_fails_for_what_could_not_be_computed_alone() -> None:
    bench = benched("wrong_output", "crashing")
    num_crashed = sum(check.implementation == "crashing" for check in bench.checks)
    table = bench.model_copy(update={"kind": "kernel_errors", "cases": []})
    assert (bench.num_failed, table.num_failed) == (2 * num_crashed, num_crashed)
    text = render_text(build_report(table), width=100)
    assert "1.0e-3 (!)" in text
    assert "the kernel fell over" in text


def test_memory_that_runs_out_at_one_shape_is_a_row() -> None:
    bench = benched("hungry", "scaled")
    small, large = bench.cases
    assert small.entries[0].timings
    assert large.entries[0].trouble is not None and large.entries[0].trouble.kind == "out_of_memory"
    assert large.entries[1].timings
    assert bench.num_failed == 0
    assert "out of memory" in render(build_report(bench), "text")


def test_an_implementation_that_promises_less_is_held_to_its_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scaling.operation.module("wrong_output"), "TOLERANCES", {torch.float32: 2e-3}, raising=False)
    bench = benched("scaled", "wrong_output", "wrong_gradient")
    assert {check.implementation: check.tolerance for check in bench.checks} == {
        "scaled": 1e-5,
        "wrong_output": 2e-3,
        "wrong_gradient": 1e-5,
    }
    assert {check.implementation for check in bench.checks if check.failure is None} == {"scaled", "wrong_output"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_dtype_is_held_to_its_own_tolerance(dtype: torch.dtype) -> None:
    # A thousandth is wrong in float32 and less than the rounding of bfloat16.
    bench = benched("wrong_output", dtype=dtype)
    assert [check.is_passed for check in bench.checks] == [dtype == torch.bfloat16] * 2


def test_errors_by_length_are_of_the_same_numbers_in_every_dtype() -> None:
    planned = scaling_plan("scaled")
    (part,) = planned.parts
    both = replace(planned, parts=(replace(part, dtypes=(torch.float32, torch.bfloat16)),))
    checks = [event for event in engine.check_all(both) if isinstance(event, Check)]
    assert {(check.dtype, check.shape) for check in checks} == {
        (dtype, shape) for dtype in ("float32", "bfloat16") for shape in ("B2_L5", "B2_L40")
    }
    assert all(check.is_passed for check in checks)


def test_floors_of_the_scan_are_those_of_its_special_functions() -> None:
    one = benchmark("selective_scan")
    shape = one.parse("B8_L2048_D2048")
    assert shape is not None
    forward, backward = one.work(shape, 2)
    assert floor((forward,), "bfloat16", H100, 1.755e9).seconds == pytest.approx(0.181e-3, rel=5e-3)
    assert floor((forward,), "bfloat16", H100, 1.755e9).bound_by == "special functions"
    assert floor((backward,), "bfloat16", H100, 1.755e9).seconds == pytest.approx(0.217e-3, rel=5e-3)
    assert floor((backward,), "bfloat16", H100, 1.755e9).bound_by == "float32"
    both = floor((forward, backward), "bfloat16", H100, 1.755e9)
    assert both.seconds == pytest.approx(0.398e-3, rel=5e-3)
    assert both.bytes == forward.bytes + backward.bytes
    assert forward.bytes == pytest.approx(0.274e9, rel=0.02)


def test_a_device_that_tells_no_clock_is_bound_by_its_memory() -> None:
    work = Work(bytes=3_000_000_000, special_functions=1e15, float32_operations=1e15, matrix_flops=1e18)
    found = floor((work,), "float32", H100.model_copy(update={"num_multiprocessors": None}), None)
    assert found.seconds == pytest.approx(1e-3)
    assert found.bound_by == "memory"


def test_attention_is_bound_by_its_matrix_products() -> None:
    one = benchmark("attention")
    shape = one.parse("B2_L16384_H16_E128")
    assert shape is not None
    forward, _ = one.work(shape, 2)
    found = floor((forward,), "bfloat16", H100, 1.755e9)
    assert found.bound_by == "matrix products"
    assert found.seconds == pytest.approx(2 * 2 * 2 * 16 * 16384**2 / 2 * 128 / 7e14, rel=1e-3)


@pytest.mark.parametrize("name", benchmark_names())
def test_a_benchmark_keeps_its_own_rules(name: str) -> None:
    one = benchmark(name)
    assert one.name == name
    lengths = [one.of_length(length) for length in (1, 2, 65, 513, 131072)]
    for text in [*(text for texts in one.shapes.values() for text in texts), *one.check_shapes, *filter(None, lengths)]:
        shape = one.parse(text)
        assert shape is not None, text
        assert str(shape) == text
        for work in one.work(shape, 2):
            assert work.bytes > 0
    assert set(one.baselines) <= one.contenders().keys()
    assert "reference" in one.operation.implementations


@given(st.dictionaries(st.sampled_from("BLD"), st.integers(1, 10**7), min_size=2))
def test_a_shape_reads_as_it_is_written(sizes: dict[str, int]) -> None:
    text = "_".join(f"{axis}{size}" for axis, size in sizes.items())
    shape = Scaling().parse(text)
    if {"B", "L"} <= sizes.keys():
        assert shape is not None
        assert shape.sizes == {"B": sizes["B"], "L": sizes["L"], "D": sizes.get("D", 4)}
        assert Scaling().parse(str(shape)) == shape
    else:
        assert shape is None


@pytest.mark.parametrize("text", ["", "8x2048", "B8_L0", "B8_L", "B8_B9_L3", "b8_L2", "B8__L2", "B-1_L2"])
def test_what_is_no_shape_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match=r"is no shape: expected axes and sizes, for example B1_L8"):
        Scaling().parse(text)


@pytest.mark.parametrize(
    ("request_", "error", "said"),
    [
        (Request(operations=["selective_scam"]), UsageError, "Did you mean 'selective_scan'?"),
        (Request(implementations=["torhc"]), UsageError, "No implementation is called 'torhc'. Did you mean 'torch'?"),
        (Request(dtypes=["bf16"]), UsageError, "No dtype is called 'bf16'. Did you mean 'bfloat16'?"),
        (Request(device="gpu"), UsageError, "No device is called 'gpu'"),
        (Request(shapes=["2048"]), UsageError, "'2048' is no shape"),
        (Request(shapes=["X3"]), UsageError, "No operation has one of the shapes X3"),
        (
            Request(operations=["attention"], shapes=["B8_L2048_D2048"]),
            UsageError,
            "attention has none of the shapes B8_L2048_D2048. Its axes are B, L, H, E",
        ),
        (
            Request(operations=["attention", "selective_scan"], implementations=["flash"], device="cpu"),
            UsageError,
            "selective_scan has none of the implementations flash. Known: ",
        ),
        (
            Request(operations=["selective_scan"], implementations=["cuda"], device="cpu"),
            DeviceError,
            "selective_scan cannot run cuda on cpu: ",
        ),
    ],
)
def test_bad_input_says_what_was_wanted(request_: Request, error: type[Exception], said: str) -> None:
    with pytest.raises(error) as raised:
        plan(request_, seed=0)
    assert said in str(raised.value)


def test_a_peer_that_was_asked_for_and_is_not_there_is_an_error() -> None:
    one = Scaling()
    one.peers = (Peer(name="gone", module="no_such_package", call=lambda inputs: inputs["x"], devices=("cpu",)),)  # type: ignore[misc]
    assert one.contenders()["gone"].unavailable(CPU) == "the package no_such_package is not installed"
    assert one.contenders()["gone"].unavailable(torch.device("cuda")) == "it does not run on cuda"


def test_shapes_pick_the_operations_that_have_them() -> None:
    planned = plan(Request(shapes=["B1_L64_H2_E16"], device="cpu"), seed=0)
    assert [part.benchmark.name for part in planned.parts] == ["attention"]


def test_an_operation_of_one_dtype_is_timed_with_it() -> None:
    planned = plan(Request(operations=["s4d_kernel"], dtypes=["bfloat16"], device="cpu"), seed=0)
    assert planned.parts[0].dtypes == (torch.float32,)


def test_runs_take_turns_and_the_one_that_breaks_off_leaves() -> None:
    calls: list[str] = []

    def run(name: str) -> Callable[[], object]:
        def call() -> None:
            calls.append(name)
            if name == "b" and calls.count("b") == 4:
                raise RuntimeError("b broke")

        return call

    effort = Effort(seconds=1e9, min_rounds=2, max_rounds=5)
    rounds = timed_in_rounds({"a": run("a"), "b": run("b")}, Stopwatch(CPU), effort)
    assert calls[:8] == ["a", "b"] * 4
    assert len(rounds.samples["a"]) == 5
    assert str(rounds.errors["b"]) == "b broke"


def test_a_slow_run_leaves_early_and_a_fast_one_stays() -> None:
    runs = {"fast": lambda: time.sleep(0.001), "slow": lambda: time.sleep(0.03)}
    rounds = timed_in_rounds(runs, Stopwatch(CPU), Effort(seconds=0.02, min_rounds=6, max_rounds=200))
    assert 6 <= len(rounds.samples["slow"]) < len(rounds.samples["fast"]) <= 40


def test_a_file_reads_back_as_it_was_written(sound: KernelBench, tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    sound.save(path)
    assert load(path) == sound
    json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} in the file"))


def test_a_damaged_or_foreign_file_is_refused(sound: KernelBench, tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    sound.save(path)
    path.write_text(path.read_text().replace("scaled", "scaleD"))
    with pytest.raises(StoreError, match="is damaged"):
        load(path)
    sound.model_copy(update={"format": 99}).save(path)
    with pytest.raises(StoreError, match="is not a file of `suite bench kernels` that this version"):
        load(path)
    with pytest.raises(StoreError, match="cannot be read"):
        load(tmp_path / "gone.json")


def test_tables_fit_into_a_hundred_columns_and_say_what_was_seen(sound: KernelBench) -> None:
    text = render_text(build_report(sound), width=100)
    assert max(map(len, text.splitlines())) <= 100
    for said in ("scaled", "their_scaling", "1.00×", "B2 L5: floor", "Floor", "seed 1", "3 of 3 checks"):
        assert said in text, said


def test_tables_are_markdown_and_csv_too(sound: KernelBench) -> None:
    markdown = render(build_report(sound), "markdown")
    assert "| B2 L5: floor" in markdown.replace("\\_", "_").replace("&#58;", ":")
    rows = list(csv.DictReader(io.StringIO(render(build_report(sound), "csv"))))
    called = [row for row in rows if row["column"] == "Called" and row["row"] == "scaled"]
    assert len(called) == 4
    assert all(float(row["value"]) > 0 for row in called)


def recorded(device: str, **seconds: float) -> Anchors:
    entry = {"operation": "scaling", "peer": "absent", "dtype": "float32", "shape": "B2_L5", "seconds": seconds}
    content: dict[str, Any] = {"devices": [device], "source": "measured", "method": "medians", "versions": {"p": "1"}}
    return Anchors.model_validate_json(json.dumps(content | {"entries": [entry]}))


def test_recorded_times_of_a_peer_are_labelled_as_such(sound: KernelBench) -> None:
    anchors = recorded("some GPU", forward=1.0, backward=2.0)
    assert anchors.entries[0].of_pass("forward_backward") == 3.0
    text = render_text(build_report(sound.model_copy(update={"anchors": anchors})), width=100)
    assert "absent, recorded" in text
    assert "Recorded peers: measured (p 1); medians." in text


def test_recorded_times_count_on_a_device_of_that_name_only(tmp_path: Path) -> None:
    built_in = recorded_times("built-in")
    assert of_device(built_in, "NVIDIA H100 80GB HBM3") in built_in
    assert of_device(built_in, "NVIDIA H200") is None
    mine = recorded("mine", forward=1.0)
    path = tmp_path / "mine.json"
    path.write_text(mine.model_dump_json())
    assert recorded_times(str(path)) == [mine]
    path.write_text('{"entries": 3}')
    with pytest.raises(UsageError, match="holds no recorded times"):
        recorded_times(str(path))
    with pytest.raises(UsageError, match="cannot be read"):
        recorded_times(str(tmp_path / "gone.json"))


def test_the_built_in_records_fit_the_benchmarks() -> None:
    for anchor in (anchor for anchors in recorded_times("built-in") for anchor in anchors.entries):
        one = benchmark(anchor.operation)
        assert str(one.parse(anchor.shape)) == anchor.shape
        assert anchor.peer in one.baselines
        assert anchor.dtype in one.dtypes
        assert anchor.of_pass("forward") is not None


def test_a_comparison_tells_a_change_from_noise(sound: KernelBench) -> None:
    def slowed(factor: float) -> KernelBench:
        content = sound.model_dump()
        for case in content["cases"]:
            for timing in case["entries"][0]["timings"].values():
                timing["eager_seconds"] = [factor * (1 + i / 1000) for i in range(12)]
            case["entries"][1]["timings"] = {}
        return KernelBench.model_validate(content)

    same = render(build_comparison(slowed(1.0), slowed(1.01)), "text")
    assert "4 no difference shown" in same
    faster = render(build_comparison(slowed(2.0), slowed(1.0)), "text")
    assert "4 faster" in faster
    assert "2.000" in faster
    assert "4 and 0 timings" in render(build_comparison(sound, slowed(1.0)), "text")


def test_an_interrupted_run_keeps_what_had_finished(
    sound: KernelBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(planned: Plan) -> Iterator[engine.Event]:
        yield sound.device
        yield sound.checks[0]
        yield sound.cases[0]
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "run", interrupted)
    done = CliRunner().invoke(
        app, ["bench", "kernels", "causal_conv1d", "--device", "cpu", "--seed", "5", "--out", str(tmp_path / "out")]
    )
    assert done.exit_code == 130
    assert "B2 L5" in done.output
    (path,) = (tmp_path / "out").iterdir()
    kept = load(path)
    assert (kept.is_complete, kept.seed) == (False, 5)
    assert (kept.checks, kept.cases) == ([sound.checks[0]], [sound.cases[0]])


def test_a_wrong_kernel_sets_the_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = list(engine.run(scaling_plan("scaled", "wrong_output")))
    monkeypatch.setattr(engine, "run", lambda planned: iter(events))
    done = CliRunner().invoke(app, ["bench", "kernels", "causal_conv1d", "--device", "cpu", "--out", str(tmp_path)])
    assert done.exit_code == 1
    assert "wrong_output" in done.output


def test_quick_runs_end_to_end_and_can_be_shown_and_compared(tmp_path: Path) -> None:
    names = ["causal_conv1d", "long_conv", "selective_scan"]
    done = suite(
        "bench", "kernels", *names, "--quick", "--device", "cpu", "--implementations", "cpu,fft",
        "--out", tmp_path, "--seed", "3",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "seed 3" in done.stdout
    (path,) = tmp_path.iterdir()
    bench = load(path)
    assert bench.is_complete
    assert {case.operation for case in bench.cases} == set(names)
    assert bench.duration_seconds < 15
    shown = suite("bench", "show", path, "--format", "markdown")
    assert shown.returncode == 0, shown.stderr
    assert "# Kernels" in shown.stdout
    compared = suite("bench", "compare", path, tmp_path)
    assert compared.returncode == 0, compared.stderr
    assert "no difference shown" in compared.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["kernels", "selective_scam"], "No operation is called 'selective_scam'. Did you mean 'selective_scan'?"),
        (["kernels", "attention", "--quick", "--out", "/dev/null/x"], "The folder /dev/null/x cannot be made"),
        (["show", "gone.json"], "gone.json cannot be read"),
        (["compare", ".", "."], "holds no benchmarks"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(arguments: list[str], said: str) -> None:
    done = suite("bench", *arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not Path("results").exists()


def test_help_imports_no_torch() -> None:
    code = """
import sys
sys.argv = ["suite", "bench", "kernels", "--help"]
from suite.cli import app
try:
    app()
except SystemExit:
    pass
print("heavy:", sorted({"torch", "numpy", "numba"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=HOME, capture_output=True, text=True)
    assert "heavy: []" in done.stdout, done.stdout + done.stderr
