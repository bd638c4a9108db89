# SPDX-License-Identifier: Apache-2.0
"""Rank correlation."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def spearman(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Correlation of the ranks of ``a`` [n] and ``b`` [n], ties sharing their mean rank.

    NaN where one of them is constant: it ranks nothing.
    """
    x, y = _centred_ranks(a), _centred_ranks(b)
    size = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / size if size else float("nan")


def _centred_ranks(values: npt.ArrayLike) -> Any:  # [n] -> [n]
    _, inverse, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return ranks - ranks.mean() if len(ranks) else ranks
