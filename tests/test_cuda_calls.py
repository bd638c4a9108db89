# SPDX-License-Identifier: Apache-2.0
"""What the GPU engine asks of torch.cuda, on a stand-in that knows the rules and writes it down."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from fiqa_fast.engine import cuda as module
from fiqa_fast.engine.accelerator import CaptureError
from fiqa_fast.engine.cuda import STREAMS_IN_TORCH, WARM_UP, Cuda
from fiqa_fast.engine.pipeline import Pipeline
from fiqa_fast.quality.method import Values

CPU = torch.device("cpu")
SHAPE = (2, 3, 4, 4)


class FakeStream:
    """One of the 32 of its priority, which come in turns."""

    device_index = 0

    def __init__(self, number: int, priority: int) -> None:
        self.cuda_stream = 1000 * -priority + number + 1
        self.fake: FakeCuda

    def wait_event(self, event: Any) -> None:
        assert event.recorded_on is not None, "waits for an event that was never recorded"
        self.fake.log.append(("wait", self.cuda_stream, event.recorded_on))

    def synchronize(self) -> None:
        self.fake.log.append(("synchronize", self.cuda_stream))


class FakeCuda:
    """torch.cuda, as far as the engine uses it; work is done at once."""

    def __init__(self) -> None:
        self.log: list[tuple[Any, ...]] = []
        self.made: dict[int, int] = {}
        self.streams: dict[tuple[int, int], FakeStream] = {}
        self.default = FakeStream(-1, 0)
        self.default.fake = self
        self.current = threading.local()
        self.capturing: tuple[int, int] | None = None  # stream, thread
        self.alive: dict[int, list[Any]] = {}  # graphs by the stream of their capture
        outer = self

        class Event:
            def __init__(self, blocking: bool = False) -> None:
                assert blocking
                self.recorded_on: int | None = None

            def record(self, stream: FakeStream) -> None:
                self.recorded_on = stream.cuda_stream
                outer.log.append(("record", stream.cuda_stream))

            def synchronize(self) -> None:
                assert self.recorded_on is not None
                outer.log.append(("host waits", self.recorded_on))

        class CUDAGraph:
            """Replays what it was captured as, as long as the work space is there."""

            captured_on: int | None = None
            intact = True

            def replay(self) -> None:
                assert self.captured_on is not None
                assert self.intact, "its work space went with another graph"
                outer.log.append(("replay", outer.current_stream(None).cuda_stream))

            def reset(self) -> None:
                if self.captured_on is not None:
                    outer.log.append(("reset", self.captured_on))
                    for other in outer.alive.pop(self.captured_on, []):
                        other.intact = False

        class Stream:
            def __new__(cls, device: torch.device, priority: int = 0) -> FakeStream:  # type: ignore[misc]
                number = outer.made.get(priority, 0)
                outer.made[priority] = (number + 1) % STREAMS_IN_TORCH
                key = (number, priority)
                if key not in outer.streams:
                    outer.streams[key] = FakeStream(*key)
                    outer.streams[key].fake = outer
                return outer.streams[key]

        self.Event, self.CUDAGraph, self.Stream = Event, CUDAGraph, Stream

    def current_stream(self, device: Any) -> FakeStream:
        return getattr(self.current, "stream", self.default)

    @contextlib.contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        before = self.current_stream(None)
        self.current.stream = stream
        try:
            yield
        finally:
            self.current.stream = before

    @contextlib.contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        yield

    def synchronize(self, device: Any = None) -> None:
        assert self.capturing is None, "the device is waited for while it captures"
        self.log.append(("synchronize device",))

    def graph(self, graph: Any, stream: FakeStream, capture_error_mode: str) -> Any:
        assert capture_error_mode == "thread_local"
        return FakeCapture(self, graph, stream)

    def forbidden(self) -> None:
        """What synchronises the host calls this."""
        if self.capturing == (self.current_stream(None).cuda_stream, threading.get_ident()):
            raise RuntimeError("operation not permitted when stream is capturing\nmore of it")


class FakeCapture:
    """As torch's: where the end of the capture fails, its stream is not left."""

    def __init__(self, fake: FakeCuda, graph: Any, stream: FakeStream) -> None:
        self.fake, self.graph, self.stream = fake, graph, stream

    def __enter__(self) -> None:
        self.fake.synchronize()
        self.entered = self.fake.stream(self.stream)
        self.entered.__enter__()
        self.fake.capturing = (self.stream.cuda_stream, threading.get_ident())
        self.fake.log.append(("capture", self.stream.cuda_stream))

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self.fake.capturing = None
        self.graph.captured_on = self.stream.cuda_stream
        if error is not None:
            raise RuntimeError("operation failed due to a previous error during capture")
        self.fake.alive.setdefault(self.stream.cuda_stream, []).append(self.graph)
        self.entered.__exit__(None, None, None)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    monkeypatch.setattr(module, "cuda", fake)
    monkeypatch.setattr(module, "_taken", set())
    # There is no page-locked memory without a device.
    plain = torch.empty
    monkeypatch.setattr(Cuda, "page_locked", lambda _, shape, dtype: plain(shape, dtype=dtype))
    return fake


def double(value: Tensor) -> Callable[[], Values]:
    return lambda: {"double": value * 2}


def test_a_capture_is_warmed_up_elsewhere_and_alone(fake: FakeCuda) -> None:
    on: list[int] = []

    def compute() -> Values:
        on.append(fake.current_stream(None).cuda_stream)
        assert module._capturing.locked()
        return {"one": torch.ones(1)}

    replay, results = Cuda(CPU).capture(compute)
    assert set(results) == {"one"}
    warm, captured = set(on[:WARM_UP]), on[WARM_UP:]
    assert len(warm) == len(captured) == 1
    assert warm.isdisjoint(captured)
    names = [entry[0] for entry in fake.log]
    # Weights come from the default stream; the warm-up's memory is free before the capture.
    assert names == ["synchronize device"] * 3 + ["capture"]
    assert fake.current_stream(None) is fake.default
    assert not module._capturing.locked()
    with fake.stream(fake.streams[0, 0]):
        replay()
    assert fake.log[-1] == ("replay", fake.streams[0, 0].cuda_stream)


def test_a_capture_that_fails_says_why_and_leaves_nothing(fake: FakeCuda) -> None:
    def compute() -> Values:
        fake.forbidden()
        return {}

    device = Cuda(CPU)
    reason = (
        "no CUDA graph can be captured of it: RuntimeError: operation not permitted when stream "
        "is capturing"
    )
    with pytest.raises(CaptureError) as caught:
        device.capture(compute)
    assert str(caught.value) == reason
    assert fake.current_stream(None) is fake.default
    assert not module._capturing.locked()
    del caught
    gc.collect()
    assert not module._taken
    device.capture(double(torch.ones(1)))


def test_a_warm_up_that_fails_is_an_error_of_its_own(fake: FakeCuda) -> None:
    """The eager engine would fail as well."""

    def compute() -> Values:
        raise MemoryError("full")

    with pytest.raises(MemoryError, match="full"):
        Cuda(CPU).capture(compute)
    assert not module._capturing.locked()


def test_graphs_share_no_stream(fake: FakeCuda) -> None:
    """Freeing one takes the work space of all that were captured on its stream."""
    device = Cuda(CPU)
    graphs = [device.capture(double(torch.ones(1)))[0] for _ in range(5)]
    assert len(fake.alive) == 5
    assert all(len(alive) == 1 for alive in fake.alive.values())
    # Another's streams lie in between, and the turns begin anew.
    for _ in range(STREAMS_IN_TORCH - 2):
        fake.Stream(CPU, -1)
    graphs.append(device.capture(double(torch.ones(1)))[0])
    del graphs[0]
    for replay in graphs:
        replay()
    for _ in range(STREAMS_IN_TORCH - len(graphs)):
        graphs.append(device.capture(double(torch.ones(1)))[0])
    assert len(module._taken) == STREAMS_IN_TORCH
    with pytest.raises(CaptureError, match="there are 32 CUDA graphs on cpu already"):
        device.capture(double(torch.ones(1)))
    graphs.pop()
    device.capture(double(torch.ones(1)))[0]()


def test_a_capture_is_on_no_stream_that_others_use(fake: FakeCuda) -> None:
    device = Cuda(CPU)
    streams = {device.stream().stream.cuda_stream for _ in range(40)}
    replay, _ = device.capture(double(torch.ones(1)))
    replay()
    assert len(fake.alive) == 1
    assert streams.isdisjoint(fake.alive)


def test_memory_and_work_are_a_streams_own(fake: FakeCuda) -> None:
    device = Cuda(CPU)
    stream = device.stream()
    on: list[Any] = []
    empty = torch.empty

    def watched(*args: Any, **options: Any) -> Tensor:
        on.append(fake.current_stream(None))
        return empty(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", watched)
        memory = stream.empty((2, 3), torch.float32)
    assert memory.shape == (2, 3)
    stream.run(lambda: on.append(fake.current_stream(None)))
    assert on == [stream.stream] * 2
    assert fake.current_stream(None) is fake.default


def whole(group: Tensor) -> Values:
    return {"sum": group.flatten(1).sum(1)}


def test_a_group_in_cudas_calls(fake: FakeCuda) -> None:
    device = Cuda(CPU)
    # The stand-in holds CPU tensors, and so the images would be the device's.
    pipeline = make(device)
    copies, computation = (stream.stream.cuda_stream for stream in device.streams)
    for held in (False, True):
        pipeline.accelerator.holds = lambda images, held=held: held  # type: ignore[method-assign]
        fake.log.clear()
        pipeline.run(torch.zeros(2, 3, 4, 4))
        caller = [("record", 0), ("wait", copies, 0)] if held else []
        assert fake.log == [
            *caller,  # images of the device come behind what makes them
            ("record", copies),
            ("wait", computation, copies),
            ("replay", computation),
            ("record", computation),
            ("host waits", computation),
        ]


def make(device: Cuda) -> Pipeline:
    def fill(group: Tensor, images: Tensor) -> None:
        group[: len(images)] = images

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pipeline, "_check", lambda *_: None)  # its replays do nothing here
        return Pipeline(device, SHAPE, fill, whole)


def test_an_error_waits_for_both_streams(fake: FakeCuda) -> None:
    device = Cuda(CPU)
    pipeline = make(device)

    def fails(*_: Any) -> None:
        raise KeyError

    pipeline.fill = fails
    fake.log.clear()
    with pytest.raises(KeyError):
        pipeline.run(torch.zeros(2, 3, 4, 4))
    assert fake.log[-2:] == [("synchronize", s.stream.cuda_stream) for s in device.streams]


def test_what_is_used_of_torch_exists() -> None:
    """So that the stand-in does not stand for something that is not there."""
    real = torch.cuda
    for name in ("Stream", "Event", "CUDAGraph", "graph", "stream", "device", "synchronize"):
        assert hasattr(real, name)
    assert all(hasattr(real.Stream, n) for n in ("wait_event", "synchronize", "cuda_stream"))
    assert hasattr(real.Stream, "device_index")
    assert all(hasattr(real.Event, n) for n in ("record", "synchronize"))
    assert all(hasattr(real.CUDAGraph, n) for n in ("replay", "reset"))
