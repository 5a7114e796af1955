"""Associative recall (Ba et al. 2016, arXiv:1610.06258), in the setting of H3 (Fu et al. 2022, arXiv:2212.14052).

A row of pairs of key and value, then one of the keys once more: what is its value? Keys come with replacement, as in
the generator of the safari code, so that a pair may be shown several times.
"""

from __future__ import annotations

from typing import Literal

from suite import Budget, Preset, ShellSettings
from suite.spec import PositiveInt
from tasks.in_context_recall import InContextRecall, Length


class AssociativeRecall(InContextRecall):
    """Say the value of one key, after all pairs have been shown.

    Tokens are as in `in_context_recall`; the last token of the vocabulary announces the key. Scored is the last
    position alone.
    """

    name = "associative_recall"

    class Options(InContextRecall.Options):
        length: Length = 42
        """Tokens of a sequence: the pairs, the announcement and the key."""
        vocab_size: PositiveInt = 21
        queries: Literal["repeated", "last"] = "last"

    presets = {
        "quick": Preset(
            settings={"length": 22, "vocab_size": 9},
            shell=ShellSettings(width=32, num_layers=2),
            budget=Budget(steps=1500, batch_size=32, warmup_steps=50, schedule="cosine", evaluate_every=100),
            learning_rates=(5e-3,),
            num_seeds=2,
            cost_lengths=(22,),
        ),
        "standard": Preset(
            settings={"length": 130, "vocab_size": 41, "test_lengths": [66, 130, 258, 514]},
            budget=Budget(steps=20_000, batch_size=64, warmup_steps=200, evaluate_every=500, stop_at=0.999),
            learning_rates=(3e-4, 1e-3, 3e-3),
            max_extensions=2,
            num_seeds=5,
            cost_lengths=(130,),
        ),
        # 20 pairs over 18 tokens (the published 20 count two special ones, of which one never occurs); 400 epochs of
        # 5,000 sequences in batches of 32, the first 40 to warm up. The published rate then falls in a line.
        "paper": Preset(
            settings={"vocab_size": 19, "num_train_sequences": 5000, "train_on": "all"},
            shell=ShellSettings(width=32, num_layers=2),
            budget=Budget(
                steps=62_800,
                batch_size=32,
                weight_decay=0.1,
                warmup_steps=6280,
                schedule="cosine",
                evaluate_every=1250,
                validation_batches=16,
                test_batches=16,
            ),
            learning_rates=(5e-4,),
            num_seeds=5,
            cost_lengths=(42,),
            cost_batch_size=32,
        ),
    }
