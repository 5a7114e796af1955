"""A number is what it says it is."""

from __future__ import annotations

import time

import pytest
import torch

from suite.measure.memory import PeakMemory, is_out_of_memory
from suite.measure.time import call_seconds, interleaved_seconds

CPU = torch.device("cpu")
MIB = 2**20


def test_a_call_takes_as_long_as_it_takes() -> None:
    assert 0.05 <= call_seconds(lambda: time.sleep(0.05), CPU) < 0.5


def test_rounds_are_interleaved_and_the_warm_up_is_not_counted() -> None:
    calls: list[str] = []
    pairs = [
        (lambda: calls.append("prepare a"), lambda: calls.append("a")),
        (lambda: calls.append("prepare b"), lambda: calls.append("b")),
    ]
    samples = interleaved_seconds(pairs, CPU, num_warmup_rounds=2, min_rounds=3, seconds=0.0)
    assert calls == ["prepare a", "a", "prepare b", "b"] * 5
    assert [len(each) for each in samples] == [3, 3]


def test_what_prepares_a_call_is_not_timed() -> None:
    ((seconds, *_),) = interleaved_seconds(
        [(lambda: time.sleep(0.2), lambda: None)], CPU, num_warmup_rounds=0, min_rounds=1, seconds=0.0
    )
    assert seconds < 0.1


def test_rounds_end_with_the_time_but_not_before_the_least() -> None:
    pair = (lambda: None, lambda: time.sleep(0.02))
    (few,) = interleaved_seconds([pair], CPU, num_warmup_rounds=0, min_rounds=2, seconds=0.1)
    assert 3 <= len(few) <= 10
    (least,) = interleaved_seconds([pair], CPU, num_warmup_rounds=0, min_rounds=2, seconds=0.0)
    assert len(least) == 2


def test_peak_memory_is_the_worst_moment_not_the_last() -> None:
    memory = PeakMemory(CPU)

    def spike() -> None:
        torch.ones(64 * MIB, dtype=torch.uint8)

    peak = memory.of(spike)
    assert peak is not None
    assert 63 * MIB <= peak < 80 * MIB  # the heap hands back a few pages of its own in between


def test_one_calls_garbage_does_not_count_for_the_next() -> None:
    memory = PeakMemory(CPU)
    memory.of(lambda: [torch.ones(MIB, dtype=torch.uint8) for _ in range(64)])
    small = memory.of(lambda: torch.ones(4 * MIB, dtype=torch.uint8))
    assert small is not None
    assert small < 24 * MIB


def test_a_call_is_made_where_the_system_tells_nothing_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("suite.measure.memory.stated_bytes", lambda path, field: None)
    calls: list[int] = []
    assert PeakMemory(CPU).of(lambda: calls.append(1)) is None
    assert calls == [1]


def test_only_memory_errors_are_memory_errors() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 50, dtype=torch.uint8)
    assert is_out_of_memory(raised.value)
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shapes disagree"))
