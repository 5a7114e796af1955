"""Long-range language modelling: predict the next byte of real documents, in bits per byte.

The suite ships plays by Shakespeare, the State of the Union addresses and Moby Dick (see tasks/corpus/README.md); other
texts come from local files or a hub. Splits are by document, never by position, so no test window continues a text that
was trained on.
"""

from __future__ import annotations

from typing import Self

import numpy as np
from pydantic import model_validator

from suite import IGNORED, Batch, Budget, Preset, Settings, ShellSettings, Split, Task
from suite.spec import PositiveInt
from tasks.corpus.documents import SPLITS, Corpus
from tasks.corpus.external import load_external
from tasks.corpus.shipped import PartName, load_shipped, read_manifest

NUM_BYTES = 256


class LongRangeLM(Task):
    """Predict every next byte of plays, speeches, a novel, or a corpus of one's own.

    A sequence is a window at a random place of one document and nothing else: no token marks a document's start. The
    first byte is given, every later one is predicted. Places after the end of a short document are not scored.
    """

    name = "long_range_lm"
    metric = "bits_per_byte"

    class Options(Settings):
        corpus: str = "shipped"
        """`shipped`; or the path of a file or a folder of .txt (each a document), .jsonl, .json or .parquet (each row a
        document); or the name of a dataset on the hub. All but the first need the package `datasets`."""
        parts: tuple[PartName, ...] | None = None
        """Parts of the shipped corpus; all if empty or not given."""
        configuration: str | None = None
        """Of a dataset on the hub, where it has several."""
        text_column: str = "text"
        """The column with the text, in a corpus of one's own."""
        max_documents: PositiveInt | None = None
        """Reads no more documents than this from a corpus of one's own (from each split that it brings)."""
        length: PositiveInt = 128
        """Bytes of a training sequence."""
        test_lengths: tuple[PositiveInt, ...] = ()
        """Lengths at which the trained model is tested; `length` itself if empty."""
        skip_short_documents: bool = False
        """Draw only from documents that fill the whole window, instead of padding short ones."""

        @model_validator(mode="after")
        def _settings_belong_to_the_corpus(self) -> Self:
            if self.corpus != "shipped":
                if self.parts:
                    raise ValueError(f"parts belong to the shipped corpus, not to '{self.corpus}'; set parts = []")
                return self
            for key in ("configuration", "text_column", "max_documents"):
                if getattr(self, key) != type(self).model_fields[key].default:
                    raise ValueError(f"{key} belongs to a corpus of one's own, not to the shipped one")
            for split in SPLITS:
                if split not in read_manifest().splits_of(self.chosen_parts):
                    others = [part for part in read_manifest().parts if part not in self.chosen_parts]
                    raise ValueError(
                        f"parts {list(self.chosen_parts)} have no document in the split '{split}'; add one of {others}"
                    )
            return self

        @property
        def chosen_parts(self) -> tuple[PartName, ...]:
            """The parts of the shipped corpus that are read, each once and in the manifest's order."""
            every = read_manifest().parts
            return tuple(part for part in every if not self.parts or part in self.parts)

    presets = {
        "quick": Preset(
            settings={"parts": ["shakespeare"], "test_lengths": [128, 512]},
            budget=Budget(steps=250, batch_size=8, warmup_steps=20, schedule="cosine", evaluate_every=50),
            learning_rates=(5e-3,),
            cost_lengths=(128, 512, 1024),
            cost_batch_size=2,
        ),
        "standard": Preset(
            settings={"length": 1024, "test_lengths": [1024, 4096]},
            shell=ShellSettings(width=256, num_layers=4),
            budget=Budget(
                steps=10_000,
                batch_size=16,
                weight_decay=0.1,
                warmup_steps=500,
                schedule="cosine",
                evaluate_every=500,
                validation_batches=8,
                test_batches=16,
            ),
            learning_rates=(3e-4, 1e-3, 3e-3),
            max_extensions=2,
            num_seeds=3,
            cost_lengths=(1024, 4096, 16_384),
        ),
        "paper": Preset(
            settings={"length": 16_384, "test_lengths": [16_384, 65_536], "skip_short_documents": True},
            shell=ShellSettings(width=512, num_layers=8),
            budget=Budget(
                steps=20_000,
                batch_size=8,
                weight_decay=0.1,
                warmup_steps=1000,
                schedule="cosine",
                evaluate_every=1000,
                validation_batches=8,
                test_batches=16,
            ),
            learning_rates=(3e-4, 1e-3),
            cost_lengths=(16_384, 32_768, 65_536),
            cost_batch_size=1,
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

    def documents(self) -> Corpus:
        """The documents of every split. Raises SuiteError if they cannot be had."""
        options = self.options
        if options.corpus == "shipped":
            return load_shipped(options.chosen_parts)
        return load_external(
            options.corpus,
            configuration=options.configuration,
            text_column=options.text_column,
            max_documents=options.max_documents,
        )

    def sample(self, rng: np.random.Generator, *, split: Split, batch_size: int, length: int) -> Batch:
        documents = self.documents()[split]
        skip_short = self.options.skip_short_documents
        windows, is_text = documents.windows(rng, batch_size, length + 1, skip_short=skip_short)
        return Batch(
            inputs=np.ascontiguousarray(windows[:, :-1]),
            targets=np.where(is_text[:, 1:], windows[:, 1:], IGNORED),
        )

    def baseline(self) -> float:
        """Bits per byte of the test documents under the byte frequencies of the training documents, each plus one."""
        train, test = (np.bincount(self.documents()[split].text, minlength=NUM_BYTES) for split in ("train", "test"))
        bits = -np.log2((train + 1) / (train + 1).sum())
        return float(test @ bits / test.sum())
