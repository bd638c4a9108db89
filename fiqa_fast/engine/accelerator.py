# SPDX-License-Identifier: Apache-2.0
"""The few calls that a GPU needs and a CPU does not: streams, events, page-locked memory, graphs.

What is built on them (:mod:`.pipeline`) runs the same way on a GPU (:mod:`.cuda`), on the CPU
(:class:`Host`), and in tests on streams that run as late or as early as they may.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..quality.method import Values
from ..workers import run_alone


class CaptureError(RuntimeError):
    """A computation cannot be made a graph; the text says why."""


class Event(Protocol):
    """A place in a stream."""

    def wait(self) -> None:
        """Return when the stream has come so far."""
        ...


class Stream(Protocol):
    """Work that is done in order, while the host goes on."""

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Memory of the device that nobody uses any more when this stream comes to use it."""
        ...

    def run(self, work: Callable[[], object]) -> None:
        """Put what ``work`` launches at the end."""
        ...

    def wait(self, event: Event) -> None:
        """Let all work that comes from now on wait for ``event``."""
        ...

    def record(self) -> Event:
        """The end as it is now."""
        ...


class Accelerator(Protocol):
    def stream(self) -> Stream:
        """A new stream."""
        ...

    def here(self) -> Event:
        """The end of what the calling thread has launched by itself."""
        ...

    def holds(self, tensor: Tensor) -> bool:
        """Whether the device need not be sent ``tensor``."""
        ...

    def page_locked(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Memory of the host that the device copies from and to by itself."""
        ...

    def capture(self, compute: Callable[[], Values]) -> tuple[Callable[[], object], Values]:
        """``compute`` as a replay, to be run on a stream, and the tensors where that leaves its
        results: the same every time.

        Raises:
            CaptureError: it does something that cannot be replayed.
        """
        ...

    def settle(self) -> None:
        """Return when all streams are at their ends."""
        ...


class HostStream:
    """Whatever it is given is done at once, by one thread, as the CPU's engines compute."""

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.empty(tuple(shape), dtype=dtype)

    def run(self, work: Callable[[], object]) -> None:
        alone(work)

    def wait(self, event: Event) -> None:
        pass

    def record(self) -> Event:
        return Done()


class Done:
    """An event that has been."""

    def wait(self) -> None:
        pass


class Host:
    """The CPU in place of a GPU: no graph, and nothing is left to be waited for."""

    def stream(self) -> HostStream:
        return HostStream()

    def here(self) -> Event:
        return Done()

    def holds(self, tensor: Tensor) -> bool:
        return False

    def page_locked(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.empty(tuple(shape), dtype=dtype)

    def capture(self, compute: Callable[[], Values]) -> tuple[Callable[[], object], Values]:
        return direct(compute)

    def settle(self) -> None:
        pass


def direct(compute: Callable[[], Values]) -> tuple[Callable[[], object], Values]:
    """What stands for a graph where there is none: a call, and a copy to where the results are."""
    results: Values = {}

    @torch.inference_mode()
    def replay() -> None:
        for name, value in compute().items():
            results.setdefault(name, torch.empty_like(value)).copy_(value)

    alone(replay)
    return replay, results


def alone(work: Callable[[], object]) -> None:
    """Call ``work`` where torch's own threading is off."""
    if torch.get_num_threads() == 1:
        work()
    else:
        run_alone(work)
