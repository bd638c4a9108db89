# SPDX-License-Identifier: Apache-2.0
"""The protocol ``fixed-fmr``: one threshold for all shares, genuine pairs alone are discarded.

The threshold is the (1 - FMR) quantile of all impostors' similarities. Genuine pairs are sorted by
the smaller quality of the two images, equal ones in the order of the pairs, and FNMR is that of
``pairs[int(u n):]`` at 61 shares u from 0 to the limit, joined by lines.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..trials import Trials
from .curves import Counts, Curve, Floats, OperatingPoint, weight_chunks

__all__ = ["FixedFmrOutcome", "fixed_fmr"]

_POINTS = 61
_END, _BEYOND = 0.95, 130  # of the curve beyond the limit: as far apart as up to a limit of 0.3


@dataclass(frozen=True, eq=False)
class FixedFmrOutcome:
    """Genuine pairs, worst quality first."""

    threshold: float
    shares: Floats  # [K]
    failed: npt.NDArray[np.bool_]  # [G]
    identity: npt.NDArray[np.int64]  # [G]

    def curve(self) -> Curve:
        ones = np.ones((1, int(self.identity.max()) + 1), np.uint16)
        fnmr = next(self.resampled(ones)).fnmr[0]
        return Curve(self.shares, fnmr, step=False)

    def resampled(self, counts: Counts) -> Iterator[Curve]:
        for weights in weight_chunks(counts, self.identity):  # [draws, G]
            yield Curve(self.shares, np.stack([self._fnmr(row) for row in weights]), step=False)

    def _fnmr(self, weights: npt.NDArray[np.int64]) -> Floats:  # [G] -> [K]
        """A pair of weight w counts as w equal pairs side by side."""
        behind, wrong = _sums(weights), _sums(weights * self.failed)
        total = behind[-1]
        dropped = np.array([int(share * total) for share in self.shares])
        whole = np.searchsorted(behind, dropped, side="right") - 1  # pairs dropped as a whole
        part = dropped - behind[whole]
        next_failed = self.failed[np.minimum(whole, len(weights) - 1)]
        left = wrong[-1] - wrong[whole] - part * next_failed
        with np.errstate(invalid="ignore"):
            fnmr: Floats = left / (total - dropped)
        return fnmr


def _sums(values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:  # [G] -> [G + 1]
    """The sums of the first 0, 1 .. G values."""
    sums = np.zeros(len(values) + 1, np.int64)
    np.cumsum(values, out=sums[1:])
    return sums


def fixed_fmr(
    trials: Trials, quality: Floats, points: Sequence[OperatingPoint], limit: float
) -> list[FixedFmrOutcome]:
    """One outcome per operating point, which must be FMRs; ``quality`` [n] is per image."""
    shares = np.linspace(0, limit, _POINTS)
    shares = np.append(shares, np.linspace(limit, _END, _BEYOND + 1)[1:])
    genuine = trials.genuine_pairs
    worst = np.minimum(quality[trials.a[genuine]], quality[trials.b[genuine]])
    order = np.argsort(worst, kind="stable")
    similarity, identity = trials.genuine_similarity[order], trials.genuine_identity[order]
    thresholds = [trials.impostor_quantile(point.value) for point in points]
    return [FixedFmrOutcome(t, shares, similarity < t, identity) for t in thresholds]
