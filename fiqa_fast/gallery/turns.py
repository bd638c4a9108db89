# SPDX-License-Identifier: Apache-2.0
"""Scoring and decoding by turns, where both would want the same cores.

Side by side, each keeps taking cores and caches from the other, and a batch waits for its slowest
thread. By turns, all cores decode, then all cores score. The longer a turn, the fewer the moments
in which some cores have nothing to do; how long it is follows the clock, so that a slow model
still reports often.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fiqa_fast.cores import cores

__all__ = ["Turns", "fills_the_cores"]

_MOST = 8  # batches per turn
# A turn gets longer where it and the decoding before took less, and shorter where they took more.
_SHORT, _LONG = 0.25, 1.0  # seconds


def fills_the_cores(device: torch.device, processes: int = 1) -> bool:
    """Whether so many processes that compute on ``device`` leave no core to decoding."""
    return device.type == "cpu" and torch.get_num_threads() * processes >= cores()


class Turns:
    """Whose turn it is, and how many batches the scorer gets in one."""

    def __init__(self) -> None:
        self.batches = 1
        self._decoding = threading.Event()
        self._decoding.set()
        self._began = time.perf_counter()

    def wait(self) -> None:
        """Wait until nothing is being scored."""
        self._decoding.wait()

    @contextmanager
    def scoring(self) -> Iterator[None]:
        """Score meanwhile: whoever waits goes on behind it."""
        self._decoding.clear()
        try:
            yield
        finally:
            now = time.perf_counter()
            took, self._began = now - self._began, now
            if took < _SHORT:
                self.batches = min(_MOST, 2 * self.batches)
            elif took > _LONG:
                self.batches = max(1, self.batches // 2)
            self._decoding.set()
