"""Noisy in-context recall (Poli et al. 2024, arXiv:2403.17844): noise stands in the place of some pairs."""

from __future__ import annotations

from suite import Budget, Preset, ShellSettings
from suite.spec import NonNegativeInt, PositiveInt
from tasks.in_context_recall import InContextRecall, Share
from tasks.mad import published_preset


class NoisyInContextRecall(InContextRecall):
    """Say the value of a key that came before, while more pairs and noise come.

    Tokens are as in `in_context_recall`; those of noise are never a key or a value.
    """

    name = "noisy_in_context_recall"

    class Options(InContextRecall.Options):
        vocab_size: PositiveInt = 32
        """Tokens in all, noise included."""
        noise_share: Share = 0.2
        num_noise_tokens: NonNegativeInt = 16

    presets = {
        "quick": Preset(
            settings={"length": 32, "vocab_size": 12, "num_noise_tokens": 4},
            shell=ShellSettings(width=32, num_layers=2),
            budget=Budget(steps=800, batch_size=32, warmup_steps=50, schedule="cosine", evaluate_every=100),
            learning_rates=(5e-3,),
            num_seeds=2,
            cost_lengths=(31,),
        ),
        "standard": Preset(
            settings={"length": 128, "vocab_size": 80, "noise_share": 0.4},
            shell=ShellSettings(width=128, num_layers=2),
            budget=Budget(steps=20_000, batch_size=64, warmup_steps=200, evaluate_every=500, stop_at=0.999),
            learning_rates=(3e-4, 1e-3, 3e-3),
            max_extensions=2,
            num_seeds=5,
            cost_lengths=(127,),
        ),
        "paper": published_preset(length=128, train_on="all"),
    }
