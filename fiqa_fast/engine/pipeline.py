# SPDX-License-Identifier: Apache-2.0
"""Groups of images through one captured computation, their copies beside it.

    host              page-locked       device            graph
    images -> [host] ------------> [slot] ------> [input] ------> [results]
    results <-------------------------- [slot] <----------------------'
              ^ copies' stream ^  ^ the computation's stream, one group after the other ^

All groups have one shape, and the last one is padded: for another shape, libraries may choose other
kernels, which round otherwise, and results must not depend on how images are batched. So there is
one graph, and one input and one set of results that it knows by their addresses.

A slot is a group's memory on its way. Whoever calls takes one, and a second while the first is
being computed: the next group travels meanwhile. It is free again when its results are with the
caller, so nothing of it is overwritten that is still to be read. Several threads may call; each
waits for a slot only while it has none, so that they never wait for one another in a circle.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..quality.method import Values
from .accelerator import Accelerator, CaptureError, Event, Stream

# Two callers keep going at a time.
SLOTS_PER_CALL = 2
SLOTS = 2 * SLOTS_PER_CALL
PIXELS = (torch.uint8, torch.float32)

Arrays = dict[str, np.ndarray[Any, Any]]


class Slot:
    """The memory of a group on its way, of each kind of pixels when the first of them come."""

    def __init__(
        self, accelerator: Accelerator, copies: Stream, shape: Sequence[int], results: Values
    ) -> None:
        self._accelerator, self._copies, self._shape = accelerator, copies, shape
        self._staged: dict[torch.dtype, Tensor] = {}
        self._page_locked: dict[torch.dtype, Tensor] = {}
        self.results = {
            name: accelerator.page_locked(value.shape, value.dtype)
            for name, value in results.items()
        }

    def staged(self, dtype: torch.dtype) -> Tensor:
        """On the device."""
        if dtype not in self._staged:
            self._staged[dtype] = self._copies.empty(self._shape, dtype)
        return self._staged[dtype]

    def page_locked(self, dtype: torch.dtype) -> Tensor:
        """On the host."""
        if dtype not in self._page_locked:
            self._page_locked[dtype] = self._accelerator.page_locked(self._shape, dtype)
        return self._page_locked[dtype]


@dataclass
class Trip:
    """A group's images from ``start`` on, in their slot."""

    slot: Slot
    start: int
    done: Event | None = None  # None while they are being sent


class Pipeline:
    """Images of ``shape`` [group, 3, S, S] through ``whole``.

    Args:
        fill: puts images, as many as there are, into the group's input, float32.
        whole: a group's input to its results, images first. Called to capture it only.

    Raises:
        CaptureError: ``whole`` cannot be captured, or computes something else then.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        shape: Sequence[int],
        fill: Callable[[Tensor, Tensor], None],
        whole: Callable[[Tensor], Values],
    ) -> None:
        self.accelerator, self.shape, self.fill = accelerator, tuple(shape), fill
        self.copies, self.computation = accelerator.stream(), accelerator.stream()
        self.input = self.computation.empty(self.shape, torch.float32)
        self.computation.run(self.input.zero_)
        self.replay, self.results = accelerator.capture(lambda: whole(self.input))
        self.result_shapes = {name: value.shape[1:] for name, value in self.results.items()}
        self._sending = threading.Lock()
        self._free: SimpleQueue[Slot] = SimpleQueue()
        for _ in range(SLOTS):
            self._free.put(Slot(accelerator, self.copies, self.shape, self.results))
        self._check(whole)

    def run(self, images: Tensor) -> Arrays:
        """Any number of images [B, 3, S, S], uint8 or normalised float32, to their results.

        Raises:
            ValueError: they are others.
        """
        if images.shape[1:] != self.shape[1:] or images.dtype not in PIXELS:
            wanted = ", ".join(map(str, self.shape[1:]))
            raise ValueError(
                f"images should be uint8 or float32 [B, {wanted}], got {images.dtype} "
                f"{list(images.shape)}"
            )
        results = {
            name: np.empty((len(images), *shape), np.float32)
            for name, shape in self.result_shapes.items()
        }
        trips: deque[Trip] = deque()

        def arrive() -> None:
            trip = trips[0]
            assert trip.done is not None
            trip.done.wait()
            for name, array in results.items():
                part = array[trip.start : trip.start + self.shape[0]]
                np.copyto(part, trip.slot.results[name].numpy()[: len(part)])
            self._free.put(trips.popleft().slot)

        try:
            for start in range(0, len(images), self.shape[0]):
                slot = self._take(len(trips))
                while slot is None:
                    arrive()
                    slot = self._take(len(trips))
                trips.append(Trip(slot, start))
                trips[-1].done = self._send(images[start : start + self.shape[0]], slot)
            while trips:
                arrive()
        except BaseException:
            self.accelerator.settle()  # what is on its way may still write to a slot
            raise
        finally:
            for trip in trips:
                self._free.put(trip.slot)
        return results

    def _take(self, held: int) -> Slot | None:
        """A slot for a caller that holds so many, or None where it has to give one back first."""
        if held == SLOTS_PER_CALL:
            return None
        try:
            return self._free.get(block=held == 0)
        except Empty:
            return None

    def _send(self, images: Tensor, slot: Slot) -> Event:
        staged, ready = slot.staged(images.dtype)[: len(images)], None
        if self.accelerator.holds(images):
            source, ready = images, self.accelerator.here()
        else:
            source = slot.page_locked(images.dtype)[: len(images)]
            # By numpy: torch would start threads of its own, which do not survive a fork.
            np.copyto(source.numpy(), images.cpu().numpy())
        with self._sending:  # nothing comes between what belongs together
            if ready is not None:
                self.copies.wait(ready)
            self.copies.run(lambda: staged.copy_(source, non_blocking=True))
            self.computation.wait(self.copies.record())
            self.computation.run(lambda: self._fill(staged))
            self.computation.run(self.replay)
            self.computation.run(lambda: self._fetch(slot))
            return self.computation.record()

    @torch.inference_mode()
    def _fill(self, staged: Tensor) -> None:
        self.fill(self.input, staged)

    @torch.inference_mode()
    def _fetch(self, slot: Slot) -> None:
        # Little: it does not pay to bring it to the other stream.
        for name, value in self.results.items():
            slot.results[name].copy_(value, non_blocking=True)

    def _check(self, whole: Callable[[Tensor], Values]) -> None:
        """Compare a replay with the call that it stands for, bit by bit.

        A graph repeats what the device was told once. Whatever else ``whole`` does, such as
        looking at values or counting its calls, would be silently left out.
        """
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, self.shape, dtype=torch.uint8, generator=generator)
        replayed = self.run(images)
        called: Arrays = {}

        def call() -> None:  # its input is still there
            called.update({name: value.cpu().numpy() for name, value in whole(self.input).items()})

        self.computation.run(call)
        self.accelerator.settle()
        for name, value in replayed.items():
            if value.tobytes() != called[name].tobytes():
                raise CaptureError(f"its CUDA graph computes another {name} than its operators do")
