"""What a benchmark of kernels saw, to and from one JSON file. Raw samples are stored; statistics are derived later."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pydantic

from suite.errors import StoreError
from suite.records import Environment
from suite.spec import Settings
from suite.store import read_checked, write_checked

FORMAT_VERSION = 1
"""Version of the file's layout."""

Pass = Literal["forward", "forward_backward"]
"""Without gradients, as in inference; or with the gradient of every input, as in training."""


class Device(Settings):
    """What the device can do, measured where that is possible."""

    name: str
    kind: Literal["cpu", "cuda"]
    copy_bytes_per_second: float
    """Bytes read plus bytes written by a large copy within the device's memory."""
    matrix_flops_per_second: dict[str, float]
    """dtype -> floating-point operations of a large matrix product."""
    num_multiprocessors: int | None = None
    special_functions_per_clock: int | None = None
    """Exponentials, logarithms, reciprocals, … a clock of one multiprocessor can begin."""
    float32_per_clock: int | None = None
    """Multiply-adds, multiplications or additions in float32 a clock of one multiprocessor can begin."""
    sm_clock_hz: float | None = None
    """Under load. Each case has its own."""
    memory_clock_hz: float | None = None


class Check(Settings):
    """An implementation compared with the specification in float64, on random inputs."""

    operation: str
    implementation: str
    is_peer: bool
    dtype: str
    shape: str
    """As the command line takes it: `B8_L2048_D2048`."""
    tolerance: float
    errors: dict[str, float] = {}
    """"output" or "gradient of …" -> the largest difference over the largest entry."""
    seconds: float | None = None
    """Of forward and backward, with whatever compiling and loading no earlier call of the process had paid for."""
    failure: str | None = None
    """Why there is nothing to compare, or which error is beyond the tolerance."""
    is_unavailable: bool = False
    """It says itself that it cannot run here or with this dtype, which breaks no promise."""

    @property
    def is_passed(self) -> bool:
        return self.failure is None


class Floor(Settings):
    """The least time that a pass can take on a device."""

    seconds: float
    bound_by: str
    """The resource that takes longest."""
    bytes: int
    """Every input read once and every output written once."""


class Timing(Settings):
    """One pass, timed."""

    first_call_seconds: float
    """With whatever compiling and loading no earlier call of the process had paid for."""
    eager_seconds: list[float]
    """Each call as Python makes it."""
    graphed_seconds: list[float] | None = None
    """Each replay of the same call as a CUDA graph: the kernels without their host."""
    not_graphed: str | None = None
    """Why there are no replays."""


class Trouble(Settings):
    """Why an implementation was not timed, or not to the end."""

    kind: Literal["failed_check", "out_of_memory", "too_slow", "unavailable", "error"]
    message: str


class Entry(Settings):
    """One implementation, or one peer, in one case."""

    implementation: str
    is_peer: bool
    timings: dict[Pass, Timing] = {}
    receipt: dict[str, list[str]] = {}
    """Operation -> the implementations that really ran; empty for a peer."""
    trouble: Trouble | None = None


class Case(Settings):
    """One operation with one dtype at one shape."""

    operation: str
    dtype: str
    shape: str
    tokens: int
    """Positions of all sequences together."""
    baselines: list[str]
    """Peers or implementations that the others are compared with: the first that is here, or was recorded."""
    floors: dict[Pass, Floor]
    sm_clock_hz: float | None
    """Median while the case was timed."""
    entries: list[Entry]


class Anchor(Settings):
    """A peer's time as it was once measured on a device of the same name."""

    operation: str
    peer: str
    dtype: str
    shape: str
    seconds: dict[Literal["forward", "backward", "forward_backward"], float]

    def of_pass(self, name: Pass) -> float | None:
        """Seconds of a pass; of forward and backward, the sum where they were only timed one by one."""
        if name in self.seconds:
            return self.seconds[name]
        if name == "forward_backward" and "backward" in self.seconds:
            return self.seconds["forward"] + self.seconds["backward"]
        return None


class Anchors(Settings):
    """Recorded times of peers and where they come from."""

    devices: list[str]
    """Names of the devices they may be compared on."""
    source: str
    method: str
    versions: dict[str, str]
    entries: list[Anchor]


class KernelBench(Settings):
    """One invocation of `suite bench kernels`."""

    format: int = FORMAT_VERSION
    kind: Literal["kernels", "kernel_errors"]
    command: str
    started_at: str
    """UTC, ISO 8601."""
    duration_seconds: float
    is_complete: bool
    """False if it was interrupted: what finished before is here."""
    seed: int
    environment: Environment
    device: Device
    checks: list[Check] = []
    cases: list[Case] = []
    anchors: Anchors | None = None
    """Set only where they apply to the device."""

    @property
    def num_failed(self) -> int:
        """Checks and entries that broke a promise of ours; running out of memory or of patience breaks none.

        A table of errors is for looking at: there only what could not be computed counts.
        """
        ours = [check for check in self.checks if not check.is_peer and not check.is_unavailable]
        broken = [
            check for check in ours if not check.is_passed and not (check.errors and self.kind == "kernel_errors")
        ]
        entries = [entry for case in self.cases for entry in case.entries if not entry.is_peer]
        return len(broken) + sum(entry.trouble is not None and entry.trouble.kind == "error" for entry in entries)

    def save(self, path: Path) -> None:
        """Writes the file, or leaves the one before it untouched.

        Raises:
            StoreError: it cannot be written.
        """
        write_checked(path, self.model_dump(mode="json"))


def kind_of(path: Path) -> str | None:
    """What a stored file says it holds: "kernels", "kernel_errors", "training", or nothing.

    Raises:
        StoreError: it cannot be read or is damaged.
    """
    content = read_checked(path)
    return content.get("kind") if isinstance(content, dict) else None


def load(path: Path) -> KernelBench:
    """Reads a file that `save` wrote.

    Raises:
        StoreError: it cannot be read, is damaged, or is of another version.
    """
    content = read_checked(path)
    told = (content.get("kind"), content.get("format")) if isinstance(content, dict) else None
    if told not in [("kernels", FORMAT_VERSION), ("kernel_errors", FORMAT_VERSION)]:
        raise StoreError(f"{path} is not a file of `suite bench kernels` that this version of the suite reads")
    try:
        return KernelBench.model_validate_json(json.dumps(content))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise StoreError(f"{path} does not fit this version of the suite: {place}: {first['msg']}") from None
