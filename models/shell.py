"""The shell around every model: embedding, pre-norm residual branches, final norm, head.

    x = E[tokens];   x = x + branch(norm(x))  for every branch of every layer;   logits = W norm(x)

The shape of GPT-2 (Radford et al. 2019) and Mamba (Gu and Dao 2023, arXiv:2312.00752), with RMSNorm (Zhang and Sennrich
2019, arXiv:1910.07467) and an untied head. Only the branches differ between two models, so a difference in a result is
one between branches.

Weights are float32. Under bfloat16 autocast the residual stream stays float32 and what a branch is handed, the norm, is
bfloat16. An addition and the norm after it are one operation, and so are the head and the loss.
"""

# B batch, L length, D width, V vocabulary

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from kernels.arguments import expect_boolean, expect_one_device, expect_shape
from kernels.cross_entropy import linear_cross_entropy
from kernels.documents import run_documents
from kernels.embedding import embedding
from kernels.rms_norm import add_rms_norm
from models.state import State, forget, step_through
from suite.plugin import IGNORED, Model
from suite.spec import ShellSettings

_EMBEDDING_STD = 0.02
_NORM_EPSILON = 1e-5


class Shell(nn.Module):
    """A model: the branches that a plugin offers, stacked in the shared shell.

    A branch names its last linear map `output_projection`; as in GPT-2 and Mamba its initial weight is divided by the
    square root of the number of branches, so that the residual stream does not grow with depth. A branch without that
    attribute is left as it is.
    """

    def __init__(self, shell: ShellSettings, vocab_size: int, model: Model) -> None:
        super().__init__()
        self.embedding = Embedding(vocab_size, shell.width)
        nn.init.normal_(self.embedding.weight, std=_EMBEDDING_STD)
        self.branches = nn.ModuleList(branch for _ in range(shell.num_layers) for branch in model.branches(shell))
        self.norms = nn.ModuleList(ResidualNorm(shell.width) for _ in self.branches)
        self.final_norm = ResidualNorm(shell.width)
        self.head = nn.Linear(shell.width, vocab_size, bias=False)
        for branch in self.branches:
            projection = getattr(branch, "output_projection", None)
            if isinstance(projection, nn.Linear):
                with torch.no_grad():
                    projection.weight.div_(math.sqrt(len(self.branches)))

    def forward(
        self, tokens: Int[Tensor, "batch length"], sequence_starts: Bool[Tensor, "batch length"] | None = None
    ) -> Float[Tensor, "batch length vocab"]:
        """Logits for the token that belongs to each position, from the tokens up to it.

        Where `sequence_starts` is True a new document begins, which sees nothing before. So documents are packed into
        a row, and what is padded on the left begins behind its padding.
        """
        return cast(Tensor, self.head(self._last_norm(tokens, sequence_starts)))

    def loss(
        self,
        tokens: Int[Tensor, "batch length"],
        targets: Int[Tensor, "batch length"],
        sequence_starts: Bool[Tensor, "batch length"] | None = None,
    ) -> Float[Tensor, ""]:
        """Mean cross-entropy in nats of the logits, over the positions whose target is not IGNORED.

        What training calls: the logits of a large vocabulary are never all there at once.
        """
        normed_BLD = self._last_norm(tokens, sequence_starts)
        return linear_cross_entropy(normed_BLD.flatten(0, 1), self.head.weight, targets.flatten(), ignored=IGNORED)

    def initial_state(self, batch_size: int, max_length: int) -> State:
        """The state before the first token, with room for `max_length` of them.

        Raises:
            TypeError: a branch cannot be stepped through.
            UsageError: `max_length` is more than a branch reaches.
        """
        self._expect_steps()
        branches = [branch.initial_state(batch_size, max_length) for branch in self._branches()]
        return State(branches, max_length, num_tokens=0)

    def prefill(
        self,
        tokens: Int[Tensor, "batch length"],
        max_length: int,
        sequence_starts: Bool[Tensor, "batch length"] | None = None,
    ) -> tuple[Float[Tensor, "batch vocab"], State]:
        """Logits after the last token, and the state with room for `max_length` tokens, as if stepped through them.

        The state is that of each row's last document. A branch that has no `prefill` is stepped through.

        Raises:
            TypeError: a branch cannot be stepped through.
            UsageError: `max_length` is more than a branch reaches.
            ValueError: there is no room for the tokens.
        """
        self._expect_steps()
        num_tokens, states = tokens.shape[1], []
        _expect_room(num_tokens, max_length)
        _expect_starts(tokens, sequence_starts)

        def prefill(branch: Any, x_BLD: Tensor) -> Tensor:
            run = branch.prefill if hasattr(branch, "prefill") else functools.partial(step_through, branch)
            y_BLD, state = run(x_BLD, max_length=max_length, sequence_starts=sequence_starts)
            states.append(state)
            return cast(Tensor, y_BLD)

        normed_BLD = self._through(tokens, prefill)
        return self.head(normed_BLD[:, -1]), State(states, max_length, num_tokens)

    def step(self, tokens: Int[Tensor, " batch"], state: State) -> tuple[Float[Tensor, "batch vocab"], State]:
        """Logits after one more token of each sequence, and the next state; `state` may be reused for it.

        Raises:
            ValueError: the state is full.
        """
        num_tokens, states, next_states = state.num_tokens + 1, iter(state.branches), []
        _expect_room(num_tokens, state.max_length)

        def step(branch: Any, x_BD: Tensor) -> Tensor:
            y_BD, next_state = branch.step(x_BD, next(states))
            next_states.append(next_state)
            return cast(Tensor, y_BD)

        normed_BD = self._through(tokens, step)
        return self.head(normed_BD), State(next_states, state.max_length, num_tokens)

    def forget(self, state: State, rows: Bool[Tensor, " batch"]) -> State:
        """The state with these rows empty, as where a new document begins; `state` may be reused for it.

        It has no more room than before: the host does not know which rows they are.
        """
        return state._replace(branches=forget(state.branches, rows))

    @property
    def prefills_in_parallel(self) -> bool:
        """Whether no branch is stepped through its prompt."""
        return all(hasattr(branch, "prefill") for branch in self._branches())

    @property
    def num_parameters(self) -> int:
        """Trained numbers."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def num_non_embedding_parameters(self) -> int:
        """Trained numbers outside the embedding and the head, whose size the vocabulary decides."""
        return self.num_parameters - self.embedding.weight.numel() - self.head.weight.numel()

    def _last_norm(self, tokens: Tensor, sequence_starts: Tensor | None) -> Tensor:
        """What the head reads: the norm of the residual stream after the last branch."""
        _expect_starts(tokens, sequence_starts)

        def whole(branch: Any, x_BLD: Tensor) -> Tensor:
            if sequence_starts is not None and _takes_documents(branch):
                return cast(Tensor, branch(x_BLD, sequence_starts=sequence_starts))
            return run_documents(branch, x_BLD, sequence_starts)

        return self._through(tokens, whole)

    def _through(self, tokens: Tensor, run: Callable[[Any, Tensor], Tensor]) -> Tensor:
        """The norm after the last branch, where each branch gives what `run` makes of it and of the norm before it."""
        x, y = self.embedding(tokens), None
        for norm, branch in zip(self.norms, self._branches(), strict=True):
            x, normed = norm(x, y)
            y = run(branch, normed)
        _, normed = self.final_norm(x, y)
        return cast(Tensor, normed)

    def _expect_steps(self) -> None:
        for branch in self.branches:
            if not (callable(getattr(branch, "initial_state", None)) and callable(getattr(branch, "step", None))):
                raise TypeError(
                    f"{type(branch).__name__} lacks initial_state or step, so that the model cannot generate token by "
                    "token. suite.Branch says what they must be"
                )

    def _branches(self) -> list[Any]:
        return list(self.branches)


class Embedding(nn.Embedding):
    """The row of each token."""

    def forward(self, tokens: Int[Tensor, "*rows"]) -> Float[Tensor, "*rows width"]:
        """Tokens to what stands for them in the residual stream."""
        return embedding(tokens, self.weight)


class ResidualNorm(nn.Module):
    """Takes what a branch gave into the residual stream, and norms the stream for the next branch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(
        self, x: Float[Tensor, "... width"], y: Float[Tensor, "... width"] | None = None
    ) -> tuple[Float[Tensor, "... width"], Float[Tensor, "... width"]]:
        """x + y, and its norm in autocast's dtype."""
        return add_rms_norm(x, y, self.weight, epsilon=_NORM_EPSILON)


def _takes_documents(branch: nn.Module) -> bool:
    """Whether it keeps documents apart by itself."""
    return "sequence_starts" in inspect.signature(branch.forward).parameters


def _expect_starts(tokens: Tensor, sequence_starts: Tensor | None) -> None:
    if sequence_starts is not None:
        expect_shape("sequence_starts", sequence_starts, "batch length", tuple(tokens.shape))
        expect_boolean("sequence_starts", sequence_starts)
        expect_one_device(tokens=tokens, sequence_starts=sequence_starts)


def _expect_room(num_tokens: int, max_length: int) -> None:
    if num_tokens > max_length:
        raise ValueError(
            f"the state has room for {max_length:,} tokens, and this makes {num_tokens:,}; ask for a larger max_length"
        )


def parameter_groups(model: nn.Module, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
    """Optimizer groups (params, names, lr, weight_decay) in which every parameter appears once.

    No weight decay for parameters with one axis or none (biases, the gains of norms), for embeddings, and for those
    marked `_no_weight_decay = True`, as Mamba marks A_log and D. A parameter with `_max_learning_rate` is trained at
    that rate at most, as S4 trains A and Delta.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        is_decayed = parameter.ndim > 1 and id(parameter) not in embeddings
        is_decayed = is_decayed and not getattr(parameter, "_no_weight_decay", False)
        lr = min(learning_rate, getattr(parameter, "_max_learning_rate", learning_rate))
        decay = weight_decay if is_decayed else 0.0
        group = groups.setdefault((lr, decay), {"params": [], "names": [], "lr": lr, "weight_decay": decay})
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())
