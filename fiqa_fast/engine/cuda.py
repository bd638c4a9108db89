# SPDX-License-Identifier: Apache-2.0
"""A CUDA device as an :class:`.accelerator.Accelerator`."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, cuda

from ..quality.method import Values
from .accelerator import CaptureError, Event

# Runs before a capture: libraries load kernels, choose them and take their memory on the first.
WARM_UP = 3
# torch has so many streams of a priority, and hands them out in turns.
STREAMS_IN_TORCH = 32

# One capture at a time: each begins by waiting for the whole device, which another one forbids.
_capturing = threading.Lock()
# The streams on which the graphs that are there were captured.
_taken: set[tuple[int, int]] = set()


class CudaEvent:
    def __init__(self, stream: Any) -> None:
        # Blocking: the thread that waits leaves its core to those that decode.
        self.event = cuda.Event(blocking=True)
        self.event.record(stream)

    def wait(self) -> None:
        self.event.synchronize()


class CudaStream:
    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, cuda.Stream(device)

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        # Memory that was freed on another stream may still be in use there.
        with cuda.stream(self.stream):
            return torch.empty(tuple(shape), dtype=dtype, device=self.device)

    def run(self, work: Callable[[], object]) -> None:
        with cuda.stream(self.stream):
            work()

    def wait(self, event: Event) -> None:
        assert isinstance(event, CudaEvent)
        self.stream.wait_event(event.event)

    def record(self) -> CudaEvent:
        return CudaEvent(self.stream)


class Cuda:
    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.streams: list[CudaStream] = []

    def stream(self) -> CudaStream:
        self.streams.append(CudaStream(self.device))
        return self.streams[-1]

    def here(self) -> CudaEvent:
        return CudaEvent(cuda.current_stream(self.device))

    def holds(self, tensor: Tensor) -> bool:
        return tensor.device == self.device

    def page_locked(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.empty(tuple(shape), dtype=dtype, pin_memory=True)

    def settle(self) -> None:
        for stream in self.streams:
            stream.stream.synchronize()

    def capture(self, compute: Callable[[], Values]) -> tuple[Callable[[], object], Values]:
        with _capturing, cuda.device(self.device):
            cuda.synchronize(self.device)
            with cuda.stream(cuda.Stream(self.device)):
                for _ in range(WARM_UP):
                    compute()
            cuda.synchronize(self.device)
            graph = Graph(self.device)
            return graph.replay, graph.capture(compute)


class Graph:
    """A CUDA graph, captured on a stream that no other graph of ours was captured on.

    torch keeps cuBLAS's work space per stream, and frees it with any graph that was captured there
    (pytorch/pytorch#193402); a graph has its addresses. So the stream is not one of those that
    torch.cuda.graph shares, but of a priority of its own, and nothing else has run on it: the work
    space then lies in the graph's own memory.
    """

    def __init__(self, device: torch.device) -> None:
        self.stream, key = _untaken(device)
        self.graph = cuda.CUDAGraph()
        # In this order: only a stream whose graph is gone is free. At the end of the process, both
        # go anyway.
        weakref.finalize(self, _dispose, self.graph, key).atexit = False

    def capture(self, compute: Callable[[], Values]) -> Values:
        cause: Exception | None = None
        # Entered here too, because a capture that fails leaves its stream entered.
        with cuda.stream(self.stream):
            try:
                # Other threads may go on allocating memory meanwhile.
                with cuda.graph(self.graph, stream=self.stream, capture_error_mode="thread_local"):
                    try:
                        return compute()
                    except Exception as error:
                        cause = error  # the end of the capture will only say that there was one
                        raise
            except Exception as error:
                first = cause or error
                text = " ".join(str(first).split("\n")[0].split())
                raise CaptureError(
                    f"no CUDA graph can be captured of it: {type(first).__name__}: {text}"
                ) from error

    def replay(self) -> None:
        self.graph.replay()


def _untaken(device: torch.device) -> tuple[Any, tuple[int, int]]:
    for _ in range(STREAMS_IN_TORCH):
        stream = cuda.Stream(device, priority=-1)
        key = (stream.device_index, stream.cuda_stream)
        if key not in _taken:
            _taken.add(key)
            return stream, key
    raise CaptureError(f"there are {STREAMS_IN_TORCH} CUDA graphs on {device} already")


def _dispose(graph: Any, key: tuple[int, int]) -> None:
    graph.reset()
    _taken.discard(key)
