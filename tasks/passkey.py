"""Passkey retrieval (Mohtashami & Jaggi 2023, arXiv:2305.16300), in the text that ships with the suite.

One fact stands somewhere in a long text: "The pass key is 71432. Remember it. 71432 is the pass key." The published
task repeats a few sentences about grass and sky around it; here it is real text, as for `needle`.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from suite import Budget, Preset, ShellSettings
from tasks.needle import Needle


class Passkey(Needle):
    """Say the pass key that a long text mentioned somewhere.

    Tokens are bytes. Scored are the digits of the key, which are the last tokens of the sequence.
    """

    name = "passkey"

    class Options(Needle.Options):
        fact: ClassVar[str] = " The pass key is {digits}. Remember it. {digits} is the pass key. "
        question: ClassVar[str] = " What is the pass key? The pass key is "

        num_needles: Literal[1] = 1
        """There is one pass key."""

    presets = {
        "quick": Preset(
            settings={"length": 160, "num_digits": 2, "test_lengths": [160, 320]},
            budget=Budget(steps=400, batch_size=16, warmup_steps=20, schedule="cosine", evaluate_every=100),
            learning_rates=(3e-3,),
            cost_lengths=(160,),
        ),
        "standard": Preset(
            settings={"length": 1024, "test_lengths": [1024, 2048, 4096, 8192]},
            shell=ShellSettings(width=128, num_layers=4),
            budget=Budget(steps=20_000, batch_size=16, warmup_steps=500, evaluate_every=500, stop_at=0.999),
            learning_rates=(3e-4, 1e-3, 3e-3),
            max_extensions=2,
            num_seeds=5,
            cost_lengths=(1024, 4096),
        ),
        # The published training length of 512 tokens and tests of up to 32 thousand.
        "paper": Preset(
            settings={"length": 512, "test_lengths": [2**power for power in range(9, 16)]},
            shell=ShellSettings(width=256, num_layers=4),
            budget=Budget(steps=50_000, batch_size=32, warmup_steps=1000, evaluate_every=1000, stop_at=0.999),
            learning_rates=(3e-4, 1e-3),
            num_seeds=5,
            cost_lengths=(512, 32_768),
        ),
    }
