"""`suite bench kernels`: first whether an implementation is right, then how long it takes.

Inputs are new in every invocation. What fails a check is not timed. Where memory or patience runs out, that is a row.
"""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kernels.dispatch import ImplementationUnavailable, receipt
from suite.bench.benchmark import Contender, Inputs, KernelBenchmark, Outputs, Shape, Work, as_tuple
from suite.bench.checks import Examination, dtype_name, leaves_of
from suite.bench.floors import floor, measure_device
from suite.bench.request import Part, Plan
from suite.bench.results import Case, Check, Device, Entry, Floor, Pass, Timing, Trouble
from suite.bench.timing import FULL, QUICK, Run, Stopwatch, captured, timed_in_rounds
from suite.measure.memory import is_out_of_memory

_LONGEST_CALL_SECONDS = 4.0
"""What is expected to take longer a call is left out."""

_PASSES: tuple[Pass, ...] = ("forward", "forward_backward")


@dataclass(frozen=True)
class Doing:
    """What begins now, for those who wait."""

    what: str
    fraction: float


Event = Doing | Device | Check | Case


def check_all(plan: Plan) -> Iterator[Event]:
    """The device, then every contender against the specification at every shape of the plan: the errors by length."""
    yield measure_device(plan.device, [])
    num_done, num_all = 0, sum(len(part.dtypes) * len(part.shapes) for part in plan.parts)
    for part in plan.parts:
        for shape in part.shapes:
            examinations: dict[torch.dtype, Examination] = {}
            for dtype in part.dtypes:
                yield Doing(f"{part.benchmark.name} {shape} {dtype_name(dtype)}", num_done / num_all)
                num_done += 1
                # The numbers of a narrow dtype are float32 numbers too: float64 has to be computed once for both.
                narrow = [other for other in part.dtypes if other.itemsize < dtype.itemsize]
                drawn_as = narrow[0] if narrow else dtype
                if drawn_as not in examinations:
                    examinations[drawn_as] = _examination(part.benchmark, shape, drawn_as, plan)
                for contender in part.contenders:
                    yield examinations[drawn_as].check(contender, dtype)


def run(plan: Plan) -> Iterator[Event]:
    """The device, then for each operation and dtype its checks and its cases, each as soon as it is finished."""
    yield Doing("measuring the device", 0.0)
    device = measure_device(plan.device, _matrix_dtypes(plan))
    yield device
    timer = _Timer(plan, device)
    jobs = [(part, dtype) for part in plan.parts for dtype in part.dtypes]
    num_done, num_all = 0, sum(1 + len(part.shapes) for part, _ in jobs)
    for part, dtype in jobs:
        title = f"{part.benchmark.name} {dtype_name(dtype)}"
        yield Doing(f"{title}: is it right?", num_done / num_all)
        failed: dict[str, Trouble] = {}
        for check in _checks(part, dtype, plan):
            yield check
            if not check.is_passed:
                failed.setdefault(check.implementation, _failed(check))
        num_done += 1
        for shape in part.shapes:
            yield Doing(f"{title} {shape}", num_done / num_all)
            yield timer.case(part, shape, dtype, failed)
            num_done += 1


def _checks(part: Part, dtype: torch.dtype, plan: Plan) -> Iterator[Check]:
    """At the sizes that a benchmark chose for this; peers at the first alone, for some take round sizes only."""
    for position, text in enumerate(part.benchmark.check_shapes):
        shape = part.benchmark.parse(text)
        assert shape is not None, text
        examination = _examination(part.benchmark, shape, dtype, plan)
        for contender in part.contenders:
            if position == 0 or not contender.is_peer:
                yield examination.check(contender, dtype)


def _examination(benchmark: KernelBenchmark, shape: Shape, dtype: torch.dtype, plan: Plan) -> Examination:
    return Examination(benchmark, shape, dtype, plan.device, _seed(plan, benchmark, shape, dtype))


def _seed(plan: Plan, benchmark: KernelBenchmark, shape: Shape, dtype: torch.dtype) -> int:
    """Of one set of inputs: the same whatever else is benchmarked."""
    text = f"{plan.seed} {benchmark.name} {shape} {dtype_name(dtype)}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])


def _matrix_dtypes(plan: Plan) -> list[torch.dtype]:
    """The dtypes in which matrix products have to be timed for some floor."""
    found: list[torch.dtype] = []
    for part in plan.parts:
        if any(work.matrix_flops for work in part.benchmark.work(part.shapes[0], 1)):
            found += part.dtypes
    return list(dict.fromkeys(found))


class _Timer:
    """Times cases, and remembers how slow the contenders were."""

    def __init__(self, plan: Plan, device: Device) -> None:
        self._plan, self._device = plan, device
        self._effort = QUICK if plan.is_quick else FULL
        self._stopwatch = Stopwatch(plan.device)
        self._floors_a_call: dict[tuple[str, str], float] = {}

    def case(self, part: Part, shape: Shape, dtype: torch.dtype, failed: Mapping[str, Trouble]) -> Case:
        """Every contender at one shape; those that failed before stay out."""
        forward, backward = part.benchmark.work(shape, dtype.itemsize)
        work: dict[Pass, tuple[Work, ...]] = {"forward": (forward,), "forward_backward": (forward, backward)}
        least_seconds = self._floor(work["forward_backward"], dtype, self._device.sm_clock_hz).seconds
        troubles = dict(failed)
        timed = self._timed(part, shape, dtype, least_seconds, troubles)
        _release(self._plan.device)
        # Calls that only the host holds up are over before anyone can look at the clock.
        sm_clock_hz = self._stopwatch.sm_clock_hz() or self._device.sm_clock_hz
        return Case(
            operation=part.benchmark.name,
            dtype=dtype_name(dtype),
            shape=str(shape),
            tokens=part.benchmark.tokens(shape),
            baselines=list(part.benchmark.baselines),
            floors={name: self._floor(passes, dtype, sm_clock_hz) for name, passes in work.items()},
            sm_clock_hz=sm_clock_hz,
            entries=[
                Entry(
                    implementation=contender.name,
                    is_peer=contender.is_peer,
                    timings=timed[contender.name].timings if contender.name in timed else {},
                    receipt=timed[contender.name].receipt if contender.name in timed else {},
                    trouble=troubles.get(contender.name),
                )
                for contender in part.contenders
            ],
        )

    def _timed(
        self, part: Part, shape: Shape, dtype: torch.dtype, least_seconds: float, troubles: dict[str, Trouble]
    ) -> dict[str, _Timed]:
        """What is known of each contender that came through its first calls; the rest goes to `troubles`."""
        trials = self._begin(part, shape, dtype, least_seconds, troubles)
        timed = {trial.name: _Timed(trial.receipt, {}) for trial in trials}
        for name in _PASSES:
            eager = timed_in_rounds({trial.name: trial.runs[name] for trial in trials}, self._stopwatch, self._effort)
            troubles |= {who: _trouble(error) for who, error in eager.errors.items()}
            trials = [trial for trial in trials if trial.name not in eager.errors]
            graphed, not_graphed = self._graphed({trial.name: trial.runs[name] for trial in trials})
            for trial in trials:
                timed[trial.name].timings[name] = Timing(
                    first_call_seconds=trial.first_call_seconds[name],
                    eager_seconds=eager.samples[trial.name],
                    graphed_seconds=graphed.get(trial.name),
                    not_graphed=not_graphed.get(trial.name),
                )
        return timed

    def _begin(
        self, part: Part, shape: Shape, dtype: torch.dtype, least_seconds: float, troubles: dict[str, Trouble]
    ) -> list[_Trial]:
        """The first calls; who does not come through them is put down in `troubles`."""
        generator = torch.Generator(self._plan.device)
        generator.manual_seed(_seed(self._plan, part.benchmark, shape, dtype))
        try:
            inputs = part.benchmark.inputs(shape, dtype, self._plan.device, generator)
        except Exception as error:
            for contender in part.contenders:
                troubles.setdefault(contender.name, _trouble(error))
            return []
        trials: list[_Trial] = []
        for contender in part.contenders:
            name = contender.name
            key = (part.benchmark.name, name)
            predicted = self._floors_a_call.get(key, 0.0) * least_seconds
            if name not in troubles and predicted > _LONGEST_CALL_SECONDS:
                troubles[name] = Trouble(kind="too_slow", message=f"a call would take about {predicted:.0f} s")
            if name in troubles:
                continue
            try:
                trial = _Trial(contender, inputs, generator, self._stopwatch)
            except Exception as error:
                troubles[name] = _trouble(error)
            else:
                trials.append(trial)
                floors = trial.second_call_seconds / least_seconds
                self._floors_a_call[key] = min(floors, self._floors_a_call.get(key, floors))
            _release(self._plan.device)
        return trials

    def _graphed(self, runs: Mapping[str, Run]) -> tuple[dict[str, list[float]], dict[str, str]]:
        """Samples of those that a graph can hold, and why it cannot hold the others."""
        if self._plan.device.type != "cuda":
            return {}, dict.fromkeys(runs, "there are no CUDA graphs on a CPU")
        replays: dict[str, Run] = {}
        reasons: dict[str, str] = {}
        for name, run in runs.items():
            try:
                replays[name] = captured(run, self._plan.device)
            except Exception as error:
                reasons[name] = _trouble(error).message
            _release(self._plan.device)
        rounds = timed_in_rounds(replays, self._stopwatch, self._effort)
        reasons |= {name: _trouble(error).message for name, error in rounds.errors.items()}
        return {name: taken for name, taken in rounds.samples.items() if name not in rounds.errors}, reasons

    def _floor(self, work: tuple[Work, ...], dtype: torch.dtype, sm_clock_hz: float | None) -> Floor:
        return floor(work, dtype_name(dtype), self._device, sm_clock_hz)


@dataclass(frozen=True)
class _Timed:
    """What a case keeps of a contender."""

    receipt: dict[str, list[str]]
    timings: dict[Pass, Timing]


class _Trial:
    """A contender with its inputs, after its first calls."""

    def __init__(self, contender: Contender, inputs: Inputs, generator: torch.Generator, stopwatch: Stopwatch) -> None:
        self.name = contender.name
        laid_out = contender.laid_out(inputs)
        leaves = leaves_of(laid_out)

        def forward() -> Outputs:
            with torch.no_grad():
                return contender.call(laid_out)

        with receipt() as ran:
            first_forward = stopwatch(forward)
        self.receipt = {operation: sorted(names) for operation, names in ran.items()}
        # Laid out in memory like the outputs, so that nobody has to transpose them first.
        weights = [torch.empty_like(output).normal_(generator=generator) for output in as_tuple(forward())]

        def forward_backward() -> tuple[Tensor, ...]:
            outputs = as_tuple(contender.call(laid_out | leaves))
            return torch.autograd.grad(outputs, list(leaves.values()), weights)

        first_both = stopwatch(forward_backward)
        self.first_call_seconds: dict[Pass, float] = {"forward": first_forward, "forward_backward": first_both}
        self.second_call_seconds = stopwatch(forward_backward)
        # The checks were at other sizes; no test but this one can be afforded here.
        _expect_finite(forward_backward())
        self.runs: dict[Pass, Run] = {"forward": forward, "forward_backward": forward_backward}


def _expect_finite(gradients: tuple[Tensor, ...]) -> None:
    for gradient in gradients:
        if not bool(torch.isfinite(gradient).all()):
            raise ArithmeticError("a gradient is not finite at this shape")


def _failed(check: Check) -> Trouble:
    kind: Literal["unavailable", "failed_check"] = "unavailable" if check.is_unavailable else "failed_check"
    return Trouble(kind=kind, message=check.failure or "")


def _trouble(error: Exception) -> Trouble:
    if isinstance(error, ImplementationUnavailable):
        return Trouble(kind="unavailable", message=str(error))
    first = str(error).strip().partition("\n")[0]
    if is_out_of_memory(error):
        return Trouble(kind="out_of_memory", message=first)
    return Trouble(kind="error", message=f"{type(error).__name__}: {first}")


def _release(device: torch.device) -> None:
    """Hands back what nothing holds any more, so that one contender's memory is there for the next."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
