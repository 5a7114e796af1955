"""How far an implementation may be from the float64 reference: for each dtype, once, relative to the largest entry."""

from __future__ import annotations

import torch

TOLERANCES = {
    torch.float64: 1e-10,
    torch.float32: 1e-5,
    torch.float16: 5e-3,
    torch.bfloat16: 4e-2,
}
