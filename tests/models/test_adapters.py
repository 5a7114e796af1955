"""Models that others ship: the contract, through stand-ins for packages that run on a GPU only, and what is said where
a package is missing. Decoders of transformers are the real ones, and the same as theirs."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from models.adapters import fla, mamba_ssm
from models.blocks.mamba import MambaBlock
from models.flops import flops_per_token
from models.presets import Mamba
from models.shell import Shell
from suite.contracts.model import MODEL_CHECKS, ModelCheck
from suite.errors import DeviceError, UsageError
from suite.plugin import Model
from suite.registry import Registry
from suite.spec import ShellSettings
from tests.models.test_against_transformers import theirs_are_not_our_warnings

REGISTRY = Registry()


class StandIn(nn.Module):
    """A layer with the interface of theirs: a step takes a time axis and writes into the states that it is given."""

    def __init__(self, d_model: int, d_state: int, d_conv: int, expand: int, headdim: int | None = None) -> None:
        super().__init__()
        options = Mamba.Options.parse({"state_size": d_state, "conv_width": d_conv, "expand": expand}, where="theirs")
        self.block = MambaBlock(d_model, Mamba.mixer, options)
        self.out_proj = self.block.output_projection
        self.calls = 0

    def forward(self, hidden_states: Tensor) -> Tensor:
        self.calls += 1
        return self.block(hidden_states)

    def allocate_inference_cache(self, batch_size: int, max_seqlen: int) -> tuple[Tensor, Tensor]:
        conv_state, ssm_state = self.block.initial_state(batch_size, max_seqlen)
        return conv_state, ssm_state

    def step(self, hidden_states: Tensor, conv_state: Tensor, ssm_state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        assert hidden_states.shape[1] == 1
        y, new = self.block.step(hidden_states[:, 0], (conv_state.float(), ssm_state))
        conv_state.copy_(new[0])
        ssm_state.copy_(new[1])
        return y[:, None], conv_state, ssm_state


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    package = ModuleType("mamba_ssm")
    package.Mamba = package.Mamba2 = StandIn  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mamba_ssm", package)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.2.4")


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("check", MODEL_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", ["official-mamba", "official-mamba2"])
def test_an_adapter_keeps_the_contract(monkeypatch: pytest.MonkeyPatch, name: str, check: ModelCheck) -> None:
    monkeypatch.setattr(mamba_ssm, "expect_gpu", lambda model, x: None)
    check(REGISTRY.model(name)())


@pytest.mark.usefixtures("installed")
def test_their_last_map_is_scaled_to_the_depth_as_ours_are() -> None:
    deviations = []
    for num_layers in (1, 4):
        torch.manual_seed(0)
        shell = Shell(ShellSettings(width=64, num_layers=num_layers), 16, REGISTRY.model("official-mamba")())
        deviations.append(shell.get_parameter("branches.0.layer.out_proj.weight").std().item())
    assert deviations[1] == pytest.approx(deviations[0] / 2, rel=0.1)


@pytest.mark.usefixtures("installed")
def test_on_a_cpu_they_say_that_they_need_a_gpu() -> None:
    shell = Shell(ShellSettings(width=64, num_layers=1), 16, REGISTRY.model("official-mamba")())
    with pytest.raises(DeviceError, match="official-mamba runs on a GPU only, and its input is on the cpu"):
        shell(torch.zeros(1, 3, dtype=torch.int64))


@pytest.mark.parametrize("name", REGISTRY.adapter_names())
def test_a_missing_package_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def version(distribution: str) -> str:
        raise importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(UsageError, match=f"{name} needs the package [a-z-]+, which is not installed. .*pip install"):
        REGISTRY.model(name)().branches(ShellSettings(width=64))


@pytest.mark.usefixtures("installed")
def test_a_package_that_is_too_old_or_broken_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = REGISTRY.model("official-mamba2")()
    monkeypatch.delattr(sys.modules["mamba_ssm"], "Mamba2")
    with pytest.raises(UsageError, match=r"mamba-ssm 2\.2\.4 cannot be imported: .*Mamba2"):
        model.branches(ShellSettings(width=64))
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.2.0.post1")
    with pytest.raises(UsageError, match=r"needs mamba-ssm 2\.0 or newer; 1\.2\.0\.post1 is installed"):
        model.branches(ShellSettings(width=64))
    with pytest.raises(UsageError, match="number of channels 96 is not a multiple of head_size 64"):
        model.branches(ShellSettings(width=48))


def test_adapters_are_known_by_name_but_not_among_the_models_of_the_suite() -> None:
    fla = ["fla-deltanet", "fla-gated-deltanet", "fla-gla"]
    assert REGISTRY.adapter_names() == [*fla, "official-mamba", "official-mamba2", "transformers-decoder"]
    assert not set(REGISTRY.adapter_names()) & set(REGISTRY.model_names())
    assert REGISTRY.entry("model", "official-mamba").origin == "models.adapters.mamba_ssm"


def decoder(settings: Mapping[str, Any]) -> Model:
    model = REGISTRY.model("transformers-decoder")
    return model(model.Options.parse(settings, where="transformers-decoder"))


@pytest.mark.parametrize("check", MODEL_CHECKS, ids=lambda check: check.__name__)
def test_a_decoder_of_transformers_keeps_the_contract(check: ModelCheck) -> None:
    with theirs_are_not_our_warnings():
        check(decoder({"config": "qwen3", "num_kv_heads": 2}))


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
def test_the_shell_around_their_layers_is_their_model(kind: str) -> None:
    torch.manual_seed(0)
    with theirs_are_not_our_warnings():
        shell = Shell(
            ShellSettings(width=32, num_layers=2),
            16,
            decoder({"config": kind, "num_kv_heads": 2, "settings": {"rms_norm_eps": 1e-5}}),
        )
        theirs = transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(
                kind,
                vocab_size=16,
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=8,
                intermediate_size=88,
                rms_norm_eps=1e-5,
                sliding_window=None,
                pad_token_id=None,
                tie_word_embeddings=False,
            )
        )
    ours, state = dict(shell.named_parameters()), {}
    for name in theirs.state_dict():
        mine = name.replace("model.embed_tokens", "embedding").replace("model.norm", "final_norm")
        mine = mine.replace("lm_head", "head")
        for layer in range(2):
            first, second = 2 * layer, 2 * layer + 1
            mine = mine.replace(f"model.layers.{layer}.self_attn", f"branches.{first}.attention")
            mine = mine.replace(f"model.layers.{layer}.mlp", f"branches.{second}.mlp")
            mine = mine.replace(f"model.layers.{layer}.input_layernorm", f"norms.{first}")
            mine = mine.replace(f"model.layers.{layer}.post_attention_layernorm", f"norms.{second}")
        state[name] = ours.pop(mine)
    assert not ours
    theirs.load_state_dict(state)
    tokens = torch.randint(16, (2, 37))
    with torch.no_grad(), theirs_are_not_our_warnings():
        assert torch.allclose(shell(tokens), theirs(tokens, use_cache=False).logits, rtol=1e-4, atol=1e-5)


def test_a_decoder_does_the_operations_of_the_transformer_of_its_sizes() -> None:
    shell = ShellSettings(width=32)
    with theirs_are_not_our_warnings():
        theirs = nn.ModuleList(decoder({"num_kv_heads": 2}).branches(shell))
    transformer = REGISTRY.model("transformer")
    ours = nn.ModuleList(transformer(transformer.Options.parse({"num_kv_heads": 2}, where="ours")).branches(shell))
    assert flops_per_token(theirs, 40) == flops_per_token(ours, 40)


@pytest.mark.usefixtures("fla_installed")
def test_a_layer_of_fla_cannot_be_matched_by_operations() -> None:
    (branch,) = REGISTRY.model("fla-gla")().branches(ShellSettings(width=32))
    with pytest.raises(UsageError, match="fla-gla does not say how many operations it does"):
        flops_per_token(branch, 40)


def test_a_folder_has_the_sizes_of_its_decoder(tmp_path: Path) -> None:
    with theirs_are_not_our_warnings():
        transformers.LlamaConfig(hidden_size=48, intermediate_size=40, num_attention_heads=6).save_pretrained(tmp_path)
        attention, mlp = decoder({"config": str(tmp_path)}).branches(ShellSettings(width=48))
    assert attention.get_parameter("attention.q_proj.weight").shape == (48, 48)
    assert mlp.get_parameter("mlp.up_proj.weight").shape == (40, 48)


@pytest.mark.parametrize(
    ("config", "width", "message"),
    [
        (
            {"model_type": "llama", "hidden_size": 48, "num_attention_heads": 4},
            64,
            "has width 48 and the shell 64. Set shell.width=48",
        ),
        ({"model_type": "gpt2"}, 64, "is of type gpt2, whose layers are not those of the shell. Types that are: llama"),
        ({"model_type": "mistral", "hidden_size": 64, "sliding_window": 9}, 64, "has a sliding window of 9 tokens"),
        (
            {"model_type": "llama", "hidden_size": 50},
            50,
            r"cannot be read: [\s\S]*not a multiple of the number of attention",
        ),
        (None, 64, "is no folder with a config.json, and none of llama, mistral"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused(
    tmp_path: Path, config: dict[str, Any] | None, width: int, message: str
) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=message):
        decoder({"config": str(tmp_path)}).branches(ShellSettings(width=width))


def test_a_setting_that_their_configuration_does_not_have_is_refused() -> None:
    with pytest.raises(
        UsageError, match=r"No setting is called 'atention_bias' .* llama\. Did you mean 'attention_bias'"
    ):
        decoder({"settings": {"atention_bias": True}}).branches(ShellSettings(width=64))


def test_heads_of_a_decoder_must_divide_the_width() -> None:
    with pytest.raises(UsageError, match="width 64 is not a multiple of num_heads 5"):
        decoder({"num_heads": 5}).branches(ShellSettings(width=64))


class FlaStandIn(nn.Module):
    """A layer with the interface of theirs: it asks the cache for its state and hands it the next one."""

    def __init__(self, hidden_size: int, layer_idx: int, num_heads: int) -> None:
        super().__init__()
        if num_heads > 4:
            raise ValueError("at most 4 heads")
        self.o_proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor, past_key_values: Any, use_cache: bool) -> tuple[Tensor, None, Any]:
        before = past_key_values[0]["recurrent_state"] if past_key_values is not None and len(past_key_values) else 0
        decay = 0.9 ** torch.arange(x.shape[1], device=x.device, dtype=x.dtype).unsqueeze(-1)
        h = ((x / decay).cumsum(1) + (0.9 * before.unsqueeze(1) if use_cache and len(past_key_values) else 0)) * decay
        if use_cache:
            past_key_values.update(layer_idx=0, recurrent_state=h[:, -1], conv_state=(x[:, -1],), offset=x.shape[1])
        return self.o_proj(h), None, past_key_values


@pytest.fixture
def fla_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = ModuleType("fla.layers")
    layers.GatedLinearAttention = layers.DeltaNet = FlaStandIn  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fla", ModuleType("fla"))
    monkeypatch.setitem(sys.modules, "fla.layers", layers)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.6.0")


@pytest.mark.usefixtures("fla_installed")
@pytest.mark.parametrize("check", MODEL_CHECKS, ids=lambda check: check.__name__)
def test_a_layer_of_fla_keeps_the_contract(monkeypatch: pytest.MonkeyPatch, check: ModelCheck) -> None:
    monkeypatch.setattr(fla, "expect_gpu", lambda model, x: None)
    check(REGISTRY.model("fla-gla")())


@pytest.mark.usefixtures("fla_installed")
def test_what_a_layer_of_fla_does_not_take_is_named() -> None:
    model = REGISTRY.model("fla-deltanet")
    with pytest.raises(UsageError, match=r"fla-deltanet: DeltaNet does not take .* at width 64: at most 4 heads"):
        model(model.Options.parse({"num_heads": 5}, where="fla")).branches(ShellSettings(width=64))
    with pytest.raises(UsageError, match="unexpected keyword argument 'use_nothing'"):
        model(model.Options.parse({"settings": {"use_nothing": 1}}, where="fla")).branches(ShellSettings(width=64))
