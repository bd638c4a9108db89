# SPDX-License-Identifier: Apache-2.0
"""Rank correlation (Spearman 1904), equal values sharing their mean rank."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["codes", "spearman", "weighted_spearman"]

Codes = npt.NDArray[np.int64]


def spearman(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Correlation of the ranks of ``a`` [n] and ``b`` [n]; NaN where one is constant or has NaN."""
    first, second = codes(a), codes(b)
    if first.shape != second.shape:
        raise ValueError(f"wanted sequences of one length, got {len(first)} and {len(second)}")
    if any(np.isnan(np.asarray(values, np.float64)).any() for values in (a, b)):
        return float("nan")
    return weighted_spearman(first, second, np.ones(len(first), np.int64))


def codes(values: npt.ArrayLike) -> Codes:
    """Number the distinct values in rising order: [n] -> [n]."""
    flat = np.asarray(values, dtype=np.float64).ravel()
    return np.unique(flat, return_inverse=True)[1].astype(np.int64).ravel()


def weighted_spearman(a: Codes, b: Codes, weights: Codes) -> float:
    """The correlation of coded values, each there as often as its weight says."""

    def centred_ranks(of: Codes) -> npt.NDArray[np.float64]:
        counts = np.bincount(of, weights)
        ranks: npt.NDArray[np.float64] = np.cumsum(counts) - (counts + weights.sum()) / 2
        return ranks[of]

    if not len(a):
        return float("nan")
    x, y = centred_ranks(a), centred_ranks(b)
    scale = np.sqrt((weights @ x**2) * (weights @ y**2))
    return float(weights @ (x * y) / scale) if scale > 0 else float("nan")
