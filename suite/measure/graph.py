"""Work on a GPU as a CUDA graph: its kernels in one launch, without the host between them."""

from __future__ import annotations

from collections.abc import Callable

import torch


def rehearse(run: Callable[[], object], device: torch.device) -> None:
    """Calls `run` where it could be captured: beside the default stream, which a graph cannot hold.

    What is paid for once in a process, as libraries and compiled kernels are, cannot be captured either.
    """
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream(device).wait_stream(stream)


def capture(run: Callable[[], object], device: torch.device) -> Callable[[], None]:
    """`run` as a CUDA graph, not yet run: what is returned replays its kernels on the same memory.

    Raises:
        RuntimeError: it does something that a graph cannot hold. The device is usable all the same.
    """
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            run()
    except Exception:
        _forget_capture(device)
        raise
    return graph.replay


def _forget_capture(device: torch.device) -> None:
    """A capture that breaks off leaves torch's generator in the belief that it goes on: it would refuse to draw."""
    index = torch.cuda.current_device() if device.index is None else device.index
    generator = torch.cuda.default_generators[index]
    fresh = torch.Generator(device)
    fresh.set_state(generator.get_state())
    generator.graphsafe_set_state(fresh)
