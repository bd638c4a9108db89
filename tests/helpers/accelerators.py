# SPDX-License-Identifier: Apache-2.0
"""An accelerator that a test can make late, early or moody, to find waits that are missing.

Its streams hold what they are given, and do it by the rules of CUDA's: in order, not before the
events that they wait for, and otherwise when they please.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fiqa_fast.engine.accelerator import alone, direct
from fiqa_fast.quality.method import Values

# Nothing before somebody waits for it, everything as soon as it may be, or by a seed's dice.
ORDERS: tuple[str | int, ...] = ("late", "early", *range(6))


class Mark:
    """An event: what is before it in its stream has been done once it is reached."""

    def __init__(self, stream: Queue) -> None:
        self.stream, self.reached = stream, False

    def reach(self) -> None:
        self.reached = True

    def wait(self) -> None:
        self.stream.device.bring_about(self)


class Queue:
    """A stream."""

    def __init__(self, device: Deferred) -> None:
        self.device = device
        self.entries: deque[Callable[[], object] | Mark] = deque()

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return self.device.poisoned(shape, dtype)

    def run(self, work: Callable[[], object]) -> None:
        self._add(work)

    def wait(self, event: Mark) -> None:
        self._add(event)

    def record(self) -> Mark:
        mark = Mark(self)
        self._add(mark.reach)
        return mark

    def step(self) -> bool:
        """Do what comes first, unless it has to wait or there is nothing."""
        if not self.entries:
            return False
        first = self.entries[0]
        if isinstance(first, Mark):
            if not first.reached:
                return False
            self.entries.popleft()
            return True
        self.entries.popleft()
        alone(first)
        return True

    def _add(self, entry: Callable[[], object] | Mark) -> None:
        with self.device.lock:
            self.entries.append(entry)
            self.device.stir()


class Deferred:
    """The accelerator. ``memory`` is all that it gave out, ``resident`` the images that it holds,
    and ``caller`` what the calling thread launches by itself."""

    def __init__(self, order: str | int) -> None:
        self.order, self.lock = order, threading.RLock()
        self.dice = random.Random(order)
        self.streams: list[Queue] = []
        self.memory: list[Tensor] = []
        self.resident: list[Tensor] = []
        self.caller = self.stream()

    def stream(self) -> Queue:
        self.streams.append(Queue(self))
        return self.streams[-1]

    def here(self) -> Mark:
        return self.caller.record()

    def holds(self, tensor: Tensor) -> bool:
        storage = tensor.untyped_storage().data_ptr()
        return any(one.untyped_storage().data_ptr() == storage for one in self.resident)

    def page_locked(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return self.poisoned(shape, dtype)

    def capture(self, compute: Callable[[], Values]) -> tuple[Callable[[], object], Values]:
        self.settle()
        replay, results = direct(compute)
        self.memory += results.values()
        self.poison()
        return replay, results

    def settle(self) -> None:
        with self.lock:
            while any(stream.step() for stream in self.streams):
                pass
            assert not any(stream.entries for stream in self.streams), "it waits for ever"

    def poisoned(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        memory = torch.empty(tuple(shape), dtype=dtype)
        _poison(memory)
        self.memory.append(memory)
        return memory

    @torch.inference_mode()
    def poison(self) -> None:
        """Spoil all memory."""
        for tensor in self.memory:
            _poison(tensor)

    def stir(self) -> None:
        """Do what is done of its own accord."""
        if self.order == "early":
            while any(stream.step() for stream in self.streams):
                pass
        elif self.order != "late":
            for _ in range(self.dice.randrange(4)):
                self.dice.choice(self.streams).step()

    def bring_about(self, mark: Mark) -> None:
        with self.lock:
            while not mark.reached:
                if self.order == "late":
                    self._bring_about(mark)
                elif not self.dice.choice(self.streams).step():
                    assert any(stream.entries for stream in self.streams), "it waits for ever"

    def _bring_about(self, mark: Mark) -> None:
        """Nothing but what it takes."""
        while not mark.reached:
            if not mark.stream.step():
                first = mark.stream.entries[0]
                assert isinstance(first, Mark)
                self._bring_about(first)


def _poison(tensor: Tensor) -> None:
    tensor.fill_(torch.nan if tensor.is_floating_point() else 170)
