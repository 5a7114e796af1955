"""Causal attention: every implementation against the softmax in float64, and an honest receipt."""

from __future__ import annotations

import importlib
import inspect
import sys
from functools import partial
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kernels.attention import OPERATION, attention_step, causal_attention
from kernels.dispatch import ImplementationUnavailable, receipt
from tests.kernels.comparison import assert_agrees, assert_close

IMPLEMENTATIONS = [name for name, reason in OPERATION.availability(torch.device("cpu")).items() if reason is None]
FAST = [name for name in IMPLEMENTATIONS if name != "reference"]

reference = partial(causal_attention, implementation="reference")


def random_inputs(
    length: int, heads: int = 4, key_heads: int = 4, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    return {
        "q": torch.randn(2, length, heads, 16, dtype=dtype),
        "k": torch.randn(2, length, key_heads, 16, dtype=dtype),
        "v": torch.randn(2, length, key_heads, 16, dtype=dtype),
    }


@pytest.mark.parametrize("implementation", FAST)
@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 511])
def test_outputs_and_gradients_agree_with_the_reference_at_every_length(implementation: str, length: int) -> None:
    attention = partial(causal_attention, implementation=implementation)
    assert_agrees(attention, reference, random_inputs(length), torch.float32)


@pytest.mark.parametrize("implementation", FAST)
@pytest.mark.parametrize("window", [1, 2, 7, 16, 33, 49, 50, 100])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_windows_and_groups_of_heads_agree_with_the_reference(implementation: str, window: int, key_heads: int) -> None:
    attention = partial(causal_attention, implementation=implementation, window=window)
    assert_agrees(attention, partial(reference, window=window), random_inputs(50, 4, key_heads), torch.float32)


@pytest.mark.parametrize("implementation", FAST)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_lose_no_more_than_their_own_rounding(implementation: str, dtype: torch.dtype) -> None:
    inputs = random_inputs(65, dtype=dtype)
    attention = partial(causal_attention, implementation=implementation)
    assert attention(**inputs).dtype == dtype
    assert_agrees(attention, reference, inputs, dtype)


def test_strides_do_not_matter() -> None:
    packed = torch.randn(2, 33, 3, 4, 16)
    q, k, v = packed.unbind(2)
    expected = causal_attention(q.contiguous(), k.contiguous(), v.contiguous())
    assert_close("y", causal_attention(q, k, v), expected, torch.float32)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("window", [None, 1, 5, 100])
def test_steps_over_a_cache_equal_attention_over_the_sequence(implementation: str, window: int | None) -> None:
    q, k, v = random_inputs(20, 4, 2).values()
    y = reference(q, k, v, window=window)
    # Beyond the length the caches hold what must not be seen.
    k_cache, v_cache = (torch.cat([cache, torch.full_like(cache, torch.nan)], dim=1) for cache in (k, v))
    for t in (0, 1, 10, 19):
        y_t = attention_step(q[:, t], k_cache, v_cache, t + 1, window=window, implementation=implementation)
        assert_close(f"y at {t}", y_t, y[:, t], torch.float32)


SLOPES = torch.tensor([0.5, 0.25, 0.1, 0.003])


@pytest.mark.parametrize("implementation", FAST)
@pytest.mark.parametrize("length", [1, 2, 65, 200])
@pytest.mark.parametrize("window", [None, 7, 64])
def test_slopes_lower_the_scores_by_distance(implementation: str, length: int, window: int | None) -> None:
    attention = partial(causal_attention, implementation=implementation, window=window, alibi_slopes=SLOPES)
    specification = partial(reference, window=window, alibi_slopes=SLOPES)
    assert_agrees(attention, specification, random_inputs(length, 4, 2), torch.float32)


def test_slopes_reach_far_in_bfloat16() -> None:
    """Positions beyond 256 are no bfloat16 numbers; distances count all the same."""
    inputs = random_inputs(3000, dtype=torch.bfloat16)
    slopes = torch.tensor([2.0**-power for power in (2, 4, 6, 8)])
    found = causal_attention(**inputs, alibi_slopes=slopes)
    expected = reference(**{name: tensor.float() for name, tensor in inputs.items()}, alibi_slopes=slopes)
    assert_close("y", found, expected, torch.bfloat16)


@pytest.mark.parametrize("window", [None, 3, 6])
@pytest.mark.parametrize("slopes", [None, SLOPES])
def test_a_length_on_the_device_gives_the_same_step(window: int | None, slopes: Tensor | None) -> None:
    q, k, v = random_inputs(20, 4, 2).values()
    y = reference(q, k, v, window=window, alibi_slopes=slopes)
    k_cache, v_cache = (torch.cat([cache, torch.zeros_like(cache)], dim=1) for cache in (k, v))
    for t in (0, 1, 10, 19):
        length = torch.tensor(t + 1)
        y_t = attention_step(q[:, t], k_cache, v_cache, length, window=window, alibi_slopes=slopes)
        assert_close(f"y at {t}", y_t, y[:, t], torch.float32)
        y_t = attention_step(q[:, t], k_cache, v_cache, t + 1, window=window, alibi_slopes=slopes)
        assert_close(f"y at {t}", y_t, y[:, t], torch.float32)


@pytest.mark.parametrize("slopes", [None, SLOPES])
def test_a_ring_of_the_windows_size_holds_all_that_is_seen(slopes: Tensor | None) -> None:
    window = 6
    q, k, v = random_inputs(20, 4, 2).values()
    y = reference(q, k, v, window=window, alibi_slopes=slopes)
    k_ring, v_ring = (torch.zeros(2, window, 2, 16) for _ in range(2))
    for t in range(20):
        k_ring[:, t % window], v_ring[:, t % window] = k[:, t], v[:, t]
        y_t = attention_step(q[:, t], k_ring, v_ring, torch.tensor(t + 1), window=window, alibi_slopes=slopes)
        assert_close(f"y at {t}", y_t, y[:, t], torch.float32)


def test_a_step_with_its_length_on_the_device_has_one_implementation() -> None:
    q, k, v = random_inputs(6).values()
    with receipt() as ran:
        attention_step(q[:, 0], k, v, torch.tensor(3))
    assert ran == {"attention_step": {"torch"}}
    with pytest.raises(ImplementationUnavailable, match="length is on the device cannot run as 'flash'"):
        attention_step(q[:, 0], k, v, torch.tensor(3), implementation="flash")


@pytest.mark.parametrize(
    ("implementation", "module", "unlimited"),
    [
        ("flash_attn", "flash_attn", -1),
        ("flash_attn_3", "flash_attn_interface", -1),
        ("flash_attn_4", "flash_attn.cute", None),
    ],
)
@pytest.mark.parametrize("gives_sums", [False, True])
def test_the_packages_of_flash_attention_are_called_as_they_ask(
    monkeypatch: pytest.MonkeyPatch, implementation: str, module: str, unlimited: int | None, gives_sums: bool
) -> None:
    """Stand-ins for the packages, which run on a GPU only."""
    calls: list[dict[str, Any]] = []

    def flash_attn_func(q: Tensor, k: Tensor, v: Tensor, **arguments: Any) -> Any:
        calls.append(arguments)
        return (q, q.sum()) if gives_sums and implementation != "flash_attn" else q

    for name in ("flash_attn", "flash_attn.cute", "flash_attn_interface"):
        stand_in = ModuleType(name)
        stand_in.flash_attn_func = flash_attn_func  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, name, stand_in)
    implemented = importlib.import_module(OPERATION.implementations[implementation])
    q, k, v = random_inputs(6, dtype=torch.bfloat16).values()
    assert implemented.unsuited(q, k, v, True, None, None) is None
    assert "float32" in implemented.unsuited(q.float(), k, v, True, None, None)
    assert torch.equal(implemented.attention(q, k, v, True, None, None), q)
    assert torch.equal(implemented.attention(q, k, v, True, 5, None), q)
    assert [call["causal"] for call in calls] == [True, True]
    assert [call["window_size"] for call in calls] == [(unlimited, unlimited), (4, 0)]
    assert implemented.unavailable(torch.device("cpu")) == "it runs on a GPU only"


class _FusedOperators(TorchDispatchMode):
    """Collects the fused attention operators that really run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "scaled_dot_product" in operator.name():
            self.names.add(operator.name())
        return operator(*args, **kwargs or {})


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("implementation", ["auto", "flash", "math"])
def test_the_receipt_names_what_torch_really_ran(implementation: str, window: int | None) -> None:
    with receipt() as ran, _FusedOperators() as fused:
        causal_attention(**random_inputs(40), window=window, implementation=implementation)
    if implementation == "math":
        assert ran == {"attention": {"math"}}
        assert fused.names == set()
    else:
        assert ran == {"attention": {"flash"}}
        assert fused.names == {"aten::_scaled_dot_product_flash_attention_for_cpu"}


def test_what_cannot_run_here_is_refused_with_the_reason_and_leaves_no_receipt() -> None:
    with receipt() as ran, pytest.raises(ImplementationUnavailable, match="cudnn: it runs on an NVIDIA GPU only"):
        causal_attention(**random_inputs(4), implementation="cudnn")
    assert ran == {}


def test_an_unknown_implementation_is_an_error_that_lists_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"no implementation 'fast'. Known: auto, .*flash"):
        causal_attention(**random_inputs(4), implementation="fast")


def test_under_autocast_the_inputs_are_cast_before_the_choice() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert causal_attention(**random_inputs(4)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q": torch.randn(2, 6, 16)}, r"q has shape \(2, 6, 16\); it must be \(batch, length, heads, head_size\)"),
        ({"q": torch.randn(2, 0, 4, 16)}, "its length must be at least 1"),
        ({"k": torch.randn(2, 6, 3, 16)}, "k has 3 heads; their number must divide that of q, 4"),
        ({"v": torch.randn(2, 6, 2, 16)}, r"v has shape \(2, 6, 2, 16\); .* = \(2, 6, 4, 16\)"),
        ({"v": torch.randn(2, 6, 4, 16).double()}, "v is torch.float64; it must be torch.float32, like q"),
        ({"k": torch.ones(2, 6, 4, 16, dtype=torch.int64)}, "k is torch.int64"),
        ({"k": torch.randn(2, 6, 4, 16, device="meta")}, "k is on meta and q on cpu"),
        ({"window": 0}, "window is 0; it must be at least 1"),
        ({"alibi_slopes": torch.ones(3)}, r"alibi_slopes has shape \(3,\); it must be \(heads\) = \(4,\)"),
    ],
)
def test_a_bad_input_is_named_with_what_it_was_and_must_be(changes: dict[str, object], message: str) -> None:
    # Unwrapped, because a shape checker installed by tests would speak first.
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(causal_attention)(**{**random_inputs(6), **changes})


@pytest.mark.parametrize("length", [0, 7])
def test_a_length_that_the_caches_do_not_hold_is_refused(length: int) -> None:
    q, k, v = random_inputs(6).values()
    with pytest.raises(ValueError, match=f"length is {length}; it must be from 1 to the capacity of the caches, 6"):
        attention_step(q[:, 0], k, v, length)


@pytest.mark.parametrize("options", [{}, {"window": 3}, {"alibi_slopes": torch.tensor([0.5, 0.25, 0.1, 0.05])}])
def test_each_row_of_a_step_may_have_seen_a_number_of_its_own(options: dict[str, Any]) -> None:
    q, k_cache, v_cache = torch.randn(3, 4, 8), torch.randn(3, 10, 2, 8), torch.randn(3, 10, 2, 8)
    lengths = torch.tensor([1, 4, 10])
    found = attention_step(q, k_cache, v_cache, lengths, **options)
    for row, length in enumerate(lengths.tolist()):
        one = slice(row, row + 1)
        expected = attention_step(q[one], k_cache[one], v_cache[one], torch.tensor(length), **options)
        assert_close(f"row {row}", found[one], expected, torch.float32)
    with pytest.raises(ValueError, match=r"length has shape \(2,\); it must be \(batch\) = \(3,\)"):
        inspect.unwrap(attention_step)(q, k_cache, v_cache, lengths[:2])
