"""Names, settings and errors of compositions, presets and hybrids, and what they weigh next to what papers report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

from models.block import MLP, BlockOptions
from models.blocks.h3 import H3Block
from models.blocks.mamba import MambaBlock
from models.blocks.plain import Plain
from models.composition import compose, model_class
from models.mixers.attention import Attention
from models.mixers.s4d import S4D
from models.mixers.s6 import S6
from models.shell import Shell
from models.state import state_bytes
from suite.errors import UsageError
from suite.registry import Registry
from suite.spec import ShellSettings

REGISTRY = Registry()


def build(name: str, settings: Mapping[str, Any] | None = None, *, width: int = 32, num_layers: int = 1) -> Shell:
    model = model_class(name)
    shell = ShellSettings(width=width, num_layers=num_layers)
    torch.manual_seed(0)
    return Shell(shell, 16, model(model.Options.parse(settings or {}, where=name)))


def layers(shell: Shell) -> list[str]:
    """What stands in each branch."""
    return [type(getattr(branch, "mixer", branch)).__name__ for branch in shell.branches]


def test_the_registry_reads_the_names_that_the_models_have() -> None:
    for name in (*REGISTRY.model_names(), *REGISTRY.composition_names()):
        model = REGISTRY.model(name)
        assert model.name == name
        assert model is model_class(name)
        assert len(model.summary()) > 10


def test_the_settings_of_block_and_mixer_never_share_a_name() -> None:
    for name in REGISTRY.composition_names():
        composition = compose(*name.split(":"))
        block, mixer = composition.block.Options.model_fields, composition.mixer.Options.model_fields
        assert not set(block) & set(mixer), name
        assert set(composition.Options.model_fields) == set(block) | set(mixer)
        assert set(BlockOptions.model_fields) <= set(block)


def test_a_setting_reaches_the_part_that_it_belongs_to() -> None:
    branch = build("h3:s4d", {"state_size": 6, "conv_width": 3}).branches[0]
    assert isinstance(branch, H3Block)
    assert branch.get_parameter("mixer.A_imag").shape == (32, 3)
    assert branch.get_parameter("conv.weight").shape == (32, 3)


def test_a_mixer_that_is_linear_gets_a_gated_unit_in_a_plain_block() -> None:
    assert compose("plain", "s4d").Options().model_dump()["output"] == "glu"
    assert compose("transformer", "hyena").Options().model_dump()["output"] == "glu"
    assert compose("plain", "s6").Options().model_dump()["output"] == "linear"


@pytest.mark.parametrize(
    ("preset", "composition", "changes"),
    [
        ("mamba", "mamba:s6", {}),
        ("s4", "plain:s4d", {}),
        ("transformer", "transformer:attention", {}),
        ("transformer++", "transformer:attention", {}),
        ("lstm", "plain:lstm", {}),
        ("gru", "plain:gru", {}),
        ("minlstm", "plain:minlstm", {}),
        ("mingru", "plain:mingru", {}),
        ("h3", "h3:s4d", {"conv_width": 64}),
        ("hyena", "h3:hyena", {"conv_width": 3, "conv_on": "qkv"}),
    ],
)
def test_a_preset_is_the_composition_that_it_says(preset: str, composition: str, changes: dict[str, Any]) -> None:
    ours, theirs = build(preset), build(composition, changes)
    assert model_class(preset).Options().model_dump() == model_class(composition).Options().model_dump() | changes
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    tokens = torch.randint(16, (2, 9))
    assert torch.equal(ours(tokens), theirs(tokens))


def test_an_mlp_follows_any_block_that_is_given_one() -> None:
    for name in ("plain:gru", "h3", "mamba"):
        shell = build(name, {"mlp_ratio": 2.0}, num_layers=2)
        assert [isinstance(branch, MLP) for branch in shell.branches] == [False, True] * 2
    assert layers(build("transformer", {"mlp_ratio": 0.0})) == ["Attention"]


def test_a_gate_is_fused_where_the_mixer_takes_it() -> None:
    assert S6.takes_gate
    fused, apart = build("mamba").branches[0], build("mamba:s6", {"gate": False}).branches[0]
    assert isinstance(fused, MambaBlock)
    assert isinstance(apart, MambaBlock)
    assert fused.input_projection.out_features == 2 * apart.input_projection.out_features


def test_a_hybrid_repeats_its_pattern_over_the_layers() -> None:
    settings = {"pattern": "mamba*2,h3:s4d", "settings": {"mamba": {"state_size": 3}}}
    shell = build("hybrid", settings, num_layers=7)
    assert layers(shell) == ["S6", "S6", "S4D"] * 2 + ["S6"]
    assert shell.get_parameter("branches.0.mixer.A_log").shape == (64, 3)


def test_a_hybrid_may_be_built_again_and_with_an_mlp_in_some_layers() -> None:
    model = model_class("hybrid")()
    for num_layers in (3, 2):
        shell = Shell(ShellSettings(width=32, num_layers=num_layers), 16, model)
        assert layers(shell) == ["S6", "Attention", "MLP", "S6"][: 1 + num_layers]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("mamba*0", r"'mamba\*0' is not a model's name, or NAME\*COUNT"),
        ("mamba,,gru", "'' is not a model's name"),
        ("mamba x 2", "'mamba x 2' is not a model's name"),
        ("mambo", r"No model is called 'mambo'\. Did you mean 'mamba'\?"),
        ("h3:s6d", r"No mixer is called 's6d'\. Did you mean 's"),
        ("hybrid", "a hybrid cannot stand in its own pattern"),
    ],
)
def test_a_pattern_that_names_no_models_is_refused(pattern: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build("hybrid", {"pattern": pattern})


def test_a_pattern_that_is_longer_than_the_shell_is_refused() -> None:
    with pytest.raises(UsageError, match=r"has 8 layers and the shell 2, .* Set shell\.num_layers=8 or more"):
        build("hybrid", {"pattern": "mamba*7,transformer"}, num_layers=2)


def test_settings_of_what_is_not_in_the_pattern_are_refused() -> None:
    with pytest.raises(UsageError, match="has 'gru', which is not in the pattern 'mamba,lstm'"):
        build("hybrid", {"pattern": "mamba,lstm", "settings": {"gru": {}}})
    with pytest.raises(UsageError, match=r"hybrid\.settings\.mamba\. Did you mean 'state_size'"):
        build("hybrid", {"settings": {"mamba": {"statesize": 3}}})


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("transformer", {"num_heads": 3}, "transformer: width 32 is not a multiple of num_heads 3"),
        ("mamba:attention", {"num_heads": 3}, "number of channels 64 is not a multiple of num_heads 3"),
        ("transformer", {"num_kv_heads": 3}, "num_heads 4 is not a multiple of num_kv_heads 3"),
        ("transformer", {"num_heads": 32, "position": "xpos"}, "head_size 1 is odd; xpos turns pairs of channels"),
        ("mamba:attention", {"head_size": 6}, "the mixer gives 24 channels and the block multiplies them with 64"),
        ("plain:s4d", {"expand": 2}, "expand = 2: s4d keeps its number of channels"),
        ("mamba2", {"head_size": 7}, "mamba2: number of channels 64 is not a multiple of head_size 7"),
        ("plain:ssd", {"head_size": 5}, "plain:ssd: number of channels 32 is not a multiple of head_size 5"),
        ("hybrid", {"settings": {"transformer": {"num_heads": 3}}}, "hybrid: transformer: width 32 is not a multiple"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_the_models_name(
    name: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        build(name, settings, num_layers=2)


@pytest.mark.parametrize(
    ("settings", "length", "message"),
    [
        ({"position": "learned", "max_positions": 8}, 9, "9 tokens are more than .* max_positions = 8. Set it higher"),
        ({"position": "xpos"}, 32_769, "xpos reaches 32,768 tokens"),
    ],
)
def test_a_sequence_beyond_the_positions_is_refused(settings: dict[str, Any], length: int, message: str) -> None:
    shell = build("transformer", settings)
    with torch.no_grad():
        with pytest.raises(UsageError, match=message):
            shell(torch.zeros(1, length, dtype=torch.int64))
        with pytest.raises(UsageError, match=message):
            shell.initial_state(1, length)


def test_positions_are_counted_from_where_a_document_starts() -> None:
    shell, tokens = (
        build("transformer", {"position": "learned", "max_positions": 8}),
        torch.zeros(1, 15, dtype=torch.int64),
    )
    starts = torch.zeros(1, 15, dtype=torch.bool)
    starts[0, 8] = True
    with torch.no_grad():
        assert torch.allclose(shell(tokens, starts)[:, 8:], shell(tokens[:, 8:]), atol=1e-5)
        starts[0, 8], starts[0, 9] = False, True
        with pytest.raises(UsageError, match=r"9 tokens are more than .* max_positions = 8"):
            shell(tokens, starts)


@pytest.mark.parametrize("name", ["transformer", "hyena", "mamba"])
def test_a_full_state_refuses_another_token(name: str) -> None:
    shell = build(name)
    state, token = shell.initial_state(1, 2), torch.zeros(1, dtype=torch.int64)
    with torch.no_grad():
        for _ in range(2):
            _, state = shell.step(token, state)
        with pytest.raises(ValueError, match="room for 2 tokens, and this makes 3"):
            shell.step(token, state)
        with pytest.raises(ValueError, match="room for 2 tokens, and this makes 3"):
            shell.prefill(token.expand(1, 3), 2)


def test_a_window_keeps_the_state_small_and_never_fills_it() -> None:
    shell = build("transformer", {"window": 5})
    state, token = shell.initial_state(1, 100), torch.zeros(1, dtype=torch.int64)
    assert state_bytes(state) == 2 * 4 * 5 * 32 + 8
    with torch.no_grad():
        for _ in range(7):
            _, state = shell.step(token, state)


@pytest.mark.parametrize(
    ("name", "settings", "bytes_per_sequence"),
    [
        # 4-byte numbers: 128 states of each of 128 channels, and 3 past inputs of x, B and C.
        ("mamba2", {}, 4 * (128 * 128 + 3 * (128 + 2 * 128))),
        # 32 complex states of each channel, and 63 past inputs of k.
        ("h3", {}, 8 * 32 * 64 + 4 * 63 * 64),
        ("plain:s4-dplr", {}, 8 * 32 * 64),
        # All inputs, and 2 past inputs of q, k and v.
        ("hyena", {}, 4 * 100 * 64 + 4 * 2 * 3 * 64),
        ("minlstm", {"expand": 2}, 4 * 128),
        ("mingru", {}, 4 * 64),
        # One key and one value head of 16 channels.
        ("transformer", {"num_kv_heads": 1}, 2 * 4 * 100 * 16 + 8),
        ("plain:attention", {"window": 10}, 2 * 4 * 10 * 64 + 8),
    ],
)
def test_a_sequence_has_a_state_of_known_size(name: str, settings: dict[str, Any], bytes_per_sequence: int) -> None:
    assert state_bytes(build(name, settings, width=64).initial_state(1, 100)) == bytes_per_sequence


@pytest.mark.parametrize(
    ("name", "settings", "width", "published", "ours"),
    [
        # Table 11 of Mamba, two layers on 16 tokens. 137K: with biases and LayerNorm, which are not here.
        ("plain:attention", {"num_heads": 8, "position": "none"}, 128, 137_000, 135_552),
        # 153K: without rates of S4D and taps of the shift for each channel, 33,024 numbers, ours has 153,472.
        ("h3", {}, 128, 153_000, 186_496),
        # 74K: with a vocabulary that is padded to 64.
        ("mamba", {}, 64, 74_000, 67_520),
        # Of the 69M that the table gives Hyena nearly all is a table of positions for a million tokens, which ours
        # computes.
        ("hyena", {}, 128, 69_000_000, 173_568),
    ],
)
def test_the_parameters_next_to_those_that_papers_report(
    name: str, settings: dict[str, Any], width: int, published: int, ours: int
) -> None:
    shell = build(name, settings, width=width, num_layers=2)
    assert shell.num_parameters == ours, f"published: {published:,}"


def test_a_mixer_may_stand_in_a_block_by_itself() -> None:
    plain = Plain(16, Attention, compose("plain", "attention").Options())
    assert isinstance(plain.mixer, Attention)
    assert plain(torch.randn(2, 5, 16)).shape == (2, 5, 16)
    state_space: nn.Module = build("h3").branches[0].get_submodule("mixer")
    assert isinstance(state_space, S4D)
