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

import math
from collections.abc import Iterator
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from kernels.cross_entropy import linear_cross_entropy
from kernels.embedding import embedding
from kernels.rms_norm import add_rms_norm
from suite.plugin import IGNORED, Branch, Model
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

    def forward(self, tokens: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length vocab"]:
        """Logits for the token that belongs to each position, from the tokens up to it."""
        return cast(Tensor, self.head(self._last_norm(tokens)))

    def loss(self, tokens: Int[Tensor, "batch length"], targets: Int[Tensor, "batch length"]) -> Float[Tensor, ""]:
        """Mean cross-entropy in nats of the logits, over the positions whose target is not IGNORED.

        What training calls: the logits of a large vocabulary are never all there at once.
        """
        normed_BLD = self._last_norm(tokens)
        return linear_cross_entropy(normed_BLD.flatten(0, 1), self.head.weight, targets.flatten(), ignored=IGNORED)

    def initial_state(self, batch_size: int, max_length: int) -> list[Any]:
        """The state before the first token, for at most `max_length` steps: that of each branch, in order."""
        return [branch.initial_state(batch_size, max_length) for _, branch in self._residuals()]

    def step(self, tokens: Int[Tensor, " batch"], state: list[Any]) -> tuple[Float[Tensor, "batch vocab"], list[Any]]:
        """Logits after one more token of each sequence, and the next state; `state` may be reused for it."""
        x_BD, y_BD = self.embedding(tokens), None
        next_state = []
        for (norm, branch), branch_state in zip(self._residuals(), state, strict=True):
            x_BD, normed_BD = norm(x_BD, y_BD)
            y_BD, branch_state = branch.step(normed_BD, branch_state)
            next_state.append(branch_state)
        _, normed_BD = self.final_norm(x_BD, y_BD)
        return self.head(normed_BD), next_state

    @property
    def num_parameters(self) -> int:
        """Trained numbers."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def num_non_embedding_parameters(self) -> int:
        """Trained numbers outside the embedding and the head, whose size the vocabulary decides."""
        return self.num_parameters - self.embedding.weight.numel() - self.head.weight.numel()

    def _last_norm(self, tokens: Tensor) -> Tensor:
        """What the head reads: the norm of the residual stream after the last branch."""
        x_BLD, y_BLD = self.embedding(tokens), None
        for norm, branch in self._residuals():
            x_BLD, normed_BLD = norm(x_BLD, y_BLD)
            y_BLD = branch(normed_BLD)
        _, normed_BLD = self.final_norm(x_BLD, y_BLD)
        return cast(Tensor, normed_BLD)

    def _residuals(self) -> Iterator[tuple[nn.Module, Branch]]:
        return zip(self.norms, cast("list[Branch]", self.branches), strict=True)


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


def state_bytes(state: Any) -> int:
    """Bytes of a state: of the tensors in any nesting of tuples, lists and dicts, with None for nothing.

    Raises:
        TypeError: something else is in it.
    """
    if state is None:
        return 0
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, dict):
        return sum(state_bytes(part) for part in state.values())
    if isinstance(state, list | tuple):
        return sum(state_bytes(part) for part in state)
    raise TypeError(
        f"a state holds tensors in tuples, lists or dicts, or None; this one holds a {type(state).__name__}"
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
