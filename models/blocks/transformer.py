"""The Transformer's layer: a mixer, then an MLP, each a residual branch of its own.

    x = x + W mixer(norm(x));   x = x + mlp(norm(x))

Vaswani et al. 2017 (arXiv:1706.03762), as built today: pre-norm, a SwiGLU MLP (Shazeer 2020, arXiv:2002.05202), no
biases. It is the plain block with the MLP that every block can have.
"""

from __future__ import annotations

from models.blocks.plain import Plain
from suite.spec import NonNegativeFloat


class TransformerLayer(Plain):
    """A Transformer's layer: the mixer, then an MLP."""

    name = "transformer"

    class Options(Plain.Options):
        """Settings of the Transformer's layer."""

        mlp_ratio: NonNegativeFloat = 8 / 3
