# SPDX-License-Identifier: Apache-2.0
"""Medians with their quartiles, of rates and of ratios that were taken round by round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Spread", "latency", "ratio", "spread"]


@dataclass(frozen=True)
class Spread:
    """A median and its quartiles."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Of at least one value."""
    low, median, high = np.percentile(values, [25, 50, 75])
    return Spread(float(median), float(low), float(high))


def ratio(above: Sequence[float], below: Sequence[float]) -> Spread:
    """Of quotients of the same round: what disturbs a round disturbs both alike."""
    return spread([a / b for a, b in zip(above, below, strict=True)])


def latency(calls: Sequence[float]) -> dict[str, float | int]:
    """Milliseconds of a call: the median and the 95th percentile, and of how many."""
    median, p95 = np.percentile(calls, [50, 95])
    return {"median": 1000 * float(median), "p95": 1000 * float(p95), "calls": len(calls)}
