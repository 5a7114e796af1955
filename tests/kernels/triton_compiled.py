"""Compiles the Triton selective scan and the rotary kernel for GPUs that need not be there; fails if one spills.

`test_selective_scan_triton.py` runs this module in a process of its own, because another test's interpreter would
stand in the compiler's way.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from typing import Any

import triton
from triton import JITFunction, knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels.rotary import triton_kernels as rotary_kernels
from kernels.selective_scan import triton_kernels, triton_scan

SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
"""Compute capability -> what a block may have."""

_PARKED_BYTES = 8
"""Stack for an address that is used once; Triton 3.6 parks one in the backward pass, 3.9 none."""

_CAPPED_BYTES = 96
"""Stack of a kernel whose registers are capped on purpose, so that more programs run side by side."""

_ACTIVATIONS = ("u", "delta", "B", "C", "z", "dy", "y_BLD", "du_BLD", "ddelta_BLD", "dz_BLD")
_OPTIONS = ("num_warps", "maxnreg", "enable_fp_fusion")
_PRESENT = {f"HAS_{name}": True for name in ("D", "Z", "BIAS", "STARTS", "BEGIN")}


def variants(state: int) -> list[tuple[JITFunction[Any], triton_scan.Layout | None, dict[str, Any]]]:
    """Kernel, layout, and what else is a constant of its compilation, at their fullest."""
    forward, backward = triton_scan.forward_layout(2048, state), triton_scan.backward_layout(2048, state)
    chunk = {"CHUNK": triton_scan._CHUNK}
    last_pass = {"WRITES_Y": True, "SAVE_EVERY": triton_scan._CHUNK, "decay_BMND": None}
    first_pass = {"WRITES_Y": False, "SAVE_EVERY": 0, "HAS_BEGIN": False, "begin_BMND": None}
    carry = {"HAS_BEGIN": True, "BACKWARD": True, "AHEAD": 8, "BLOCK": 128}
    return [
        (triton_kernels.forward, forward, last_pass),
        (triton_kernels.forward, forward, first_pass),
        (triton_kernels.carry, None, carry),
        (triton_kernels.adjoint_ends, forward, chunk),
        (triton_kernels.backward, backward, chunk),
    ]


def resources(
    kernel: JITFunction[Any],
    layout: triton_scan.Layout | None,
    constants: dict[str, Any],
    state: int,
    activations: str,
    capability: int,
) -> tuple[int, int]:
    """Bytes of stack that a thread needs, which spilled registers go to, and of shared memory for a block."""
    options: dict[str, Any] = {"num_warps": 4, "enable_fp_fusion": True}
    if layout is not None:
        constants = _PRESENT | constants | triton_scan._constants(layout, state, True)
        options = {name: constants.pop(name) for name in _OPTIONS if name in constants}
    # Last axes are contiguous, as they are nearly always; the compiler then knows it.
    constants |= {name: 1 for name in kernel.arg_names if name.endswith("_last")}
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}

    def type_of(name: str) -> str:
        if name in constants:
            return "constexpr"
        if name in _ACTIVATIONS:
            return f"*{activations}"
        if name == "starts":
            return "*i1"
        return "*fp32" if re.search(r"_([A-Z]+|parts)$", name) else "i32"

    return compiled_resources(
        kernel, {name: type_of(name) for name in kernel.arg_names}, constants, options, capability
    )


def compiled_resources(
    kernel: JITFunction[Any],
    signature: dict[str, str],
    constants: dict[str, Any],
    options: dict[str, Any],
    capability: int,
) -> tuple[int, int]:
    """The same of a kernel with these types of arguments."""
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    compiled = triton.compile(ASTSource(kernel, signature, places, {}), GPUTarget("cuda", capability, 32), options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (stack,) = re.findall(r"STACK:(\d+)", usage)
    return int(stack), compiled.metadata.shared


def rotary_resources(numbers: str, capability: int) -> tuple[int, int]:
    """Those of the turn of 32 heads of 128."""
    constants = {"HEADS": 32, "FREQUENCIES": 64, "CONJUGATE": True, "ROWS": 1, "COLUMNS": 1024}
    kernel = rotary_kernels.rotate
    types = dict.fromkeys(kernel.arg_names, "i32") | {"x": f"*{numbers}", "y": f"*{numbers}", "turns": "*fp32"}
    return compiled_resources(
        kernel, types | dict.fromkeys(constants, "constexpr"), constants, {"num_warps": 4}, capability
    )


def main() -> None:
    for capability in SHARED_BYTES:
        for numbers in ("bf16", "fp32"):
            stack, _ = rotary_resources(numbers, capability)
            assert stack == 0, f"the turn of {numbers} for sm_{capability} spills: {stack} bytes of stack"
    cases = [(16, "bf16", capability) for capability in SHARED_BYTES] + [(16, "fp32", 90)]
    for state, activations, capability in cases:
        for kernel, layout, constants in variants(state):
            stack, shared = resources(kernel, layout, constants, state, activations, capability)
            case = f"{kernel.__name__} of {activations} for sm_{capability}"
            is_capped = layout is not None and layout.max_registers is not None
            most = _CAPPED_BYTES if is_capped else _PARKED_BYTES
            assert stack <= most, f"{case} spills: {stack} bytes of stack"
            assert shared <= SHARED_BYTES[capability], f"{case} wants {shared} bytes of shared memory"


if __name__ == "__main__":
    main()
