"""Decoders of the package transformers behind the contract of every other model: its attention and its MLP.

    x = x + self_attn(norm(x));   x = x + mlp(norm(x))

is both the shell and the layer of Llama and its kin, so that what stands in the shell is their model: embedding, norms,
residual stream and head mean the same, and `tests/models/test_adapters.py` compares the logits. A layer of another form
(a second norm, a scaled embedding, a norm with a mean) would become another model in this shell, and is refused. What
differs: the head is not tied to the embedding, norms have the shell's epsilon, and the projections that end a branch
start as small as those of every other model. Weights are never loaded: all models start from nothing.
"""

# B batch, L length, D width, K key heads, C slots of the cache, S head size

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from kernels.dispatch import note
from models.adapters.packages import Package
from models.flops import map_flops
from models.state import step_through
from suite.errors import UsageError, unknown
from suite.plugin import Model
from suite.spec import PositiveInt, Settings, ShellSettings

_PACKAGE = Package("transformers", first_version=(5, 0), way_out="Install it: pip install 'transformers>=5'")

_TYPES = ("llama", "mistral", "qwen2", "qwen3")
"""Those whose layers are the shell's two residual branches."""


class TransformersDecoder(Model):
    """A decoder of the package transformers, by the name of its configuration or a local folder."""

    name = "transformers-decoder"

    class Options(Settings):
        """Settings of the decoder; width and number of layers are the shell's."""

        config: str = "llama"
        """llama, mistral, qwen2 or qwen3, or a folder with a config.json of such a type."""
        num_heads: PositiveInt = 4
        """If there is no folder."""
        num_kv_heads: PositiveInt | None = None
        """If there is no folder; as many as `num_heads` if not given."""
        mlp_size: PositiveInt | None = None
        """Hidden units of the MLP if there is no folder; 8/3 of the width, in eights, if not given."""
        settings: dict[str, Any] = Field(default_factory=dict)
        """Further settings of the configuration, by its own names."""

    def branches(self, shell: ShellSettings) -> Sequence[nn.Module]:
        """The attention and the MLP of one layer of theirs."""
        config = self._config(shell)
        auto = _PACKAGE.get(self.name, "transformers", "AutoModel")
        decoder = auto.from_config(config, attn_implementation="sdpa")
        (layer,) = decoder.layers
        return [DecoderAttention(layer.self_attn, decoder.rotary_emb, self.name), DecoderMLP(layer.mlp)]

    def _config(self, shell: ShellSettings) -> Any:
        """That of a model of one layer.

        Raises:
            UsageError: there is no such configuration, it does not fit the shell, or the shell cannot hold its layers.
        """
        given, read = self.options.config, _PACKAGE.get(self.name, "transformers", "AutoConfig")
        is_folder = Path(given, "config.json").is_file()
        if not is_folder and given not in _TYPES:
            raise UsageError(
                f"{self.name}: config = '{given}' is no folder with a config.json, and none of {', '.join(_TYPES)}"
            )
        sizes = {
            "num_hidden_layers": 1,
            "vocab_size": 1,
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": None,
        }
        try:
            if is_folder:
                config = read.from_pretrained(
                    given, local_files_only=True, layer_types=None, **sizes | self.options.settings
                )
            else:
                config = read.for_model(given, **sizes | self._sizes(shell.width) | self.options.settings)
        except Exception as error:  # of what kind is theirs to choose, and it varies with the version
            raise UsageError(f"{self.name}: the configuration of {given} cannot be read: {error}") from error
        for name in self.options.settings:
            if name not in (known := type(config)().to_dict()):
                raise unknown("setting", name, known, where=f"in a configuration of type {config.model_type}")
        self._expect_fit(config, shell)
        return config

    def _sizes(self, width: int) -> dict[str, int | None]:
        """What a configuration without a folder has in place of sizes for billions of weights."""
        num_heads = self.options.num_heads
        if width % num_heads:
            raise UsageError(f"{self.name}: width {width} is not a multiple of num_heads {num_heads}")
        return {
            "hidden_size": width,
            "num_attention_heads": num_heads,
            "num_key_value_heads": self.options.num_kv_heads or num_heads,
            "head_dim": width // num_heads,
            "intermediate_size": self.options.mlp_size or 8 * -(-width // 3),
            "sliding_window": None,
        }

    def _expect_fit(self, config: Any, shell: ShellSettings) -> None:
        given = self.options.config
        if config.model_type not in _TYPES:
            raise UsageError(
                f"{self.name}: {given} is of type {config.model_type}, whose layers are not those of the shell. Types "
                f"that are: {', '.join(_TYPES)}"
            )
        if config.hidden_size != shell.width:
            raise UsageError(
                f"{self.name}: {given} has width {config.hidden_size} and the shell {shell.width}. Set "
                f"shell.width={config.hidden_size}"
            )
        if getattr(config, "sliding_window", None):
            raise UsageError(
                f"{self.name}: {given} has a sliding window of {config.sliding_window} tokens, which is not kept here. "
                "Set sliding_window to null in its config.json, or use the mixer attention with a window"
            )


class DecoderAttention(nn.Module):
    """Their attention. Its state is keys and values, (batch, key heads, slots, head size), and the number of tokens."""

    def __init__(self, attention: nn.Module, rotary: nn.Module, operation: str) -> None:
        super().__init__()
        self.attention: Any = attention
        self.rotary = rotary
        self._operation = operation
        parameters = inspect.signature(self.attention.forward).parameters
        self._cache_name = "cache" if "cache" in parameters else "past_key_values"

    @property
    def output_projection(self) -> nn.Linear:
        """Their last linear map, under the name by which the shell scales it."""
        last: nn.Linear = self.attention.o_proj
        return last

    def forward(self, x_BLD: Float[Tensor, "batch length width"]) -> Float[Tensor, "batch length width"]:
        """The whole sequence, from an empty state."""
        return self._attend(x_BLD, _positions(x_BLD), None, None)

    def prefill(
        self,
        x_BLD: Float[Tensor, "batch length width"],
        *,
        max_length: int,
        sequence_starts: Bool[Tensor, "batch length"] | None = None,
    ) -> tuple[Float[Tensor, "batch length width"], tuple[Tensor, Tensor, Tensor]]:
        """The same and the state after it; documents are stepped through."""
        if sequence_starts is not None:
            return step_through(self, x_BLD, max_length=max_length, sequence_starts=sequence_starts)
        keys_BKCS, values_BKCS, num_tokens_B = self.initial_state(x_BLD.shape[0], max_length)
        cache = _Cache(keys_BKCS, values_BKCS, slots=_positions(x_BLD), is_read=False)
        y_BLD = self._attend(x_BLD, _positions(x_BLD), cache, None)
        return y_BLD, (keys_BKCS, values_BKCS, num_tokens_B + x_BLD.shape[1])

    def initial_state(self, batch_size: int, max_length: int) -> tuple[Tensor, Tensor, Tensor]:
        """Room for `max_length` keys and values, in the dtype that autocast gives them."""
        weight, size = self.attention.k_proj.weight, self.attention.head_dim
        device = weight.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        keys_BKCS = weight.new_zeros(batch_size, weight.shape[0] // size, max_length, size, dtype=dtype)
        return keys_BKCS, keys_BKCS.clone(), torch.zeros(batch_size, dtype=torch.int64, device=weight.device)

    def step(
        self, x_BD: Float[Tensor, "batch width"], state: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Float[Tensor, "batch width"], tuple[Tensor, Tensor, Tensor]]:
        """One token: its key and value join the others."""
        keys_BKCS, values_BKCS, num_tokens_B = state
        position_B1 = num_tokens_B.unsqueeze(1)
        is_seen_BC = torch.arange(keys_BKCS.shape[2], device=x_BD.device) <= position_B1
        cache = _Cache(keys_BKCS, values_BKCS, slots=position_B1, is_read=True)
        y_B1D = self._attend(x_BD.unsqueeze(1), position_B1, cache, is_seen_BC[:, None, None])
        return y_B1D[:, 0], (keys_BKCS, values_BKCS, num_tokens_B + 1)

    def flops_per_token(self, length: int) -> float:
        """The maps, and a product with the key and with the value of each token seen."""
        return map_flops(self.attention) + 4 * self.output_projection.in_features * (length + 1) / 2

    def _attend(self, x_BLD: Tensor, positions_BL: Tensor, cache: _Cache | None, mask: Tensor | None) -> Tensor:
        note(self._operation, "transformers")
        turns = self.rotary(x_BLD, position_ids=positions_BL)
        options = {"position_embeddings": turns, "attention_mask": mask, self._cache_name: cache}
        y_BLD: Tensor = self.attention(hidden_states=x_BLD, **options)[0]
        return y_BLD


class _Cache:
    """The one method of their caches that attention calls."""

    def __init__(self, keys_BKCS: Tensor, values_BKCS: Tensor, *, slots: Int[Tensor, "batch length"], is_read: bool):
        self._keys_BKCS, self._values_BKCS = keys_BKCS, values_BKCS
        self._slots_BL, self._is_read = slots, is_read

    def update(self, k_BKLS: Tensor, v_BKLS: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Puts keys and values into their slots; gives what attention is to see: all slots, or these alone."""
        slots_BKLS = self._slots_BL[:, None, :, None].expand(k_BKLS.shape)
        keys_BKCS = self._keys_BKCS.scatter_(2, slots_BKLS, k_BKLS.to(self._keys_BKCS.dtype))
        values_BKCS = self._values_BKCS.scatter_(2, slots_BKLS, v_BKLS.to(self._values_BKCS.dtype))
        return (keys_BKCS, values_BKCS) if self._is_read else (k_BKLS, v_BKLS)


class DecoderMLP(nn.Module):
    """Their MLP. No state."""

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.mlp: Any = mlp

    @property
    def output_projection(self) -> nn.Module:
        """Their last linear map, under the name by which the shell scales it."""
        last: nn.Module = self.mlp.down_proj
        return last

    def forward(
        self, x: Float[Tensor, "... width"], sequence_starts: Tensor | None = None
    ) -> Float[Tensor, "... width"]:
        """Each token by itself."""
        y: Tensor = self.mlp(x)
        return y

    def prefill(
        self, x: Float[Tensor, "... width"], *, max_length: int, sequence_starts: Tensor | None = None
    ) -> tuple[Float[Tensor, "... width"], None]:
        """The same, and nothing to remember."""
        return self(x), None

    def initial_state(self, batch_size: int, max_length: int) -> None:
        """Nothing to remember."""

    def step(self, x_BD: Float[Tensor, "batch width"], state: None) -> tuple[Float[Tensor, "batch width"], None]:
        """The same map."""
        return self(x_BD), None


def _positions(x_BLD: Tensor) -> Tensor:
    """0, 1, … of every row, (batch, length)."""
    return torch.arange(x_BLD.shape[1], device=x_BLD.device).expand(x_BLD.shape[0], -1)
