"""Every registered model keeps the contract, and each way of breaking it is caught by the check that promises it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from models.shell import Shell
from models.state import step_through
from suite.contracts import model as contract
from suite.contracts.model import MODEL_CHECKS, ModelCheck
from suite.errors import ContractViolation, UsageError
from suite.plugin import Model
from suite.registry import Registry
from suite.spec import Settings, ShellSettings

REGISTRY = Registry()


VARIANTS = {
    "no positions": ("transformer", {"position": "none", "mlp_ratio": 0.0}),
    "learned positions": ("transformer", {"position": "learned", "max_positions": 200}),
    "xpos": ("transformer", {"position": "xpos", "num_kv_heads": 2}),
    "alibi": ("transformer", {"position": "alibi", "num_heads": 6, "head_size": 5, "num_kv_heads": 3}),
    "window": ("transformer", {"window": 8, "num_kv_heads": 1, "conv_width": 3}),
    "alibi in a window": ("transformer", {"window": 50, "position": "alibi", "num_kv_heads": 4}),
    "learned positions in a window": ("plain:attention", {"window": 20, "position": "learned"}),
    "wide attention": ("plain:attention", {"expand": 2, "output": "glu", "conv_width": 4}),
    "mamba without conv": ("mamba", {"conv_width": 0, "expand": 1}),
    "mamba without gate": ("mamba", {"gate": False, "mlp_ratio": 2.0}),
    "mamba without either": ("mamba:s4d", {"gate": False, "conv_width": 0, "init": "legs"}),
    "mamba2 without conv": ("mamba2", {"conv_width": 0, "head_size": 8, "state_size": 5}),
    "h3 without shift": ("h3", {"conv_width": 0, "expand": 2}),
    "h3 without gate": ("h3:s6", {"gate": False, "conv_on": "qkv"}),
    "h3 with neither": ("h3:ssd", {"gate": False, "conv_width": 0, "mlp_ratio": 1.0, "head_size": 16}),
    "hyena of many frequencies": ("hyena", {"num_frequencies": 4, "filter_length": 50, "filter_size": 8}),
    "wide lstm": ("lstm", {"expand": 2, "conv_width": 4, "mlp_ratio": 2.0}),
    "wide minlstm": ("minlstm", {"expand": 2, "output": "glu"}),
    "linear s4": ("s4", {"output": "linear", "init": "inv", "conv_width": 2}),
    "small s4": ("plain:s4-dplr", {"state_size": 2}),
    "hybrid with h3": ("hybrid", {"pattern": "h3:s4d,transformer", "settings": {"transformer": {"num_heads": 2}}}),
}
"""Switches of the compositions, each in some company."""


def build(name: str, settings: Mapping[str, Any] | None = None) -> Model:
    model = REGISTRY.model(name)
    return model(model.Options.parse(settings or {}, where=name))


@pytest.mark.parametrize("check", MODEL_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", REGISTRY.model_names())
def test_every_registered_model_keeps_the_contract(name: str, check: ModelCheck) -> None:
    check(build(name))


@pytest.mark.parametrize("name", REGISTRY.composition_names())
def test_every_composition_keeps_the_contract(name: str) -> None:
    for check in MODEL_CHECKS:
        check(build(name))


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_switch_keeps_the_contract(variant: str) -> None:
    for check in MODEL_CHECKS:
        check(build(*VARIANTS[variant]))


@pytest.mark.gpu
@pytest.mark.parametrize("name", [*REGISTRY.model_names(), *REGISTRY.composition_names()])
def test_every_model_keeps_the_contract_on_a_gpu(name: str) -> None:
    with torch.device("cuda"):
        for check in MODEL_CHECKS:
            check(build(name))


@pytest.mark.gpu
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_switch_keeps_the_contract_on_a_gpu(variant: str) -> None:
    with torch.device("cuda"):
        for check in MODEL_CHECKS:
            check(build(*VARIANTS[variant]))


@pytest.mark.gpu
@pytest.mark.parametrize("variant", [*REGISTRY.model_names(), *REGISTRY.composition_names(), *VARIANTS])
def test_a_step_of_every_model_stands_in_a_cuda_graph(variant: str) -> None:
    """Captured once and replayed, with the state copied onto itself, a step gives the logits of the whole."""
    model = build(*VARIANTS[variant]) if variant in VARIANTS else build(variant)
    torch.manual_seed(0)
    with torch.device("cuda"):
        shell, tokens = Shell(ShellSettings(width=32, num_layers=2), 16, model).eval(), torch.randint(16, (3, 40))
    with torch.inference_mode():
        expected = shell(tokens)
        token, state, warm_state = tokens[:, 0].clone(), shell.initial_state(3, 40), shell.initial_state(3, 40)
        for _ in range(3):
            _, warm_state = shell.step(token, warm_state)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits, next_state = shell.step(token, state)
            for old, new in zip(tree_leaves(state), tree_leaves(next_state), strict=True):
                if isinstance(old, Tensor) and old is not new:
                    old.copy_(new)
        for t in range(40):
            token.copy_(tokens[:, t])
            graph.replay()
            assert (logits - expected[:, t]).abs().max() <= 1e-3 * expected.abs().max()


def test_the_models_that_papers_compare_are_there() -> None:
    named = {"gru", "h3", "hyena", "lstm", "mamba", "mamba2", "mingru", "minlstm", "s4", "transformer", "transformer++"}
    assert named | {"hybrid"} <= set(REGISTRY.model_names())


def test_every_block_stands_around_every_mixer() -> None:
    assert {"h3", "mamba", "plain", "transformer"} <= set(REGISTRY.blocks)
    assert {"attention", "gru", "hyena", "lstm", "mingru", "minlstm", "s4-dplr", "s4d", "s6", "ssd"} <= set(
        REGISTRY.mixers
    )
    assert len(REGISTRY.composition_names()) == len(REGISTRY.blocks) * len(REGISTRY.mixers)


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
        return {"sum": weight.new_zeros(batch_size, weight.shape[1]), "count": weight.new_zeros(batch_size, 1)}

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
        return {"sum": torch.zeros(batch_size, self.width), "count": torch.zeros(batch_size, 1)}


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
        return torch.where(state["count"] < 50, y, 2 * y), state


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


class StateThatGrows(AverageBranch):
    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        y, state = super().step(x, state)
        return y, {**state, "sum": state["sum"].double()}


class CountsForAllRows(AverageBranch):
    def initial_state(self, batch_size: int, max_length: int) -> Any:
        return {**super().initial_state(batch_size, max_length), "count": torch.zeros(())}


class BeginsInTheMiddle(AverageBranch):
    """Counts down from one, which cannot be told from a row that was emptied."""

    def initial_state(self, batch_size: int, max_length: int) -> Any:
        return {**super().initial_state(batch_size, max_length), "first": torch.ones(batch_size)}


class ForgetsItsPrompt(AverageBranch):
    def prefill(self, x: Tensor, *, max_length: int, sequence_starts: Tensor | None = None) -> tuple[Tensor, Any]:
        return self(x), self.initial_state(len(x), max_length)


class SaysThatItTakesDocuments(AverageBranch):
    def forward(self, x: Tensor, sequence_starts: Tensor | None = None) -> Tensor:
        return super().forward(x)


class TakesThePromptForOneDocument(AverageBranch):
    def prefill(self, x: Tensor, *, max_length: int, sequence_starts: Tensor | None = None) -> tuple[Tensor, Any]:
        return step_through(self, x, max_length=max_length)


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
        (SeesTheEnd, contract.logits_do_not_depend_on_later_tokens, "tokens after position 0 of 33 changed"),
        (SeesTheEndFromZero, contract.logits_do_not_depend_on_later_tokens, "tokens after position 0 of 33 changed"),
        (GradientsFromTheEnd, contract.logits_do_not_depend_on_later_tokens, "position 0 of 33 reaches later tokens"),
        (NanGradients, contract.logits_do_not_depend_on_later_tokens, "gradient of the logits .* is not finite"),
        (ForgetsInSteps, contract.a_step_at_a_time_gives_the_logits_of_the_whole, "over 2 tokens"),
        (WrongFromTokenFiftyOn, contract.a_step_at_a_time_gives_the_logits_of_the_whole, "over 65 tokens"),
        (NoSteps, contract.a_step_at_a_time_gives_the_logits_of_the_whole, "TypeError: NoSteps lacks initial_state or"),
        (KeepsStateInItself, contract.the_state_is_all_that_a_sequence_remembers, "two sequences in turns"),
        (StateThatIsAList, contract.every_row_of_a_batch_has_the_same_state_bytes, "TypeError: a state holds tensors"),
        (QuadraticState, contract.every_row_of_a_batch_has_the_same_state_bytes, "bytes for 1, 2 and 3 rows"),
        (StateThatGrows, contract.a_state_is_allocated_once, r"step 0 turns \(2, 32\) torch.float32 in the state into"),
        (CountsForAllRows, contract.a_state_begins_as_zeros_row_by_row, r"tensor of shape \(\)"),
        (BeginsInTheMiddle, contract.a_state_begins_as_zeros_row_by_row, r"of shape \(3,\) in the first state is not"),
        (ForgetsItsPrompt, contract.a_prompt_leaves_the_state_of_its_steps, "1 tokens after a prompt of 1"),
        (SaysThatItTakesDocuments, contract.documents_do_not_see_each_other, "at tokens 5 to 5 of a row, the logits"),
        (TakesThePromptForOneDocument, contract.documents_do_not_see_each_other, "After a prompt with documents"),
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
