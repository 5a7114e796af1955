"""Every registered model keeps the contract, and each way of breaking it is caught by the check that promises it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from suite.contracts import model as contract
from suite.contracts.model import MODEL_CHECKS, ModelCheck
from suite.errors import ContractViolation, UsageError
from suite.plugin import Model
from suite.registry import Registry
from suite.spec import Settings, ShellSettings

REGISTRY = Registry()


@pytest.mark.parametrize("check", MODEL_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", REGISTRY.model_names())
def test_every_registered_model_keeps_the_contract(name: str, check: ModelCheck) -> None:
    check(REGISTRY.model(name)())


@pytest.mark.gpu
@pytest.mark.parametrize("check", MODEL_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", REGISTRY.model_names())
def test_every_registered_model_keeps_the_contract_on_a_gpu(name: str, check: ModelCheck) -> None:
    with torch.device("cuda"):
        check(REGISTRY.model(name)())


def test_the_five_models_are_there() -> None:
    assert {"gru", "lstm", "mamba", "s4", "transformer"} <= set(REGISTRY.model_names())


@pytest.mark.parametrize("check", MODEL_CHECKS, ids=lambda check: check.__name__)
def test_the_claim_of_a_check_is_one_line(check: ModelCheck) -> None:
    assert check.__doc__
    assert "\n" not in check.__doc__


class AverageBranch(nn.Module):
    """The mean of all tokens so far, mixed by a matrix."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.output_projection = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        num_tokens = torch.arange(1, x.shape[1] + 1, device=x.device)[:, None]
        return self.mix(x.cumsum(dim=1) / num_tokens)

    def mix(self, mean: Tensor) -> Tensor:
        mixed: Tensor = self.output_projection(mean)
        return mixed

    def initial_state(self, batch_size: int, max_length: int) -> Any:
        weight = self.output_projection.weight
        return {"sum": weight.new_zeros(batch_size, weight.shape[1]), "count": weight.new_zeros(())}

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        state = {"sum": state["sum"] + x, "count": state["count"] + 1}
        return self.mix(state["sum"] / state["count"]), state


class Average(Model):
    """Keeps every promise, and is broken in many ways below."""

    name = "average"
    Branch: ClassVar[type[AverageBranch]] = AverageBranch

    def branches(self, shell: ShellSettings) -> Sequence[nn.Module]:
        return [self.Branch(shell.width)]


@pytest.mark.parametrize("check", MODEL_CHECKS, ids=lambda check: check.__name__)
def test_a_good_model_passes(check: ModelCheck) -> None:
    check(Average())


@pytest.mark.parametrize("check", MODEL_CHECKS, ids=lambda check: check.__name__)
def test_a_model_without_parameters_of_its_own_passes(check: ModelCheck) -> None:
    check(_model(NoParameters))


def test_a_check_leaves_the_random_state_alone() -> None:
    before = torch.get_rng_state()
    contract.a_seed_decides_the_model_and_its_logits(Average())
    assert torch.equal(before, torch.get_rng_state())


class NoParameters(AverageBranch):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        del self.output_projection
        self.width = width

    def mix(self, mean: Tensor) -> Tensor:
        return mean

    def initial_state(self, batch_size: int, max_length: int) -> Any:
        return {"sum": torch.zeros(batch_size, self.width), "count": torch.zeros(())}


class OneChannel(AverageBranch):
    """Broadcasts into the residual stream, which nobody would notice."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).mean(dim=-1, keepdim=True)


class LosesAToken(AverageBranch):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, 1:]


class StepWithATimeAxis(AverageBranch):
    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        y, state = super().step(x, state)
        return y[:, None], state


class Infinite(AverageBranch):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 0.0


class NeedsTwoTokens(AverageBranch):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] < 2:
            raise IndexError("nothing came before")
        return super().forward(x)


class SeesTheEnd(AverageBranch):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0.01 * x.mean(dim=1, keepdim=True)


class SeesTheEndFromZero(SeesTheEnd):
    """As `SeesTheEnd`, behind a projection that starts at zero."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        nn.init.zeros_(self.output_projection.weight)
        nn.init.zeros_(self.output_projection.bias)

    def forward(self, x: Tensor) -> Tensor:
        return super(SeesTheEnd, self).forward(x + 0.1 * x.mean(dim=1, keepdim=True))


class GradientsFromTheEnd(AverageBranch):
    """The later tokens do not show in the value, but in the gradient."""

    def forward(self, x: Tensor) -> Tensor:
        later = x.mean(dim=1, keepdim=True)
        return super().forward(x) + later - later.detach()


class NanGradients(AverageBranch):
    """0 * inf in the backward pass of a square root at zero."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.zeros_like(x) * (x - x).sqrt()


class ForgetsInSteps(AverageBranch):
    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        state["sum"] = 0.9 * state["sum"]
        return super().step(x, state)


class WrongFromTokenFiftyOn(AverageBranch):
    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        y, state = super().step(x, state)
        return (y if state["count"] < 50 else 2 * y), state


class NoSteps(AverageBranch):
    step = None  # type: ignore[assignment]


class KeepsStateInItself(AverageBranch):
    def initial_state(self, batch_size: int, max_length: int) -> Any:
        self.state = super().initial_state(batch_size, max_length)

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        y, self.state = super().step(x, self.state)
        return y, None


class StateThatIsAList(AverageBranch):
    def initial_state(self, batch_size: int, max_length: int) -> Any:
        return {**super().initial_state(batch_size, max_length), "text": "so far"}

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        return super().step(x, state)


class QuadraticState(AverageBranch):
    def initial_state(self, batch_size: int, max_length: int) -> Any:
        return {**super().initial_state(batch_size, max_length), "pairs": torch.zeros(batch_size, batch_size)}

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        y, state = super().step(x, state)
        return y, {**state, "pairs": torch.zeros(len(x), len(x))}


class NormalisesOverTheBatch(AverageBranch):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(dim=0, keepdim=True))


class NormalisesStepsOverTheBatch(AverageBranch):
    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        y, state = super().step(x, state)
        return y - 0.1 * y.mean(dim=0, keepdim=True), state


class OwnEntropy(AverageBranch):
    counter = itertools.count()

    def __init__(self, width: int) -> None:
        super().__init__(width)
        nn.init.constant_(self.output_projection.bias, next(self.counter))


class SeedsTorchItself(AverageBranch):
    def __init__(self, width: int) -> None:
        torch.manual_seed(1234)
        super().__init__(width)


class OwnGenerator(AverageBranch):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        weight = self.output_projection.weight
        generator = torch.Generator().manual_seed(1234)
        with torch.no_grad():
            weight.copy_(torch.randn(weight.shape, generator=generator))


class DropsOutInEvaluation(AverageBranch):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(super().forward(x), 0.1, training=True)


class UnusedParameter(AverageBranch):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.unused = nn.Parameter(torch.ones(width))


class InfiniteGradient(AverageBranch):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.offset = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + (self.offset - self.offset).abs().sqrt()


class ClimbsInstead(AverageBranch):
    """Its backward pass has the wrong sign."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return 2 * y.detach() - y


class UnmarkedRates(AverageBranch):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.A_log = nn.Parameter(torch.zeros(1, width))

    def mix(self, mean: Tensor) -> Tensor:
        return super().mix(mean) * self.A_log.exp()


class Coarse(AverageBranch):
    """Sums in the precision of its input, and cancels what it sums."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return (y + 300.0) - 300.0


def _model(branch: type[AverageBranch]) -> Model:
    class WithBranch(Average):
        Branch = branch

    return WithBranch()


@pytest.mark.parametrize(
    ("branch", "check", "words"),
    [
        (LosesAToken, contract.branches_keep_the_shape_of_the_stream, r"returns has shape \(3, 32, 32\)"),
        (Infinite, contract.logits_have_a_row_for_every_token, "the logits are not finite"),
        (NeedsTwoTokens, contract.logits_have_a_row_for_every_token, r"nothing came before \(.*test_models.py, line"),
        (OneChannel, contract.branches_keep_the_shape_of_the_stream, r"returns has shape \(3, 33, 1\)"),
        (StepWithATimeAxis, contract.branches_keep_the_shape_of_the_stream, r"step returns has shape \(3, 1, 32\)"),
        (SeesTheEnd, contract.logits_do_not_depend_on_later_tokens, "tokens after position 0 changed"),
        (SeesTheEndFromZero, contract.logits_do_not_depend_on_later_tokens, "tokens after position 0 changed"),
        (GradientsFromTheEnd, contract.logits_do_not_depend_on_later_tokens, "position 0 reaches later tokens"),
        (NanGradients, contract.logits_do_not_depend_on_later_tokens, "gradient of the logits .* is not finite"),
        (ForgetsInSteps, contract.a_step_at_a_time_gives_the_logits_of_the_whole, "over 2 tokens"),
        (WrongFromTokenFiftyOn, contract.a_step_at_a_time_gives_the_logits_of_the_whole, "over 64 tokens"),
        (NoSteps, contract.a_step_at_a_time_gives_the_logits_of_the_whole, "TypeError: .*NoneType"),
        (KeepsStateInItself, contract.the_state_is_all_that_a_sequence_remembers, "two sequences in turns"),
        (StateThatIsAList, contract.every_row_of_a_batch_has_the_same_state_bytes, "TypeError: a state holds tensors"),
        (QuadraticState, contract.every_row_of_a_batch_has_the_same_state_bytes, "bytes for 1, 2 and 3 rows"),
        (NormalisesOverTheBatch, contract.rows_of_a_batch_do_not_meet, "Beside two other rows"),
        (NormalisesStepsOverTheBatch, contract.rows_of_a_batch_do_not_meet, "in step 0"),
        (OwnEntropy, contract.a_seed_decides_the_model_and_its_logits, "differs between two models"),
        (SeedsTorchItself, contract.a_seed_decides_the_model_and_its_logits, "give the same head"),
        (OwnGenerator, contract.a_seed_decides_the_model_and_its_logits, "same weights in every branch"),
        (DropsOutInEvaluation, contract.a_seed_decides_the_model_and_its_logits, "in evaluation mode"),
        (UnusedParameter, contract.every_parameter_receives_a_finite_gradient, "unused received no gradient"),
        (InfiniteGradient, contract.every_parameter_receives_a_finite_gradient, "offset is not finite"),
        (ClimbsInstead, contract.a_few_steps_of_training_lower_the_loss, "took the loss from"),
        (UnmarkedRates, contract.weight_decay_spares_the_parameters_of_the_recurrence, "pulls .*A_log to zero"),
        (Coarse, contract.bf16_autocast_stays_close_to_float32, "bfloat16 moves the parallel logits by"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_broken_model_is_caught(branch: type[AverageBranch], check: ModelCheck, words: str) -> None:
    with pytest.raises(ContractViolation, match=words) as caught:
        check(_model(branch))
    assert str(caught.value).startswith("average: ")
    assert "Promised: " in str(caught.value)


def test_a_model_that_does_not_fit_the_shell_says_so_in_its_own_words() -> None:
    class Demanding(Average):
        def branches(self, shell: ShellSettings) -> Sequence[nn.Module]:
            raise UsageError(f"demanding: width {shell.width} is not a multiple of 100")

    with pytest.raises(UsageError, match="not a multiple of 100"):
        contract.logits_have_a_row_for_every_token(Demanding())


def test_settings_reach_the_checks() -> None:
    class Tunable(Average):
        class Options(Settings):
            leak: float = 0.0

        def branches(self, shell: ShellSettings) -> Sequence[nn.Module]:
            return [SeesTheEnd(shell.width) if self.options.leak else AverageBranch(shell.width)]

    contract.logits_do_not_depend_on_later_tokens(Tunable())
    with pytest.raises(ContractViolation):
        contract.logits_do_not_depend_on_later_tokens(Tunable(Tunable.Options(leak=0.1)))
