"""Needles in a haystack: facts stand somewhere in a long text, and one is asked for at the end.

The text is the one that ships with the suite (see tasks/corpus/README.md), in stretches of its test documents for the
test. Facts are of the form "The number of Boston is 71432."; several of them make the model look at the name (Hsieh et
al. 2024, arXiv:2404.06654). All is bytes. The answer's digits are given one after the other, as when they are generated
rightly, and the scores say how far back into the text the fact stood.
"""

# B batch, K needles

from __future__ import annotations

from typing import Annotated, ClassVar, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from suite import IGNORED, Batch, Budget, Preset, Settings, ShellSettings, Split, Task
from suite.errors import UsageError
from suite.plugin import IntArray
from suite.spec import PositiveInt
from tasks.corpus.shipped import load_shipped, read_manifest

NUM_BYTES = 256

# All of one length, so that every needle is.
NAMES = (
    *("Ankara", "Athens", "Berlin", "Boston", "Dublin", "Havana", "Kigali", "Lisbon"),
    *("London", "Lusaka", "Madrid", "Manila", "Moscow", "Ottawa", "Prague", "Vienna"),
)

NUM_DEPTHS = 10


class Needle(Task):
    """Say the number that a text mentioned somewhere, asked for by name.

    Tokens are bytes. Scored are the digits of the answer, which are the last tokens of the sequence.
    """

    name = "needle"

    class Options(Settings):
        fact: ClassVar[str] = " The number of {name} is {digits}. "
        question: ClassVar[str] = " What is the number of {name}? It is "

        length: PositiveInt = 512
        """Bytes of a sequence: text, facts, the question, and all digits but the last."""
        num_needles: Annotated[int, Field(ge=1, le=len(NAMES))] = 4
        """Facts in the text, K, each of another name."""
        num_digits: Annotated[int, Field(ge=1, le=18)] = 5
        """Digits of a number."""
        test_lengths: tuple[PositiveInt, ...] = ()
        """Lengths at which the trained model is tested; `length` itself if empty."""

        @model_validator(mode="after")
        def _needles_have_room(self) -> Self:
            for length in (self.length, *self.test_lengths):
                if length < self.num_inserted - 1:
                    raise ValueError(
                        f"length {length} has no room for {self.num_needles} needles of {self.num_digits} digits, the "
                        f"question and the answer, which need {self.num_inserted - 1} tokens"
                    )
            return self

        @property
        def num_inserted(self) -> int:
            """Bytes of a sequence that are not of the text, the last digit included."""
            fact, question = (self.written(template, NAMES[0], 0) for template in (self.fact, self.question))
            return self.num_needles * len(fact) + len(question) + self.num_digits

        def written(self, template: str, name: str, number: int) -> bytes:
            """A fact or the question."""
            return template.format(name=name, digits=f"{number:0{self.num_digits}d}").encode()

    presets = {
        "quick": Preset(
            settings={"length": 128, "num_needles": 1, "num_digits": 2, "test_lengths": [128, 256]},
            budget=Budget(steps=400, batch_size=16, warmup_steps=20, schedule="cosine", evaluate_every=100),
            learning_rates=(3e-3,),
            cost_lengths=(128,),
        ),
        "standard": Preset(
            settings={"length": 1024, "test_lengths": [1024, 2048, 4096]},
            shell=ShellSettings(width=128, num_layers=4),
            budget=Budget(steps=20_000, batch_size=16, warmup_steps=500, evaluate_every=500, stop_at=0.999),
            learning_rates=(3e-4, 1e-3, 3e-3),
            max_extensions=2,
            num_seeds=5,
            cost_lengths=(1024, 4096),
        ),
    }

    @property
    def vocab_size(self) -> int:
        return NUM_BYTES

    @property
    def length(self) -> int:
        return int(self.options.length)

    @property
    def test_lengths(self) -> tuple[int, ...]:
        return self.options.test_lengths or (self.length,)

    @property
    def slices(self) -> tuple[str, ...]:
        """By the place of the fact in the text, from its beginning."""
        return tuple(f"depth {10 * tenth}–{10 * tenth + 10} %" for tenth in range(NUM_DEPTHS))

    def sample(self, rng: np.random.Generator, *, split: Split, batch_size: int, length: int) -> Batch:
        options = self.options
        text = load_shipped(tuple(read_manifest().parts))[split].text
        num_text = length + 1 - options.num_inserted
        if not 0 <= num_text <= len(text):
            raise UsageError(
                f"{self.name}: the needles, the question and the answer need {options.num_inserted - 1} tokens, and "
                f"there are {len(text):,} bytes of text to {split}; a length of {length:,} does not fit"
            )
        rows = np.arange(batch_size)
        starts_B = rng.integers(0, len(text) - num_text + 1, batch_size)
        offsets_BK = np.sort(rng.integers(0, num_text + 1, (batch_size, options.num_needles)), axis=1)
        names_BK = rng.random((batch_size, len(NAMES))).argsort(axis=1)[:, : options.num_needles]
        numbers_BK = rng.integers(0, 10**options.num_digits, offsets_BK.shape)
        asked_B = rng.integers(0, options.num_needles, batch_size)

        facts = self._written(options.fact, names_BK, numbers_BK)
        starts_BK = offsets_BK + np.arange(options.num_needles) * facts.shape[-1]
        places = (starts_BK[..., np.newaxis] + np.arange(facts.shape[-1])).reshape(batch_size, -1)
        story = np.empty((batch_size, num_text + places.shape[1]), dtype=np.int64)
        is_text = np.ones(story.shape, dtype=bool)
        np.put_along_axis(is_text, places, False, axis=1)
        story[is_text] = text[starts_B[:, np.newaxis] + np.arange(num_text)].ravel()
        np.put_along_axis(story, places, facts.reshape(batch_size, -1), axis=1)
        name_B, number_B = names_BK[rows, asked_B], numbers_BK[rows, asked_B]
        question, answer = (self._written(template, name_B, number_B) for template in (options.question, "{digits}"))
        tokens = np.hstack([story, question, answer])
        targets = np.full((batch_size, length), IGNORED)
        targets[:, -options.num_digits :] = answer
        depths = offsets_BK[rows, asked_B, np.newaxis] * NUM_DEPTHS // (num_text + 1)
        return Batch(np.ascontiguousarray(tokens[:, :-1]), targets, depths)

    def _written(self, template: str, names: IntArray, numbers: IntArray) -> npt.NDArray[np.uint8]:
        """The template in bytes for each name and number; (*names, bytes)."""
        written = [
            self.options.written(template, NAMES[name], number)
            for name, number in zip(names.flat, numbers.flat, strict=True)
        ]
        return np.frombuffer(b"".join(written), dtype=np.uint8).reshape(*names.shape, -1)

    def oracle(self, batch: Batch) -> IntArray:
        options = self.options
        answers = np.zeros_like(batch.inputs)
        for row, tokens in enumerate(batch.inputs.astype(np.uint8)):
            text = tokens.tobytes()
            name = next((name for name in NAMES if options.written(options.question, name, 0) in text), "")
            before_digits = options.fact.partition("{digits}")[0].format(name=name).encode()
            start = text.index(before_digits) + len(before_digits)
            answers[row, -options.num_digits :] = tokens[start : start + options.num_digits]
        return answers

    def baseline(self) -> float:
        """Of guessing a digit."""
        return 0.1
