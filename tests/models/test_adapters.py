"""Models that others ship: the contract through stand-ins for their packages, which run on a GPU only, and what is said
where a package is missing."""

from __future__ import annotations

import importlib.metadata
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.adapters import mamba_ssm
from models.blocks.mamba import MambaBlock
from models.presets import Mamba
from models.shell import Shell
from suite.contracts.model import MODEL_CHECKS, ModelCheck
from suite.errors import DeviceError, UsageError
from suite.registry import Registry
from suite.spec import ShellSettings

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
    monkeypatch.setattr(mamba_ssm.OfficialBranch, "_expect_gpu", lambda self, x: None)
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
def test_a_missing_package_is_named_with_what_to_install(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} needs the package mamba-ssm, .* pip install"):
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
    assert REGISTRY.adapter_names() == ["official-mamba", "official-mamba2"]
    assert not set(REGISTRY.adapter_names()) & set(REGISTRY.model_names())
    assert REGISTRY.entry("model", "official-mamba").origin == "models.adapters.mamba_ssm"
