# SPDX-License-Identifier: Apache-2.0
"""Minimum, median and maximum of a stream of scores in constant memory."""

from __future__ import annotations

from array import array
from collections.abc import Iterable

import numpy as np

__all__ = ["ScoreStatistics"]


class ScoreStatistics:
    """Exact extremes, and a median that is exact up to ``capacity`` scores.

    Beyond it, every second kept score is dropped and only every second new one kept from then
    on, so that the sample stays evenly spread over the stream.
    """

    def __init__(self, capacity: int = 2**20) -> None:
        """Keep at most ``capacity`` scores, 4 bytes each."""
        self._capacity = capacity
        self._kept = array("f")
        self._stride = 1
        self.count = 0
        self.minimum = float("inf")
        self.maximum = float("-inf")

    def add(self, scores: Iterable[float]) -> None:
        """Take in scores, in order."""
        for score in scores:
            score = float(score)
            self.minimum = min(self.minimum, score)
            self.maximum = max(self.maximum, score)
            if self.count % self._stride == 0:
                self._kept.append(score)
                if len(self._kept) > self._capacity:
                    self._kept = self._kept[::2]
                    self._stride *= 2
            self.count += 1

    @property
    def exact(self) -> bool:
        """Whether the median is that of all scores."""
        return self._stride == 1

    @property
    def median(self) -> float:
        """Return the median of the scores kept; nan without scores."""
        return float(np.median(np.frombuffer(self._kept, np.float32))) if self.count else np.nan
