"""The models that have a name of their own: a block, a mixer, and what the paper sets otherwise than their defaults."""

from __future__ import annotations

from models.blocks.h3 import H3Block
from models.blocks.mamba import MambaBlock
from models.blocks.plain import Plain
from models.blocks.transformer import TransformerLayer
from models.composition import Composition
from models.mixers.attention import Attention
from models.mixers.hyena import HyenaConv
from models.mixers.minrnn import MinGRUScan, MinLSTMScan
from models.mixers.rnn import GRUCells, LSTMCells
from models.mixers.s4d import S4D
from models.mixers.s6 import S6


class Mamba(Composition):
    """Selective state space: the state decides, token by token, what to keep."""

    name = "mamba"
    block, mixer = MambaBlock, S6


class S4(Composition):
    """Diagonal structured state space (S4D): a linear, time-invariant memory, trained as a long convolution."""

    name = "s4"
    block, mixer = Plain, S4D


class H3(Composition):
    """Hungry hungry hippos: a state space between two gates, one of which sees the token before."""

    name = "h3"
    block, mixer = H3Block, S4D
    defaults = {"conv_width": 64}


class Hyena(Composition):
    """Long convolutions with a filter that a small network writes, between gates."""

    name = "hyena"
    block, mixer = H3Block, HyenaConv
    defaults = {"conv_width": 3, "conv_on": "qkv"}


class Transformer(Composition):
    """Causal attention and MLP: every token looks at all before it."""

    name = "transformer"
    block, mixer = TransformerLayer, Attention


class TransformerPlusPlus(Composition):
    """Rotary positions, SwiGLU, RMSNorm, no biases: the Mamba papers' baseline; here `transformer` is the same."""

    name = "transformer++"
    block, mixer = TransformerLayer, Attention


class LSTM(Composition):
    """Long short-term memory: gates decide what the cell forgets, takes in and shows."""

    name = "lstm"
    block, mixer = Plain, LSTMCells


class GRU(Composition):
    """Gated recurrent unit: an LSTM with two gates and no separate cell."""

    name = "gru"
    block, mixer = Plain, GRUCells


class MinLSTM(Composition):
    """An LSTM whose gates see the token alone: a recurrence that runs as a scan."""

    name = "minlstm"
    block, mixer = Plain, MinLSTMScan


class MinGRU(Composition):
    """A GRU whose gate sees the token alone: a recurrence that runs as a scan."""

    name = "mingru"
    block, mixer = Plain, MinGRUScan
