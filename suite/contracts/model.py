"""The contract of a model, as checks. Each builds the plugin in a small shell and takes a second or less.

The checks run on torch's default device. Weights are moved a little away from where they start, since a branch that
begins at zero would hide what it does with its input.
"""

# B batch, L length, D width, V vocabulary

from __future__ import annotations

import functools
from collections.abc import Callable
from itertools import pairwise, zip_longest
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils._pytree import tree_leaves

from models.shell import Shell, parameter_groups
from models.state import state_bytes
from suite.contracts.claim import claim, fail
from suite.plugin import Branch, Model
from suite.spec import ShellSettings

ModelCheck = Callable[[Model], None]

_SHELL = ShellSettings(width=32, num_layers=2)
_VOCAB_SIZE = 16
_LENGTH = 33
_LONGER_LENGTHS = (65, 200)
"""Beyond one and three chunks of 64, the size in which many models cut a sequence."""
_FP32_TOLERANCE = 1e-4
"""Largest difference between logits that are equal but for rounding, relative to the largest logit."""
_BF16_TOLERANCE = 0.1
"""Root mean square difference between bfloat16 and float32 logits, relative to that of the logits."""
_DISTURBANCE = 0.05
_RATES = frozenset({"A", "A_log", "A_real", "A_imag", "A_real_log", "log_A_real"})
_STEP_SIZES = frozenset({"dt_bias", "delta_bias", "log_dt", "log_delta", "inv_dt"})
_SKIPS = frozenset({"D"})


def _claim(check: ModelCheck) -> ModelCheck:
    """A claim that is checked in float32 proper and leaves torch's generators as they were."""

    @functools.wraps(check)
    def isolated(model: Model) -> None:
        with torch.random.fork_rng(), torch.backends.cudnn.flags(allow_tf32=False):
            check(model)

    return claim(isolated)


@_claim
def branches_keep_the_shape_of_the_stream(model: Model) -> None:
    """Every branch maps (batch, length, width) and, step by step, (batch, width) to the same shape."""
    for branch in cast("list[Branch]", list(_build(model).branches)):
        name = type(branch).__name__
        x_BLD = torch.randn(3, _LENGTH, _SHELL.width)
        _expect_shape(model, f"what {name} returns", branch(x_BLD), tuple(x_BLD.shape))
        y_BD, _ = branch.step(x_BLD[:, 0], branch.initial_state(3, _LENGTH))
        _expect_shape(model, f"what {name}.step returns", y_BD, (3, _SHELL.width))


@_claim
def logits_have_a_row_for_every_token(model: Model) -> None:
    """Tokens (B, L) become finite logits (B, L, V), for any batch size and length, 1 included."""
    shell = _build(model)
    for batch_size, length in [(1, 1), (3, 1), (1, 2), (3, _LENGTH)]:
        logits = shell(_tokens(batch_size, length))
        _expect_shape(model, "the logits", logits, (batch_size, length, _VOCAB_SIZE))
        if not logits.isfinite().all():
            fail(model, "the logits are not finite", "finite logits, for any tokens")


@_claim
def logits_do_not_depend_on_later_tokens(model: Model) -> None:
    """The logits at a position depend on the tokens up to it, in value and in gradient."""
    shell = _build(model)
    embedded: list[Tensor] = []
    shell.embedding.register_forward_hook(lambda _module, _inputs, output: embedded.append(output))
    for length in (_LENGTH, *_LONGER_LENGTHS):
        embedded.clear()
        tokens = _tokens(2, length)
        logits = shell(tokens)
        for position in (0, 6, length - 2):
            changed = tokens.clone()
            changed[:, position + 1 :] = (tokens[:, position + 1 :] + 1) % _VOCAB_SIZE
            with torch.no_grad():
                changed_logits = shell(changed)
            _expect_equal(
                model,
                f"With the tokens after position {position} of {length} changed, the logits up to it",
                changed_logits[:, : position + 1],
                logits[:, : position + 1],
            )
            (gradient,) = torch.autograd.grad(logits[:, position].sum(), embedded[0], retain_graph=True)
            if not gradient.isfinite().all():
                fail(model, f"the gradient of the logits at position {position} is not finite", "a finite gradient")
            later, largest = gradient[:, position + 1 :].abs().max(), gradient.abs().max()
            if later > _FP32_TOLERANCE * largest:
                fail(
                    model,
                    f"the gradient of the logits at position {position} of {length} reaches later tokens, with "
                    f"{later / largest:.1e} of its largest entry",
                    "a gradient of zero there",
                )


@_claim
def a_step_at_a_time_gives_the_logits_of_the_whole(model: Model) -> None:
    """Generation from an empty state, token by token, gives the logits of the parallel forward."""
    shell = _build(model)
    for length, max_length in [(1, 1), (2, 2), (_LENGTH, _LENGTH), (65, 100)]:
        tokens = _tokens(2, length)
        with torch.no_grad():
            state, stepped = shell.initial_state(2, max_length), []
            for t in range(length):
                logits, state = shell.step(tokens[:, t], state)
                stepped.append(logits)
            _expect_equal(
                model, f"Step by step over {length} tokens, the logits", torch.stack(stepped, dim=1), shell(tokens)
            )


@_claim
def the_state_is_all_that_a_sequence_remembers(model: Model) -> None:
    """Two sequences generated in turns, each with its own state, do not disturb each other."""
    shell = _build(model)
    tokens = _tokens(2, 8)
    with torch.no_grad():
        states = [shell.initial_state(1, 8), shell.initial_state(1, 8)]
        stepped: list[list[Tensor]] = [[], []]
        for t in range(8):
            for row in (0, 1):
                logits, states[row] = shell.step(tokens[row, t].view(1), states[row])
                stepped[row].append(logits[0])
        in_turns = torch.stack([torch.stack(rows) for rows in stepped])
        _expect_equal(model, "Generating two sequences in turns, the logits", in_turns, shell(tokens))


@_claim
def every_row_of_a_batch_has_the_same_state_bytes(model: Model) -> None:
    """The state is made of tensors, and each further row of the batch adds the same bytes to it."""
    shell = _build(model)

    def sizes(num_steps: int) -> list[int]:
        found = []
        for batch_size in (1, 2, 3):
            state = shell.initial_state(batch_size, 8)
            for t in range(num_steps):
                _, state = shell.step(_tokens(batch_size, 8)[:, t], state)
            found.append(state_bytes(state))
        return found

    with torch.no_grad():
        for num_steps in (0, 5):
            one, two, three = sizes(num_steps)
            if three - two != two - one:
                fail(
                    model,
                    f"after {num_steps} steps the state has {one}, {two} and {three} bytes for 1, 2 and 3 rows",
                    "the same number of bytes for each row",
                )


@_claim
def a_state_is_allocated_once(model: Model) -> None:
    """Steps change neither shapes nor dtypes of a state, so that it has its room from the start."""
    shell = _build(model)
    with torch.no_grad():
        state = shell.initial_state(2, _LENGTH)
        layout = _layout(state)
        for t, column in enumerate(_tokens(2, _LENGTH).unbind(1)):
            _, state = shell.step(column, state)
            for was, found in zip_longest(layout, _layout(state), fillvalue="nothing"):
                if was != found:
                    fail(model, f"step {t} turns {was} in the state into {found}", "the same shapes and dtypes")


@_claim
def a_state_begins_as_zeros_row_by_row(model: Model) -> None:
    """The tensors of a state have the batch as their first axis and begin as zeros, so that rows can be emptied."""
    for tensor in _tensors(_build(model).initial_state(3, _LENGTH)):
        if tensor.ndim == 0 or len(tensor) != 3:
            fail(model, f"for 3 rows the state holds a tensor of shape {tuple(tensor.shape)}", "the batch first")
        if tensor.any():
            fail(model, f"a tensor of shape {tuple(tensor.shape)} in the first state is not zero", "zeros")


@_claim
def a_prompt_leaves_the_state_of_its_steps(model: Model) -> None:
    """After a prompt that is taken at once, generation goes on as after one taken token by token."""
    shell = _build(model)
    for prompt, length in [(1, 3), (_LENGTH, _LENGTH + 3)]:
        tokens = _tokens(2, length)
        with torch.no_grad():
            expected = shell(tokens)
            logits, state = shell.prefill(tokens[:, :prompt], length)
            _expect_equal(model, f"After a prompt of {prompt} tokens, the logits", logits, expected[:, prompt - 1])
            for was, found in zip_longest(_layout(shell.initial_state(2, length)), _layout(state), fillvalue="nothing"):
                if was != found:
                    fail(model, f"a prompt turns {was} in the state into {found}", "the same shapes and dtypes")
            for t in range(prompt, length):
                logits, state = shell.step(tokens[:, t], state)
                what = f"{t - prompt + 1} tokens after a prompt of {prompt}, the logits"
                _expect_equal(model, what, logits, expected[:, t])


@_claim
def documents_do_not_see_each_other(model: Model) -> None:
    """Packed into a row or behind padding, a document has the logits that it has alone, and leaves the same state."""
    shell, tokens = _build(model), _tokens(2, _LENGTH)
    first_tokens = [[0, 5, 6, 26], [9]]
    starts = torch.zeros_like(tokens, dtype=torch.bool)
    for row, firsts in enumerate(first_tokens):
        starts[row, firsts] = True
    with torch.no_grad():
        packed = shell(tokens, starts)
        state, stepped = shell.initial_state(2, _LENGTH), []
        for t in range(_LENGTH):
            logits, state = shell.step(tokens[:, t], shell.forget(state, starts[:, t]))
            stepped.append(logits)
        for row, firsts in enumerate(first_tokens):
            for first, end in pairwise([*firsts, _LENGTH]):
                document = slice(first, end)
                alone = shell(tokens[row : row + 1, document])[0]
                what = f"Of a document at tokens {first} to {end - 1} of a row, the logits"
                _expect_equal(model, what, packed[row, document], alone)
                _expect_equal(model, f"{what} of single steps", torch.stack(stepped, dim=1)[row, document], alone)
        _, state = shell.prefill(tokens, _LENGTH + 1, starts)
        next_token = _tokens(2, 1)
        logits, _ = shell.step(next_token[:, 0], state)
        for row, firsts in enumerate(first_tokens):
            alone = shell(torch.cat([tokens[row : row + 1, firsts[-1] :], next_token[row : row + 1]], dim=1))
            _expect_equal(model, "After a prompt with documents, the logits", logits[row], alone[0, -1])


@_claim
def rows_of_a_batch_do_not_meet(model: Model) -> None:
    """The logits of a sequence are the same alone and beside others, in parallel and step by step."""
    shell = _build(model)
    tokens = _tokens(3, _LENGTH)
    with torch.no_grad():
        _expect_equal(model, "Beside two other rows, the logits of a row", shell(tokens)[1:2], shell(tokens[1:2]))
        state, state_alone = shell.initial_state(3, 8), shell.initial_state(1, 8)
        for t in range(8):
            logits, state = shell.step(tokens[:, t], state)
            alone, state_alone = shell.step(tokens[1:2, t], state_alone)
            _expect_equal(model, f"Beside two other rows, the logits of a row in step {t}", logits[1:2], alone)


@_claim
def a_seed_decides_the_model_and_its_logits(model: Model) -> None:
    """The same seed gives the same weights and logits bit for bit, and another seed other weights."""
    tokens = _tokens(2, _LENGTH)

    def build(seed: int) -> tuple[dict[str, Tensor], Tensor, Shell]:
        torch.manual_seed(seed)
        shell = Shell(_SHELL, _VOCAB_SIZE, model)
        with torch.no_grad():
            return dict(shell.named_parameters()), shell(tokens), shell

    weights, logits, _ = build(0)
    again, logits_again, shell = build(0)
    for name in weights:
        if not torch.equal(weights[name], again[name]):
            fail(model, f"{name} differs between two models built under seed 0", "torch's generator decides it")
    if not torch.equal(logits, logits_again):
        fail(model, "two forwards under seed 0 differ", "the same logits")
    shell.eval()
    with torch.no_grad():
        if not torch.equal(shell(tokens), shell(tokens)):
            fail(model, "two forwards of the same tokens differ in evaluation mode", "the same logits")

    other, _, _ = build(1)
    if torch.equal(weights["head.weight"], other["head.weight"]):
        fail(model, "seeds 0 and 1 give the same head", "a model that does not seed torch's generator itself")
    matrices = [name for name in weights if name.startswith("branches.") and weights[name].ndim > 1]
    if matrices and all(torch.equal(weights[name], other[name]) for name in matrices):
        fail(model, "seeds 0 and 1 give the same weights in every branch", "weights drawn from torch's generator")


@_claim
def every_parameter_receives_a_finite_gradient(model: Model) -> None:
    """After a backward pass each parameter has a gradient, and all of them are finite."""
    shell = _build(model).train()
    torch.autograd.backward(_loss(shell, _tokens(4, _LENGTH)))
    for name, parameter in shell.named_parameters():
        if parameter.grad is None:
            fail(
                model, f"{name} received no gradient", "a gradient for every parameter; what is not trained is a buffer"
            )
        elif not parameter.grad.isfinite().all():
            fail(model, f"the gradient of {name} is not finite", "finite gradients")


@_claim
def a_few_steps_of_training_lower_the_loss(model: Model) -> None:
    """AdamW on one batch, with the suite's parameter groups, lowers the loss."""
    torch.manual_seed(0)
    shell, tokens = Shell(_SHELL, _VOCAB_SIZE, model), _tokens(4, _LENGTH)
    optimizer = torch.optim.AdamW(parameter_groups(shell, 3e-3, 0.1))
    losses = []
    for _ in range(12):
        loss = _loss(shell, tokens)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    if not losses[-1] < losses[0]:
        fail(model, f"12 steps took the loss from {losses[0]:.4f} to {losses[-1]:.4f}", "a lower loss")


@_claim
def weight_decay_spares_the_parameters_of_the_recurrence(model: Model) -> None:
    """Decay rates, step sizes and skips (A_log, dt_bias, D, …) have one axis or are marked `_no_weight_decay`."""
    shell = _build(model)
    decayed = {
        name for group in parameter_groups(shell, 1e-3, 0.1) if group["weight_decay"] > 0 for name in group["names"]
    }
    for name in sorted(decayed):
        if name.rpartition(".")[2] in _RATES | _STEP_SIZES | _SKIPS:
            fail(model, f"weight decay pulls {name} to zero", f"{name}._no_weight_decay = True")


@_claim
def bf16_autocast_stays_close_to_float32(model: Model) -> None:
    """Under bfloat16 autocast, logits, steps and gradients are finite, and the logits close to those of float32."""
    shell, tokens = _build(model), _tokens(2, _LENGTH)
    expected = shell(tokens).detach()
    with torch.autocast(tokens.device.type, dtype=torch.bfloat16):
        logits = shell(tokens).float()
        torch.autograd.backward(cross_entropy(logits.flatten(0, 1), tokens.flatten()))
        state, stepped = shell.initial_state(2, _LENGTH), []
        with torch.no_grad():
            for t in range(_LENGTH):
                step_logits, state = shell.step(tokens[:, t], state)
                stepped.append(step_logits.float())
    for what, found in [("the parallel logits", logits), ("the logits of single steps", torch.stack(stepped, dim=1))]:
        error = ((found - expected).square().mean() / expected.square().mean()).sqrt().item()
        if not error < _BF16_TOLERANCE:
            fail(model, f"bfloat16 moves {what} by {error:.1%}", f"at most {_BF16_TOLERANCE:.0%}")
    for name, parameter in shell.named_parameters():
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            fail(model, f"under bfloat16 the gradient of {name} is not finite", "finite gradients")


MODEL_CHECKS: tuple[ModelCheck, ...] = (
    branches_keep_the_shape_of_the_stream,
    logits_have_a_row_for_every_token,
    logits_do_not_depend_on_later_tokens,
    a_step_at_a_time_gives_the_logits_of_the_whole,
    the_state_is_all_that_a_sequence_remembers,
    every_row_of_a_batch_has_the_same_state_bytes,
    a_state_is_allocated_once,
    a_state_begins_as_zeros_row_by_row,
    a_prompt_leaves_the_state_of_its_steps,
    documents_do_not_see_each_other,
    rows_of_a_batch_do_not_meet,
    a_seed_decides_the_model_and_its_logits,
    every_parameter_receives_a_finite_gradient,
    a_few_steps_of_training_lower_the_loss,
    weight_decay_spares_the_parameters_of_the_recurrence,
    bf16_autocast_stays_close_to_float32,
)
"""In the order in which a failure of one explains failures of the next."""


def _build(model: Model) -> Shell:
    """The plugin in a small shell, in evaluation mode, with every weight moved a little."""
    torch.manual_seed(0)
    shell = Shell(_SHELL, _VOCAB_SIZE, model).eval()
    with torch.no_grad():
        for parameter in shell.parameters():
            parameter.add_(_DISTURBANCE * torch.randn_like(parameter))
    return shell


def _tokens(batch_size: int, length: int) -> Tensor:
    return torch.randint(_VOCAB_SIZE, (batch_size, length))


def _loss(shell: Shell, tokens: Tensor) -> Tensor:
    """Of predicting the token before each."""
    return cross_entropy(shell(tokens)[:, 1:].flatten(0, 1), tokens[:, :-1].flatten())


def _layout(state: Any) -> list[str]:
    """Shape and dtype of every tensor of a state, in order."""
    return [f"{tuple(tensor.shape)} {tensor.dtype}" for tensor in _tensors(state)]


def _tensors(state: Any) -> list[Tensor]:
    return [tensor for tensor in tree_leaves(state) if isinstance(tensor, Tensor)]


def _expect_shape(model: Model, what: str, tensor: Any, shape: tuple[int, ...]) -> None:
    if not isinstance(tensor, Tensor):
        fail(model, f"{what} is a {type(tensor).__name__}", "a tensor")
    if tuple(tensor.shape) != shape:
        fail(model, f"{what} has shape {tuple(tensor.shape)}", f"shape {shape}")


def _expect_equal(model: Model, what: str, found: Tensor, expected: Tensor) -> None:
    """Equal but for the rounding of float32."""
    difference, scale = (found - expected).abs().max().item(), expected.abs().max().item()
    if not difference <= _FP32_TOLERANCE * scale:
        fail(
            model,
            f"{what} differ by up to {difference:.2g}, where the largest logit is {scale:.2g}",
            f"the same logits, to {_FP32_TOLERANCE:g} of the largest",
        )
