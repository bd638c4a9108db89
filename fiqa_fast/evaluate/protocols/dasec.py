# SPDX-License-Identifier: Apache-2.0
"""The protocol ``dasec``, in the manner of ISO/IEC 29794-1: one threshold, exact steps.

The threshold is fixed once: the (1 - FMR) quantile of all impostors' similarities, or the FNMR
quantile of the genuine ones. Of the genuine pairs those whose quality (the smaller of the two) is
at least t are kept, for every t among them, so equal qualities go together; the FNMR is a
right-continuous step function of the discarded share, and its integral is exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..trials import Trials
from .curves import Counts, Curve, Floats, OperatingPoint, weight_chunks

__all__ = ["DasecOutcome", "best_area", "dasec"]


@dataclass(frozen=True, eq=False)
class DasecOutcome:
    """Genuine pairs, worst quality first, in groups of equal quality."""

    threshold: float
    starts: npt.NDArray[np.int64]  # [K], where each group begins
    failed: npt.NDArray[np.bool_]  # [G]
    identity: npt.NDArray[np.int64]  # [G]

    def curve(self) -> Curve:
        ones = np.ones((1, int(self.identity.max()) + 1), np.uint16)
        curve = next(self.resampled(ones))
        return Curve(curve.discard[0], curve.fnmr[0], step=True)

    def resampled(self, counts: Counts) -> Iterator[Curve]:
        for weights in weight_chunks(counts, self.identity):  # [draws, G]
            groups = np.add.reduceat(weights, self.starts, axis=1)
            wrong = np.add.reduceat(weights * self.failed, self.starts, axis=1)
            total = groups.sum(1, keepdims=True)
            before = np.cumsum(groups, axis=1) - groups
            left = wrong.sum(1, keepdims=True) - (np.cumsum(wrong, axis=1) - wrong)
            # Where a draw leaves nothing, the step begins at 1 and has no width.
            fnmr = left / np.maximum(total - before, 1)
            yield Curve(before / total, fnmr, step=True)


def dasec(trials: Trials, quality: Floats, points: Sequence[OperatingPoint]) -> list[DasecOutcome]:
    """One outcome per operating point; ``quality`` [n] is per image."""
    genuine = trials.genuine_pairs
    worst = np.minimum(quality[trials.a[genuine]], quality[trials.b[genuine]])
    order = np.argsort(worst, kind="stable")
    worst = worst[order]
    starts = np.flatnonzero(np.append(True, worst[1:] != worst[:-1]))
    similarity, identity = trials.genuine_similarity[order], trials.genuine_identity[order]
    outcomes = []
    for point in points:
        if point.of == "FNMR":
            threshold = float(np.quantile(trials.genuine_similarity, point.value))
        else:
            threshold = trials.impostor_quantile(point.value)
        outcomes.append(DasecOutcome(threshold, starts, similarity < threshold, identity))
    return outcomes


def best_area(fnmr: npt.ArrayLike, limit: float) -> Floats:
    """The least area over [0, limit] that any score can reach from ``fnmr`` at 0.

    A score that discards all false non-matches first leaves max(0, (F - u) / (1 - u)).
    """
    start = np.asarray(fnmr, dtype=np.float64)
    end = np.minimum(start, limit)
    with np.errstate(divide="ignore", invalid="ignore"):
        area: Floats = end + np.where(start < 1, (1 - start) * np.log1p(-end), 0.0)
    return area
