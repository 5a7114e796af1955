"""Models are brought to one size: the right width is found, and what no width reaches is said with the way out."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.flops import flops_per_token
from models.shell import Shell
from models.state import state_bytes
from suite.errors import UsageError
from suite.matching import Candidate, match
from suite.registry import Registry
from suite.spec import MatchedSize, Matching, MatchingPolicy, Preset, ShellSettings
from tests.suite.builders import FAULTY

REGISTRY = Registry([FAULTY])
MODELS = ("mamba", "s4", "transformer", "lstm", "gru")
POLICIES: Sequence[MatchingPolicy] = ("parameters", "state", "flops")


def candidates(*models: str, width: int = 256) -> list[Candidate]:
    task = REGISTRY.task("induction_heads")()
    shell = ShellSettings(width=width, num_layers=2)
    return [Candidate(REGISTRY.model(model)(), task, shell, "bf16", "cpu") for model in models]


def matched(text: str, *models: str, width: int = 256) -> list[MatchedSize]:
    return match(candidates(*models, width=width), Matching.of(text), 0.02)


@pytest.mark.parametrize("policy", POLICIES)
def test_all_models_come_within_the_tolerance_of_the_first_at_its_own_width(policy: str) -> None:
    first, *others = matched(policy, *MODELS)
    assert (first.width, first.residual) == (256, 0.0)
    assert all(other.target == first.size for other in others)
    assert all(abs(other.residual) <= 0.02 for other in others)
    assert len({size.width for size in (first, *others)}) > 1


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("model", MODELS)
def test_a_size_is_that_of_the_model_as_it_is_built(model: str, policy: MatchingPolicy) -> None:
    (candidate,) = candidates(model, width=32)
    shell = Shell(candidate.shell, candidate.task.vocab_size, candidate.model)
    with torch.autocast("cpu", torch.bfloat16):
        num_state_bytes = state_bytes(shell.initial_state(1, candidate.task.length))
    expected = {
        "parameters": shell.num_non_embedding_parameters,
        "state": num_state_bytes,
        "flops": flops_per_token(shell.branches, candidate.task.length),
    }
    assert candidate.size(policy, 32) == expected[policy]


def test_a_target_is_reached_whatever_the_width_of_the_preset() -> None:
    from_below, from_above = (matched("parameters=100_000", *MODELS, width=width) for width in (8, 2048))
    assert from_below == from_above
    assert {size.target for size in from_below} == {100_000}


def test_widths_that_the_heads_do_not_divide_are_stepped_over() -> None:
    (size,) = matched("parameters=90_000_000", "transformer")
    assert size.width % 8 == 0


def test_nothing_as_large_as_a_model_is_ever_built() -> None:
    (size,) = matched("parameters=1e10", "mamba")
    assert abs(size.residual) < 0.001


def test_only_ways_out_that_lead_out_are_named() -> None:
    def said(match: str) -> str:
        with pytest.raises(UsageError) as raised:
            matched(match, *MODELS, width=64)
        return str(raised.value)

    assert "a larger shell.width" in said("parameters")
    assert "a larger shell.width" not in said("parameters=65_472"), "it is where the search begins, and no more"
    tolerance = float(said("parameters=65_472").rpartition("preset.match_tolerance=")[2])
    assert Preset(match_tolerance=tolerance).match_tolerance < 1
    assert "match_tolerance" not in said("parameters=10"), "nothing is within 23 times of a target"


def test_what_no_width_reaches_is_named_with_sizes_and_a_target_that_all_reach() -> None:
    with pytest.raises(UsageError) as raised:
        matched("parameters", *MODELS, width=64)
    said = str(raised.value)
    assert "transformer has no width with 65,472 non-embedding parameters" in said
    assert "nearest are 55,536 at width 48, 76,440 at width 56" in said
    (suggested,) = re.findall(r"--match (parameters=\d+)", said)
    assert all(abs(size.residual) <= 0.02 for size in matched(suggested, *MODELS, width=64))


def test_a_model_without_memory_cannot_be_matched_by_its_state() -> None:
    with pytest.raises(UsageError, match="faulty has no bytes of state a sequence to match the others to"):
        matched("state", "faulty", "mamba")
    with pytest.raises(UsageError, match="faulty has no width with"):
        matched("state", "mamba", "faulty")


def test_a_model_that_fits_no_width_says_why() -> None:
    task = REGISTRY.task("echo")()
    hybrid = REGISTRY.model("hybrid")()
    with pytest.raises(UsageError, match=r"Set shell\.num_layers=2 or more"):
        match([Candidate(hybrid, task, ShellSettings(num_layers=1), "fp32", "cpu")], Matching.of("parameters"), 0.02)


@pytest.mark.parametrize(
    "text", ["params", "flops=0", "flops=-1", "state=many", "state=", "flops=inf", "flops=nan", ""]
)
def test_a_matching_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"matching policy|expected a number above zero"):
        Matching.of(text)


@pytest.mark.parametrize("text", ["parameters", "state=8192", "flops=1.5"])
def test_a_matching_is_written_as_it_was_given(text: str) -> None:
    assert str(Matching.of(text)) == text


class Stairs(Candidate):
    """A model that fits multiples of the depth alone, and whose size is the square of the width."""

    def size(self, policy: MatchingPolicy, width: int) -> float:
        if width % self.shell.num_layers:
            raise UsageError(f"width {width} does not fit")
        return float(width**2)


@given(st.integers(1, 40), st.integers(1, 300), st.floats(1.0, 1e5))
def test_the_width_that_is_found_is_the_nearest_of_all(multiple: int, start: int, target: float) -> None:
    (plain,) = candidates("gru")
    stairs = Stairs(plain.model, plain.task, ShellSettings(width=start, num_layers=multiple), "fp32", "cpu")
    (found,) = match([stairs], Matching(policy="parameters", target=target), 1e9)
    nearest = min(abs(width**2 - target) for width in range(multiple, 500, multiple))
    assert abs(found.size - target) == nearest
