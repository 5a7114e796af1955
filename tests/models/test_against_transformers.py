"""Logits and gradients of the models that `transformers` has as well, from the same weights."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.mamba2 import Mamba2
from models.presets import Mamba, Transformer
from models.shell import Shell
from suite.plugin import Model
from suite.spec import ShellSettings

WIDTH, NUM_LAYERS, VOCAB_SIZE = 32, 2, 19
COMMON = {"vocab_size": VOCAB_SIZE, "hidden_size": WIDTH, "num_hidden_layers": NUM_LAYERS, "tie_word_embeddings": False}
TOLERANCE = 1e-5
"""Of a difference, relative to the largest entry; both sides compute in float32."""


@contextmanager
def theirs_are_not_our_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def shell_of(model: Model) -> Shell:
    """A shell whose weights are all random: nothing may hide behind a zero or a one."""
    torch.manual_seed(0)
    shell = Shell(ShellSettings(width=WIDTH, num_layers=NUM_LAYERS), VOCAB_SIZE, model)
    with torch.no_grad():
        for parameter in shell.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return shell


def interleaved(rows: Tensor, num_heads: int) -> Tensor:
    """Rows of W_q or W_k with the halves of a head, which `transformers` turns as pairs, side by side as here."""
    return rows.unflatten(0, (num_heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def halves(rows: Tensor, num_heads: int) -> Tensor:
    """The way back."""
    return rows.unflatten(0, (num_heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def expect_same(shell: Shell, theirs: nn.Module, names: dict[str, str]) -> None:
    """The logits, and the gradient of every weight in `names` (theirs -> ours) after the same loss."""
    tokens, readout = torch.randint(VOCAB_SIZE, (2, 37)), torch.randn(2, 37, VOCAB_SIZE)
    with theirs_are_not_our_warnings():
        logits = theirs(tokens, use_cache=False).logits
        torch.autograd.backward((logits * readout).sum())
    found = shell(tokens)
    torch.autograd.backward((found * readout).sum())
    expect_close("logits", found, logits)
    ours, weights = dict(shell.named_parameters()), dict(theirs.named_parameters())
    assert set(names) == set(weights)
    for their_name, our_name in names.items():
        expected, gradient = weights[their_name].grad, ours[our_name].grad
        assert expected is not None
        assert gradient is not None
        expect_close(our_name, gradient, expected.reshape(gradient.shape))


def expect_close(what: str, found: Tensor, expected: Tensor) -> None:
    difference, scale = (found - expected).abs().max().item(), expected.abs().max().item()
    assert difference <= TOLERANCE * scale, f"{what} differ by {difference:.1e} where the largest is {scale:.1e}"


def copy(shell: Shell, theirs: nn.Module, names: dict[str, str]) -> None:
    ours = dict(shell.named_parameters())
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.copy_(ours[names[name]].reshape(parameter.shape))


def mamba_names(mixer: dict[str, str]) -> dict[str, str]:
    names = {"backbone.embeddings.weight": "embedding.weight", "backbone.norm_f.weight": "final_norm.weight"}
    names["lm_head.weight"] = "head.weight"
    for layer in range(NUM_LAYERS):
        names[f"backbone.layers.{layer}.norm.weight"] = f"norms.{layer}.weight"
        for theirs, ours in mixer.items():
            names[f"backbone.layers.{layer}.mixer.{theirs}"] = f"branches.{layer}.{ours}"
    return names


def test_mamba() -> None:
    with theirs_are_not_our_warnings():
        from transformers import MambaConfig, MambaForCausalLM

        theirs = MambaForCausalLM(MambaConfig(state_size=5, use_mambapy=False, **COMMON)).train()
    shell = shell_of(Mamba(Mamba.Options(state_size=5)))
    names = mamba_names(
        {
            "in_proj.weight": "input_projection.weight",
            "conv1d.weight": "conv.weight",
            "conv1d.bias": "conv.bias",
            "x_proj.weight": "mixer.selection_projection.weight",
            "dt_proj.weight": "mixer.delta_projection.weight",
            "dt_proj.bias": "mixer.delta_projection.bias",
            "A_log": "mixer.A_log",
            "D": "mixer.D",
            "out_proj.weight": "output_projection.weight",
        }
    )
    copy(shell, theirs, names)
    expect_same(shell, theirs, names)


def test_mamba2() -> None:
    sizes = {"state_size": 5, "head_dim": 16, "num_heads": 4, "n_groups": 1, "chunk_size": 16}
    with theirs_are_not_our_warnings():
        from transformers import Mamba2Config, Mamba2ForCausalLM

        theirs = Mamba2ForCausalLM(Mamba2Config(**sizes, **COMMON)).train()
    shell = shell_of(Mamba2(Mamba2.Options(state_size=5, head_size=16)))
    names = mamba_names(
        {
            "in_proj.weight": "input_projection.weight",
            "conv1d.weight": "conv.weight",
            "conv1d.bias": "conv.bias",
            "dt_bias": "state_space.delta_bias",
            "A_log": "state_space.A_log",
            "D": "state_space.D",
            "norm.weight": "norm_weight",
            "out_proj.weight": "output_projection.weight",
        }
    )
    copy(shell, theirs, names)
    expect_same(shell, theirs, names)


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
def test_llama(num_kv_heads: int) -> None:
    """Theirs has a matrix for each map; ours has those of attention in one, and those of the MLP."""
    options = Transformer.Options(num_heads=4, num_kv_heads=num_kv_heads, mlp_ratio=2.0)
    shell = shell_of(Transformer(options))
    ours = dict(shell.named_parameters())
    with theirs_are_not_our_warnings():
        from transformers import LlamaConfig, LlamaForCausalLM

        sizes: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": num_kv_heads}
        config = LlamaConfig(intermediate_size=2 * WIDTH, rms_norm_eps=1e-5, **sizes, **COMMON)
        theirs = LlamaForCausalLM(config).train()
    size = WIDTH // 4
    parts = {"q_proj": 4 * size, "k_proj": num_kv_heads * size, "v_proj": num_kv_heads * size}
    state = {"model.embed_tokens.weight": ours["embedding.weight"], "model.norm.weight": ours["final_norm.weight"]}
    state["lm_head.weight"] = ours["head.weight"]
    for layer in range(NUM_LAYERS):
        prefix, attention, mlp = f"model.layers.{layer}", f"branches.{2 * layer}", f"branches.{2 * layer + 1}"
        maps = ours[f"{attention}.mixer.input_projection.weight"].split(list(parts.values()))
        q, k, v = halves(maps[0], 4), halves(maps[1], num_kv_heads), maps[2]
        state |= {f"{prefix}.self_attn.{name}.weight": part for name, part in zip(parts, (q, k, v), strict=True)}
        state[f"{prefix}.self_attn.o_proj.weight"] = ours[f"{attention}.output_projection.weight"]
        gate, value = ours[f"{mlp}.input_projection.weight"].chunk(2)
        state |= {f"{prefix}.mlp.gate_proj.weight": gate, f"{prefix}.mlp.up_proj.weight": value}
        state[f"{prefix}.mlp.down_proj.weight"] = ours[f"{mlp}.output_projection.weight"]
        state[f"{prefix}.input_layernorm.weight"] = ours[f"norms.{2 * layer}.weight"]
        state[f"{prefix}.post_attention_layernorm.weight"] = ours[f"norms.{2 * layer + 1}.weight"]
    theirs.load_state_dict(state)

    tokens, readout = torch.randint(VOCAB_SIZE, (2, 37)), torch.randn(2, 37, VOCAB_SIZE)
    with theirs_are_not_our_warnings():
        logits = theirs(tokens, use_cache=False).logits
    torch.autograd.backward([(logits * readout).sum(), (found := shell(tokens)).mul(readout).sum()])
    expect_close("logits", found, logits)
    weights = dict(theirs.named_parameters())

    def gradient(name: str) -> Tensor:
        found = weights[name].grad
        assert found is not None
        return found

    def expect_gradient(name: str, expected: Tensor) -> None:
        found = ours[name].grad
        assert found is not None
        expect_close(name, found, expected)

    expect_gradient("embedding.weight", gradient("model.embed_tokens.weight"))
    for layer in range(NUM_LAYERS):
        prefix, attention, mlp = f"model.layers.{layer}", f"branches.{2 * layer}", f"branches.{2 * layer + 1}"
        q, k, v = (gradient(f"{prefix}.self_attn.{name}.weight") for name in parts)
        maps = torch.cat([interleaved(q, 4), interleaved(k, num_kv_heads), v])
        expect_gradient(f"{attention}.mixer.input_projection.weight", maps)
        expect_gradient(f"{attention}.output_projection.weight", gradient(f"{prefix}.self_attn.o_proj.weight"))
        gate_and_value = [gradient(f"{prefix}.mlp.{name}.weight") for name in ("gate_proj", "up_proj")]
        expect_gradient(f"{mlp}.input_projection.weight", torch.cat(gate_and_value))
        expect_gradient(f"{mlp}.output_projection.weight", gradient(f"{prefix}.mlp.down_proj.weight"))
