# SPDX-License-Identifier: Apache-2.0
"""Pairs of images by their identities: all genuine ones, and a random sample of the impostors."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["genuine_codes", "impostor_codes", "pairs_of"]

Ints = npt.NDArray[np.int64]
_CHUNK = 1 << 20  # pairs worked on at a time


def pairs_of(codes: Ints) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """The images i < j of each pair, whose code is ``i << 32 | j``: codes sort as pairs do."""
    return (codes >> 32).astype(np.int32), codes.astype(np.int32)


def genuine_codes(whom: Ints) -> Ints:  # [n] -> [G]
    """All pairs of images of one identity."""
    order = np.argsort(whom, kind="stable")
    groups = np.split(order, np.cumsum(np.bincount(whom))[:-1])
    return np.concatenate([_all_pairs(group) for group in groups])


def _all_pairs(images: Ints) -> Ints:
    i, j = np.triu_indices(len(images), 1)
    return _code(images[i], images[j])


def impostor_codes(whom: Ints, wanted: int, rng: np.random.Generator) -> Ints:
    """``wanted`` different pairs of images of two identities, any such choice as likely.

    With the images sorted by identity, an image's impostors behind it are all from the end of its
    identity on. So impostor pairs can be numbered, and numbers are drawn, not images.
    """
    order = np.argsort(whom, kind="stable")
    ends = np.cumsum(np.bincount(whom))[whom[order]]  # of the identity of each place
    counts = len(whom) - ends
    behind = np.cumsum(counts)
    codes = distinct_numbers(int(behind[-1]), wanted, rng)
    for start in range(0, wanted, _CHUNK):
        number = codes[start : start + _CHUNK]
        place = np.searchsorted(behind, number, side="right")
        partner = ends[place] + number - (behind[place] - counts[place])
        codes[start : start + _CHUNK] = _code(order[place], order[partner])
    return codes


def distinct_numbers(population: int, wanted: int, rng: np.random.Generator) -> Ints:
    """``wanted`` different numbers below ``population``, rising.

    In memory and time of what is wanted, which numpy's own choice is not for a large population.
    """
    if wanted > population // 2:  # draw what is left out
        kept = np.ones(population, bool)
        kept[distinct_numbers(population, population - wanted, rng)] = False
        return np.flatnonzero(kept)
    found = np.zeros(0, np.int64)
    while len(found) < wanted:
        # So many draws give about as many new numbers as are still wanted, a little more.
        share = (wanted - len(found)) / (population - len(found))
        draws = int(-1.001 * population * np.log1p(-share)) + 16
        found = np.unique(np.concatenate([found, rng.integers(0, population, draws)]))
    surplus = len(found) - wanted
    return np.delete(found, rng.choice(len(found), surplus, replace=False)) if surplus else found


def _code(i: Ints, j: Ints) -> Ints:
    return (np.minimum(i, j) << 32) | np.maximum(i, j)
