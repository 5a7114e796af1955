"""What a plugin offers: the `Model` and `Task` contracts. Authors import everything from `suite`.

A plugin is a class with a `name`, a docstring whose first line introduces it, and a nested `Options` with its settings;
an instance is the plugin with its settings chosen. `suite check file.py` runs the contract that is promised here.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np
import numpy.typing as npt

from suite.spec import Choice, Preset, Settings, ShellSettings, canonical_json

if TYPE_CHECKING:
    from torch import Tensor, nn

IGNORED = -100
"""The target at a position that is not scored (torch's `ignore_index`)."""

Split = Literal["train", "validation", "test"]
Metric = Literal["token_accuracy", "sequence_accuracy", "bits_per_byte"]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """Token sequences and what is to be predicted at each of their positions.

    Both arrays are int64 of shape (batch, length). `targets[b, t]` is the token that belongs to position t given
    `inputs[b, : t + 1]`, or `IGNORED`.
    """

    inputs: IntArray
    targets: IntArray
    slices: IntArray | None = None
    """The slice that each position belongs to, as an index into `Task.slices`: int64, of shape (batch, length) or one
    that broadcasts to it, such as (batch, 1) for slices of whole sequences. None if the task has no slices."""

    def sha256(self) -> str:
        """Digest of inputs and targets and their shape."""
        digest = hashlib.sha256(repr(self.inputs.shape).encode())
        digest.update(np.ascontiguousarray(self.inputs, dtype="<i8").tobytes())
        digest.update(np.ascontiguousarray(self.targets, dtype="<i8").tobytes())
        return digest.hexdigest()


class _Plugin(ABC):
    """What models and tasks have in common."""

    name: ClassVar[str]
    """How the command line calls it: lower case, digits, `_`, `-`."""
    version: ClassVar[int] = 1
    """Raise it when earlier results of this plugin are no longer comparable."""
    Options: ClassVar[type[Settings]] = Settings
    """The plugin's settings."""

    def __init__(self, options: Settings | None = None) -> None:
        self.options: Any = self.Options() if options is None else options

    @classmethod
    def summary(cls) -> str:
        """First line of the docstring."""
        return (cls.__doc__ or "").strip().partition("\n")[0]

    def choice(self, source_sha256: str | None = None) -> Choice:
        """This plugin with its settings, as a cell stores it."""
        return Choice(
            name=self.name,
            version=self.version,
            settings=self.options.model_dump(mode="json"),
            source_sha256=source_sha256,
        )


class Task(_Plugin):
    """A source of data and the rule by which it is scored.

    The engine hands `sample` a random generator keyed by (task, settings, seed, split, step), so a batch is a pure
    function of these and every model sees the same bits.
    """

    presets: ClassVar[Mapping[str, Preset]]
    """At least `quick`; usually `standard` and `paper` as well."""
    metric: ClassVar[Metric] = "token_accuracy"
    """What validation selects by and the report shows first."""
    solved_at: ClassVar[float | None] = None
    """The metric from which on a seed has solved it; if not given, 95 % of a share, and never in bits per byte."""

    @property
    @abstractmethod
    def vocab_size(self) -> int: ...

    @property
    @abstractmethod
    def length(self) -> int:
        """Tokens of a training sequence."""

    @property
    def test_lengths(self) -> tuple[int, ...]:
        """Lengths in tokens at which the trained model is tested."""
        return (self.length,)

    @property
    def slices(self) -> tuple[str, ...]:
        """Names of the parts by which the test is scored besides: "depth 0–10 %", "8 pairs"; none if empty."""
        return ()

    @abstractmethod
    def sample(self, rng: np.random.Generator, *, split: Split, batch_size: int, length: int) -> Batch:
        """Draws a batch of `batch_size` sequences of `length` tokens; all randomness comes from `rng`."""

    def oracle(self, batch: Batch) -> IntArray | None:
        """The right answers found from `batch.inputs` alone, (batch, length); None where no solver can exist."""
        return None

    @abstractmethod
    def baseline(self) -> float:
        """The metric of a model that knows the task but cannot see the sequence."""


class Model(_Plugin):
    """A sequence model: the residual branches that stand in each layer of the shared shell."""

    @abstractmethod
    def branches(self, shell: ShellSettings) -> Sequence[nn.Module]:
        """The residual branches of one layer, in order; the shell computes x + branch(norm(x)) for each.

        Every branch is a `Branch`. Called once a layer; initialisation draws from torch's global generator, which the
        engine seeds.
        """


class Branch(Protocol):
    """A causal map of the residual stream, in parallel over time and step by step, with the same result.

    If its last linear map is called `output_projection`, the shell scales its first weights to the depth of the model.
    A module in it that computes more than its linear maps may say so with `flops_per_token(length)`; models can then be
    matched by it.

    Two things it may have besides. If its `forward` takes `sequence_starts`, (batch, length), True where a document
    begins that sees nothing before, it keeps documents apart itself; otherwise the shell hands it each by itself. And
    `prefill(x, *, max_length, sequence_starts)` may give what the call does and the state after it, with room for
    `max_length` tokens; otherwise the shell steps through a prompt.
    """

    def __call__(self, x: Tensor) -> Tensor:
        """(batch, length, width) to the same shape."""

    def initial_state(self, batch_size: int, max_length: int) -> Any:
        """The state before the first token: zeros, the batch first, in tuples, lists or dicts; None without memory."""

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """One token, (batch, width), and the state; gives the output and the next state (the old one may be reused)."""


def keyed_generator(task: Choice, seed: int, split: Split, step: int) -> np.random.Generator:
    """The counter-based generator that belongs to one batch of one task: same key, same bits, on every machine.

    The same, that is, as long as numpy keeps its streams; its version stands in every record.
    """
    key = canonical_json([task.model_dump(mode="json"), seed, split, step]).encode()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(hashlib.sha256(key).digest()[:16], "little")))
