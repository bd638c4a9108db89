# SPDX-License-Identifier: Apache-2.0
"""What every layout comes down to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fiqa_fast.evaluate.trials import MAX_IMPOSTORS, Trials
from fiqa_fast.gallery.errors import InputError
from fiqa_fast.gallery.sources import Item

__all__ = ["Dataset", "Pairs", "code_identities"]

# First image [P], second image [P] (indices of paths), whether both show one person [P].
Pairs = tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.bool_]]


@dataclass(frozen=True)
class Dataset:
    """Images of an evaluation set, and what is known of them.

    Attributes:
        name: of the folder or file, for reports.
        paths: [n], the images' keys in the order of the file or folder, distinct.
        identity: int64 [n], codes from 0 in order of first occurrence; None where pairs alone
            are known.
        pairs: the pairs to compare in file order; None means all pairs of images.
        scores: float64 [n] by name: score columns that the set itself holds.
        items: [n], how to open each image; None where no image is at hand.
    """

    name: str
    paths: list[str]
    identity: npt.NDArray[np.int64] | None = None
    pairs: Pairs | None = None
    scores: dict[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    items: list[Item] | None = None

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.paths)

    def subset(self, kept: npt.NDArray[np.bool_]) -> Dataset:
        """The set of the images that ``kept`` [n] marks, and of the pairs among them."""
        where = np.flatnonzero(kept)
        pairs = self.pairs
        if pairs is not None:
            a, b, genuine = pairs
            both = kept[a] & kept[b]
            place = np.cumsum(kept, dtype=np.int32) - np.int32(1)
            pairs = place[a[both]], place[b[both]], genuine[both]
        return Dataset(
            self.name,
            [self.paths[i] for i in where],
            None if self.identity is None else self.identity[where],
            pairs,
            {name: values[where] for name, values in self.scores.items()},
            None if self.items is None else [self.items[i] for i in where],
        )

    def trials(
        self, embeddings: npt.NDArray[Any], max_impostors: int | None = None, seed: int = 0
    ) -> Trials:
        """The comparisons that the set asks for, of ``embeddings`` [n, E].

        ``max_impostors`` and ``seed`` bound the impostor pairs where all pairs are compared.
        Raises :class:`InputError` where there are no genuine or no impostor pairs.
        """
        limit = MAX_IMPOSTORS if max_impostors is None else max_impostors
        try:
            if self.pairs is not None:
                return Trials.of_pairs(embeddings, *self.pairs, self.identity)
            assert self.identity is not None
            return Trials.of_identities(embeddings, self.identity, limit, seed)
        except ValueError as error:
            raise InputError(f"{self.name}: {error}") from error


def code_identities(names: Sequence[str], where: str) -> npt.NDArray[np.int64]:  # [n]
    """Return identities as codes 0.. in order of first occurrence.

    Raises :class:`InputError` where their pairs would be all genuine or all impostors.
    """
    codes: dict[str, int] = {}
    identity = np.array([codes.setdefault(name, len(codes)) for name in names], np.int64)
    if len(codes) < 2:
        raise InputError(f"{where}: wanted images of two or more identities, got one identity")
    if len(codes) == len(identity):
        raise InputError(
            f"{where}: wanted identities with two or more images, got one image of each"
        )
    return identity
