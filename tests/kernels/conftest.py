"""Fresh random inputs in every run, the same again under the seed that pytest-randomly prints."""

from __future__ import annotations

import random

import pytest
import torch


@pytest.fixture(autouse=True)
def _torch_follows_the_seed_of_the_run() -> None:
    torch.manual_seed(random.getrandbits(32))
