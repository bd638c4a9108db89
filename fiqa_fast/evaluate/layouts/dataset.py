# SPDX-License-Identifier: Apache-2.0
"""What every layout comes down to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

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
