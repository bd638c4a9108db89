# SPDX-License-Identifier: Apache-2.0
"""Error-versus-discard curves: FNMR against the share of the worst that is discarded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["Counts", "Curve", "OperatingPoint", "Outcome"]

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.uint16]
Weights = npt.NDArray[np.int64]
# Grids such as 6 * 0.05 end a rounding error beyond a limit of 0.3, and count as reaching it.
_GRID_EPS = 1e-9
# Weights of genuine pairs held at a time while identities are resampled.
_CHUNK_WEIGHTS = 1 << 22


@dataclass(frozen=True)
class OperatingPoint:
    """Where the threshold stands: at this share of false matches (``FMR``), or at this share of
    false non-matches among all genuine pairs before any is discarded (``FNMR``)."""

    value: float
    of: str = "FMR"

    def __str__(self) -> str:
        return f"{self.of} {self.value:g}"


@dataclass(frozen=True, eq=False)
class Curve:
    """One curve, or one per draw of the bootstrap.

    Attributes:
        discard: [..., K] discarded shares, rising from 0.
        fnmr: [..., K] the FNMR of what is kept.
        step: whether each value holds until the next share (else lines join them).
    """

    discard: Floats
    fnmr: Floats
    step: bool

    def area(self, limit: float) -> Floats:  # [...]
        """The integral of the FNMR over [0, limit]: exact for steps, by trapezoids for lines."""
        if self.step:
            ends = np.concatenate([self.discard[..., 1:], np.ones_like(self.discard[..., :1])], -1)
            widths = np.minimum(ends, limit) - np.minimum(self.discard, limit)
            return np.asarray((self.fnmr * widths).sum(-1))
        inside = int(np.searchsorted(self.discard, limit + _GRID_EPS, side="right"))
        u, y = self.discard[:inside], self.fnmr[..., :inside]
        if limit - u[-1] > _GRID_EPS:  # between two points of the grid, or beyond its end
            if inside == len(self.discard):
                raise ValueError(f"limit must be at most {u[-1]:g}, where the curve ends")
            share = (limit - u[-1]) / (self.discard[inside] - u[-1])
            end = y[..., -1:] + share * (self.fnmr[..., inside : inside + 1] - y[..., -1:])
            u, y = np.append(u, limit), np.concatenate([y, end], -1)
        return np.asarray((np.diff(u) * (y[..., 1:] + y[..., :-1]) / 2.0).sum(-1))

    def normalised_area(self, limit: float) -> Floats:  # [...]
        """``area / (limit FNMR at 0)``: random scores have about 1, perfect ones less."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(self.area(limit) / (limit * self.fnmr[..., 0]))


class Outcome(Protocol):
    """What a protocol makes of one quality score at one operating point."""

    @property
    def threshold(self) -> float:
        """The similarity below which a pair is a non-match, before any discard; crfiqa's own
        non-matches begin at it."""
        ...

    def curve(self) -> Curve:
        """The curve of the trials as they are."""
        ...

    def resampled(self, counts: Counts) -> Iterator[Curve]:
        """Curves in which genuine pairs have the weight of their identity: one per row of
        ``counts`` [draws, identities], some rows at a time."""
        ...


def weight_chunks(counts: Counts, identity: npt.NDArray[np.int64]) -> Iterator[Weights]:
    """The weights [some draws, G] of genuine pairs, a bounded number of them at a time."""
    size = max(1, _CHUNK_WEIGHTS // max(len(identity), 1))
    for start in range(0, len(counts), size):
        yield counts[start : start + size, identity].astype(np.int64)
