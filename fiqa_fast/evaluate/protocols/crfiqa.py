# SPDX-License-Identifier: Apache-2.0
"""The protocol of CR-FIQA's evaluation, which ViT-FIQA, EX-FIQA and ATTN-FIQA use.

Genuine and impostor pairs are discarded together, worst pair quality (the smaller of the two)
first, equal ones in the order of the pairs. At each of the shares 0, 0.05 .. 0.95 the threshold is
found anew among the distances of the pairs kept: the one whose FMR (the share of impostors at or
below it) is nearest to the wanted one, the largest of equally near ones. FNMR is the share of
genuine pairs at or above it.

The published code measures distances arccos(cosine) / pi; their order is that of falling cosines,
which is what is compared here, so that no processor's arccos decides a tie.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..trials import Trials
from .curves import Counts, Curve, Floats, OperatingPoint, weight_chunks

__all__ = ["DISCARD", "CrfiqaOutcome", "crfiqa"]

DISCARD = np.arange(0, 0.98, 0.05)  # [20]


@dataclass(frozen=True, eq=False)
class CrfiqaOutcome:
    """Kept genuine pairs and their false non-matches at each share, by identity."""

    threshold: float
    kept: Floats  # [K, identities]
    failed: Floats  # [K, identities]

    def curve(self) -> Curve:
        # 1 - share, as published: the last bit is the published one, too.
        with np.errstate(invalid="ignore"):
            kept = self.kept.sum(1)
            fnmr = 1 - (kept - self.failed.sum(1)) / kept
        return Curve(DISCARD, fnmr, step=False)

    def resampled(self, counts: Counts) -> Iterator[Curve]:
        every = np.arange(counts.shape[1])
        for weights in weight_chunks(counts, every):  # [draws, identities]
            drawn = weights.astype(np.float64)
            with np.errstate(invalid="ignore"):
                fnmr = (drawn @ self.failed.T) / (drawn @ self.kept.T)
            yield Curve(DISCARD, fnmr, step=False)


def crfiqa(
    trials: Trials, quality: Floats, points: Sequence[OperatingPoint]
) -> list[CrfiqaOutcome]:
    """One outcome per operating point, which must be FMRs; ``quality`` [n] is per image."""
    survived = survived_shares(trials.pair_rank(quality), DISCARD)
    impostors = trials.impostors_by_similarity
    survivors = survived[impostors]
    order = np.argsort(trials.genuine_similarity, kind="stable")
    genuine = trials.genuine_similarity[order]  # [G], rising
    genuine_survived = survived[trials.genuine_pairs[order]]
    identity = trials.genuine_identity[order]
    identities = int(identity.max()) + 1
    kept = np.zeros((len(DISCARD), identities))
    failed = np.zeros((len(points), len(DISCARD), identities))
    thresholds = np.full(len(points), np.nan)
    for k in range(len(DISCARD)):
        mine = genuine_survived > k
        kept[k] = np.bincount(identity[mine], minlength=identities)
        ranking = _Falling(trials.similarity, impostors, survivors > k)
        for p, point in enumerate(points):
            threshold = _threshold(ranking, genuine[mine], point.value)
            wrong = mine & (genuine <= threshold)
            failed[p, k] = np.bincount(identity[wrong], minlength=identities)
            if k == 0:
                thresholds[p] = threshold
    return [CrfiqaOutcome(float(thresholds[p]), kept, failed[p]) for p in range(len(points))]


def survived_shares(rank: npt.NDArray[np.int32], shares: Floats) -> npt.NDArray[np.uint8]:
    """How many of the rising ``shares`` leave each pair: share k keeps those with more than k.

    Pairs are discarded by rising rank, equal ranks in order, ``int(share P)`` of them: what a
    stable sort of all pairs would give, in linear time.
    """
    dropped = np.array([int(share * len(rank)) for share in shares])
    sizes = np.bincount(rank)
    ends = np.cumsum(sizes)  # sorted pairs of rank r stand at ends[r] - sizes[r] .. ends[r] - 1
    first = np.searchsorted(dropped, ends - sizes, side="right").astype(np.uint8)
    last = np.searchsorted(dropped, ends - 1, side="right").astype(np.uint8)
    result: npt.NDArray[np.uint8] = first[rank]
    for r in np.flatnonzero((first != last) & (sizes > 0)):
        pairs = np.flatnonzero(rank == r)
        places = np.arange(ends[r] - sizes[r], ends[r])
        result[pairs] = np.searchsorted(dropped, places, side="right")
    return result


class _Falling:
    """The kept impostors by falling similarity, of which mostly the first are looked at."""

    def __init__(
        self,
        similarity: Floats,
        order: npt.NDArray[np.int64],
        kept: npt.NDArray[np.bool_],
    ) -> None:
        self._similarity, self._order = similarity, order
        self._places = np.flatnonzero(kept)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> float:
        return float(self._similarity[self._order[self._places[index]]])

    def run(self, index: int) -> tuple[int, int]:
        """Where the run of equal similarities around ``index`` begins and ends."""
        own, indices = -self[index], range(len(self))
        return (
            bisect_left(indices, own, key=lambda i: -self[i]),
            bisect_right(indices, own, key=lambda i: -self[i]),
        )


def _threshold(impostors: _Falling, genuine: Floats, wanted: float) -> float:
    """The smallest kept cosine whose FMR, the share of impostors at or above it, is nearest."""
    count = len(impostors)
    if not count or not len(genuine):
        return float("nan")
    # Equal impostors match together, so these are the nearest numbers of matches on both sides.
    start, end = impostors.run(min(int(wanted * count), count - 1))
    possible = start > 0 or genuine[-1] > impostors[0]  # none at all: if a genuine pair is above
    closer_or_as_close = abs(end / count - wanted) <= abs(start / count - wanted)
    matches = end if closer_or_as_close or not possible else start
    # The smallest cosine, genuine or impostor, before the next impostor comes in.
    first = 0 if matches == count else np.searchsorted(genuine, impostors[matches], side="right")
    smallest = [impostors[matches - 1]] if matches else []
    return float(min([*smallest, *genuine[first : first + 1]]))
