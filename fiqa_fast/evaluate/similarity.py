# SPDX-License-Identifier: Apache-2.0
"""Cosine similarities of pairs of embeddings, in float64.

Of a list of pairs, the sum of every pair is one fixed sequence of additions, so that equal pairs
have equal similarities and the order of pairs is the same on every processor. Of all pairs there
are, the products come from the linear algebra library, which is faster and rounds as it likes.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from fiqa_fast.cores import cores

__all__ = ["all_similarities", "pair_similarities"]

Floats = npt.NDArray[np.float64]
# float64 values of one side of a chunk of pairs: small enough to stay in a core's cache.
_CHUNK_VALUES = 1 << 17
# Rows of all pairs computed at a time.
_BLOCK_ROWS = 256


def pair_similarities(
    embeddings: npt.NDArray[Any],  # [n, E]
    a: npt.NDArray[np.int32],  # [P]
    b: npt.NDArray[np.int32],  # [P]
) -> Floats:  # [P]
    """``e_a . e_b / (|e_a| |e_b|)`` of each pair, within -1..1.

    Raises ValueError for embeddings that are zero or not finite.
    """
    norms = _norms(embeddings)
    rows = _rows(embeddings)
    result = np.empty(len(a))

    def work(start: int) -> None:
        left, right = a[start : start + rows], b[start : start + rows]
        product = embeddings[left].astype(np.float64)
        product *= embeddings[right]
        dots = np.add.reduce(product, axis=1)
        np.clip(dots / (norms[left] * norms[right]), -1, 1, out=result[start : start + rows])

    with ThreadPoolExecutor(cores()) as pool:
        for _ in pool.map(work, range(0, len(a), rows)):
            pass
    return result


def all_similarities(embeddings: npt.NDArray[Any]) -> Iterator[tuple[int, Floats]]:
    """For each image i in order: i and its similarities [n - 1 - i] to the images behind it."""
    unit = embeddings / _norms(embeddings)[:, None]
    for start in range(0, len(unit), _BLOCK_ROWS):
        stop = min(start + _BLOCK_ROWS, len(unit))
        block = np.clip(unit[start:stop] @ unit[start:].T, -1, 1)
        for row in range(stop - start):
            yield start + row, block[row, row + 1 :]


def _norms(embeddings: npt.NDArray[Any]) -> Floats:  # [n]
    norms = np.empty(len(embeddings))
    rows = _rows(embeddings)
    for start in range(0, len(embeddings), rows):
        part = embeddings[start : start + rows].astype(np.float64)
        norms[start : start + rows] = np.sqrt(np.add.reduce(part * part, axis=1))
    bad = np.flatnonzero(~np.isfinite(norms) | (norms == 0))
    if len(bad):
        raise ValueError(
            f"embeddings must be finite and not zero, got {len(bad)} of {len(norms)} that are not, "
            f"the first at {bad[0]}"
        )
    return norms


def _rows(embeddings: npt.NDArray[Any]) -> int:
    if embeddings.ndim != 2 or not embeddings.shape[1]:
        raise ValueError(f"embeddings must be [n, E], got {list(embeddings.shape)}")
    return int(max(1, _CHUNK_VALUES // embeddings.shape[1]))
