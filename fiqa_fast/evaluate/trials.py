# SPDX-License-Identifier: Apache-2.0
"""Comparison trials: pairs of images, whether they are genuine, and how similar they are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from .sampling import genuine_codes, impostor_codes, pairs_of
from .similarity import all_similarities, pair_similarities

__all__ = ["MAX_IMPOSTORS", "Trials"]

Ints = npt.NDArray[np.int32]
# Impostor pairs kept of all pairs there are, 17 bytes each and twice that while they are sorted;
# FMR 1e-6 still rests on 100 of them.
MAX_IMPOSTORS = 100_000_000


@dataclass(frozen=True, eq=False)
class Trials:
    """Pairs of ``n`` images, in the order in which ties are broken.

    Attributes:
        a, b: [P], the images of each pair.
        genuine: bool [P], whether they show one person.
        similarity: float64 [P], the cosine; higher is more similar.
        identity: [n], whom each image shows, as far as the genuine pairs tell.
        sampled: how many impostor pairs there are in all, where ``a`` and ``b`` hold a sample.
    """

    a: Ints
    b: Ints
    genuine: npt.NDArray[np.bool_]
    similarity: npt.NDArray[np.float64]
    identity: npt.NDArray[np.int64]
    sampled: int | None = None

    def __post_init__(self) -> None:
        count = len(self.a)
        shapes = {len(self.b), len(self.genuine), len(self.similarity)}
        if shapes != {count}:
            raise ValueError(
                f"a, b, genuine and similarity must have one value per pair, got {count} and "
                f"{', '.join(map(str, sorted(shapes)))}"
            )
        if not self.num_genuine or not self.num_impostor:
            raise ValueError(
                "an evaluation needs genuine and impostor pairs, got "
                f"{self.num_genuine} genuine and {self.num_impostor} impostor"
            )
        if not np.isfinite(self.similarity).all():
            raise ValueError("similarities must be finite, got NaN or infinity")

    @classmethod
    def of_pairs(
        cls,
        embeddings: npt.NDArray[Any],
        a: npt.ArrayLike,
        b: npt.ArrayLike,
        genuine: npt.ArrayLike,
        identity: npt.ArrayLike | None = None,
    ) -> Trials:
        """The listed pairs of ``embeddings`` [n, E], which need not be normalised.

        Without ``identity`` [n], images that genuine pairs connect are one identity.
        """
        left, right = _indices(a, len(embeddings)), _indices(b, len(embeddings))
        same = np.asarray(genuine)
        if not np.isin(same, (0, 1)).all():
            raise ValueError("genuine must hold 0 and 1, or False and True")
        same = same.astype(bool)
        if identity is None:
            whom = connected(left[same], right[same], len(embeddings))
        else:
            whom = np.unique(np.asarray(identity), return_inverse=True)[1].astype(np.int64)
        similarity = pair_similarities(embeddings, left, right)
        return cls(left, right, same, similarity, whom)

    @classmethod
    def of_identities(
        cls,
        embeddings: npt.NDArray[Any],
        identity: npt.ArrayLike,
        max_impostors: int = MAX_IMPOSTORS,
        seed: int = 0,
    ) -> Trials:
        """All pairs of the images of ``embeddings`` [n, E], image by image.

        Where there are more impostor pairs than ``max_impostors``, a seeded random sample of so
        many stands for them: memory grows with that bound and the genuine pairs, not with the
        square of the number of images.
        """
        whom = np.unique(np.asarray(identity), return_inverse=True)[1].astype(np.int64)
        count = len(whom)
        if len(embeddings) != count:
            raise ValueError(f"wanted one embedding per image, got {len(embeddings)} for {count}")
        if max_impostors < 1:
            raise ValueError(f"max_impostors must be 1 or more, got {max_impostors}")
        sizes = np.bincount(whom)
        genuine = int((sizes * (sizes - 1) // 2).sum())
        impostors = count * (count - 1) // 2 - genuine
        if impostors > max_impostors:
            return cls._sampled(embeddings, whom, impostors, max_impostors, seed)
        behind = np.arange(count - 1, -1, -1, dtype=np.int64)
        left = np.repeat(np.arange(count, dtype=np.int32), behind)
        starts = np.cumsum(behind) - behind
        right = np.empty_like(left)
        similarity = np.empty(len(left))
        for i, row in all_similarities(embeddings):
            similarity[starts[i] : starts[i] + behind[i]] = row
            right[starts[i] : starts[i] + behind[i]] = np.arange(i + 1, count, dtype=np.int32)
        return cls(left, right, whom[left] == whom[right], similarity, whom)

    @classmethod
    def _sampled(
        cls,
        embeddings: npt.NDArray[Any],
        whom: npt.NDArray[np.int64],
        impostors: int,
        wanted: int,
        seed: int,
    ) -> Trials:
        rng = np.random.default_rng(seed)
        codes = np.concatenate([genuine_codes(whom), impostor_codes(whom, wanted, rng)])
        codes.sort()
        left, right = pairs_of(codes)
        del codes
        same = whom[left] == whom[right]
        similarity = pair_similarities(embeddings, left, right)
        return cls(left, right, same, similarity, whom, sampled=impostors)

    @cached_property
    def num_genuine(self) -> int:
        """How many pairs show one person."""
        return int(np.count_nonzero(self.genuine))

    @property
    def num_impostor(self) -> int:
        """How many pairs show two."""
        return len(self.genuine) - self.num_genuine

    @cached_property
    def genuine_pairs(self) -> npt.NDArray[np.int64]:
        """Positions of the genuine pairs, [G]."""
        return np.flatnonzero(self.genuine)

    @cached_property
    def genuine_similarity(self) -> npt.NDArray[np.float64]:
        """Similarities of the genuine pairs, [G]."""
        return self.similarity[self.genuine_pairs]

    @cached_property
    def genuine_identity(self) -> npt.NDArray[np.int64]:
        """Whose each genuine pair is, [G], numbered from 0 over the identities that have one."""
        whom = self.identity[self.a[self.genuine_pairs]]
        return np.unique(whom, return_inverse=True)[1].astype(np.int64)

    @cached_property
    def impostors_by_similarity(self) -> npt.NDArray[np.int64]:
        """Positions of the impostor pairs, the most similar first, [I]."""
        positions = np.flatnonzero(~self.genuine)
        order = np.argsort(-self.similarity[positions])
        result: npt.NDArray[np.int64] = positions[order]
        return result

    def impostor_quantile(self, fmr: float) -> float:
        """The (1 - fmr) quantile of the impostors' similarities, numpy's linear one."""
        return quantile_of_falling(self.similarity, self.impostors_by_similarity, 1 - fmr)

    def pair_rank(self, quality: npt.NDArray[np.float64]) -> npt.NDArray[np.int32]:
        """The smaller quality of each pair as its rank among the images' distinct qualities."""
        rank = np.unique(quality, return_inverse=True)[1].astype(np.int32)
        return np.minimum(rank[self.a], rank[self.b])


def quantile_of_falling(
    values: npt.NDArray[np.float64], order: npt.NDArray[np.int64], share: float
) -> float:
    """numpy's linear quantile of ``values[order]``, which fall, without a copy of them."""
    last = len(order) - 1
    virtual = share * last
    low = int(np.floor(virtual))
    below = float(values[order[last - low]])
    above = float(values[order[max(last - low - 1, 0)]])
    weight = virtual - low
    # Two forms, as in numpy, so that the result is exact at both ends.
    if weight < 0.5:
        return below + (above - below) * weight
    return above - (above - below) * (1 - weight)


def connected(a: Ints, b: Ints, count: int) -> npt.NDArray[np.int64]:
    """Components [count] of the graph whose edges are ``a``-``b``: each image's smallest kin."""
    kin = np.arange(count, dtype=np.int64)
    while True:
        smaller = np.minimum(kin[a], kin[b])
        before = kin.copy()
        np.minimum.at(kin, a, smaller)
        np.minimum.at(kin, b, smaller)
        kin = kin[kin]  # pointer jumping: long chains need few rounds
        if (kin == before).all():
            return kin


def _indices(values: npt.ArrayLike, count: int) -> Ints:
    array = np.asarray(values)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ValueError(f"pairs must be whole numbers [P], got {array.dtype} {list(array.shape)}")
    if array.size and not (array.min() >= 0 and array.max() < count):
        raise ValueError(
            f"pairs must name images 0 to {count - 1}, got {array.min()} to {array.max()}"
        )
    return array.astype(np.int32)
