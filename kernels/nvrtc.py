"""Compiles CUDA C++ on the user's machine, with NVRTC and no compiler of their own, and keeps the machine code on disk.

A kernel is source text and options; its machine code (cubin) is cached under the user's cache directory by a hash of
both, the GPU architecture and the compiler's version. Kernels are launched on torch's current stream.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

C_NAMES = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
"""What `csrc/numbers.cuh` calls the dtypes that kernels read and write."""

_KERNELS = Path(__file__).parent
_OLDEST_CAPABILITY = (8, 0)
_MAGIC = b"seqsuite cubin 1\n"
_DIGEST_BYTES = hashlib.sha256().digest_size


class CompilationError(RuntimeError):
    """NVRTC refused the source; the message carries its log."""


class CudaError(RuntimeError):
    """The CUDA driver refused a call."""


@functools.cache
def unavailable(device: torch.device) -> str | None:
    """Why no kernel can be compiled for `device`, or None."""
    if device.type != "cuda":
        return "it runs on a CUDA GPU only"
    if torch.version.cuda is None:
        return "this torch was built without CUDA"
    # find_spec raises where the parent package is missing.
    if importlib.util.find_spec("cuda") is None or importlib.util.find_spec("cuda.bindings") is None:
        return "the package cuda-bindings is not installed"
    try:
        _compiler_version()
    except (ImportError, RuntimeError) as error:
        return f"NVRTC cannot be loaded: {error}"
    if torch.cuda.get_device_capability(device) < _OLDEST_CAPABILITY:
        return "the GPU is older than compute capability 8.0"
    return None


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """How many there are on a GPU."""
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count


def in_kernel_dtype(tensor: Tensor) -> Tensor:
    """The tensor itself if kernels can read its dtype, else in float32."""
    return tensor if tensor.dtype in C_NAMES else tensor.float()


@dataclass(frozen=True)
class Kernel:
    """A function on one device, ready to launch."""

    handle: int
    device: torch.device

    def launch(self, num_blocks: int, num_threads: int, arguments: ctypes.Structure, shared_bytes: int = 0) -> None:
        """Queues the kernel, whose one parameter is the struct `arguments`, on the current stream of its device."""
        if torch.cuda.current_device() != self.device.index:
            with torch.cuda.device(self.device):
                self.launch(num_blocks, num_threads, arguments, shared_bytes)
            return
        _make_context_current(self.device)
        # What `torch.cuda.current_stream` looks at, without the object around it, which costs as much as the launch.
        stream = torch._C._cuda_getCurrentRawStream(self.device.index)
        parameters = _ONE_POINTER(ctypes.addressof(arguments))
        # The driver copies the parameters before it returns.
        answer = _driver().cuLaunchKernel(
            *(self.handle, num_blocks, 1, 1, num_threads, 1, 1, shared_bytes, stream, ctypes.addressof(parameters), 0)
        )
        if answer[0] != 0:
            _check(answer)


_ONE_POINTER = ctypes.c_void_p * 1


def source(*files: str) -> str:
    """The text of CUDA files, named from `kernels/` on, after the numbers that all of them use."""
    return "".join((_KERNELS / file).read_text() for file in ("csrc/numbers.cuh", *files))


def load(source: str, options: Sequence[str], names: Sequence[str], device: torch.device) -> dict[str, Kernel]:
    """The `extern "C"` functions `names` of `source`, compiled for `device` or taken from the cache.

    Each may use as much dynamic shared memory as a block of the device can have.

    Raises:
        CompilationError: the source does not compile.
        CudaError: the driver cannot load or find what was compiled.
    """
    driver = _driver()
    device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
    major, minor = torch.cuda.get_device_capability(device)
    code = cached_code(source, [f"--gpu-architecture=sm_{major}{minor}", "--std=c++17", *options])
    _make_context_current(device)
    (library,) = _check(driver.cuLibraryLoadData(code, None, None, 0, None, None, 0))
    kernels = {}
    for name in names:
        (kernel,) = _check(driver.cuLibraryGetKernel(library, name.encode()))
        _allow_shared_memory(kernel, device)
        kernels[name] = Kernel(int(kernel), device)
    return kernels


def cached_code(source: str, options: Sequence[str]) -> bytes:
    """The machine code of `source`, from the cache or compiled and put there. A damaged entry is compiled anew."""
    key = hashlib.sha256("\0".join([_compiler_version(), *options, source]).encode()).hexdigest()
    path = cache_directory() / f"{key}.cubin"
    code = _read(path)
    if code is None:
        code = compile_source(source, options)
        _write(path, code)
    return code


def compile_source(source: str, options: Sequence[str]) -> bytes:
    """The machine code of `source`.

    Raises:
        CompilationError: the source does not compile.
    """
    from cuda.bindings import nvrtc

    (program,) = _check(nvrtc.nvrtcCreateProgram(source.encode(), b"kernel.cu", 0, None, None))
    try:
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            (size,) = _check(nvrtc.nvrtcGetProgramLogSize(program))
            log = bytes(size)
            _check(nvrtc.nvrtcGetProgramLog(program, log))
            raise CompilationError(
                f"NVRTC {_compiler_version()} could not compile with {' '.join(options)}:\n"
                + log.decode(errors="replace").rstrip("\0\n ")
            )
        (size,) = _check(nvrtc.nvrtcGetCUBINSize(program))
        code = bytes(size)
        _check(nvrtc.nvrtcGetCUBIN(program, code))
        return code
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def cache_directory() -> Path:
    """Where machine code is kept: `seqsuite/kernels` under XDG_CACHE_HOME or ~/.cache."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "seqsuite" / "kernels"


def _read(path: Path) -> bytes | None:
    try:
        entry = path.read_bytes()
    except OSError:
        return None
    header = len(_MAGIC) + _DIGEST_BYTES
    digest, code = entry[len(_MAGIC) : header], entry[header:]
    is_sound = entry.startswith(_MAGIC) and hashlib.sha256(code).digest() == digest
    return code if is_sound else None


def _write(path: Path, code: bytes) -> None:
    # Another process sees the whole entry or none: it appears under its name by a rename.
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
    except OSError:
        # A home that cannot be written to costs a compilation in every process, nothing else.
        return
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(_MAGIC + hashlib.sha256(code).digest() + code)
        Path(temporary).replace(path)
    except OSError:
        Path(temporary).unlink(missing_ok=True)


@functools.cache
def _compiler_version() -> str:
    from cuda.bindings import nvrtc

    major, minor = _check(nvrtc.nvrtcVersion())
    return f"{major}.{minor}"


@functools.cache
def _driver() -> Any:
    from cuda.bindings import driver

    return driver


def _make_context_current(device: torch.device) -> None:
    # Autograd's threads may have called nothing yet that gives them torch's context.
    answer = _driver().cuCtxSetCurrent(_primary_context(device.index))
    if answer[0] != 0:
        _check(answer)


@functools.cache
def _primary_context(index: int) -> Any:
    driver = _driver()
    (number,) = _check(driver.cuDeviceGet(index))
    (context,) = _check(driver.cuDevicePrimaryCtxRetain(number))
    return context


def _allow_shared_memory(kernel: Any, device: torch.device) -> None:
    driver = _driver()
    (number,) = _check(driver.cuDeviceGet(device.index))
    (largest,) = _check(
        driver.cuDeviceGetAttribute(
            driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, number
        )
    )
    (static,) = _check(
        driver.cuKernelGetAttribute(driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, kernel, number)
    )
    dynamic = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    _check(driver.cuKernelSetAttribute(dynamic, largest - static, kernel, number))


def _check(answer: tuple[Any, ...]) -> tuple[Any, ...]:
    status, *results = answer
    if int(status) != 0:
        raise CudaError(f"the CUDA call failed with {status.name} ({int(status)})")
    return tuple(results)
