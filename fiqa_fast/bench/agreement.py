# SPDX-License-Identifier: Apache-2.0
"""Whether scores are the published ones: a rate says nothing of an engine whose are not."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from ..ranks import spearman

__all__ = ["Agreement", "agreement"]

# Half of what distinguishes one image from another: no arithmetic of 16 bits is that wrong.
_LARGEST_ERROR = 0.5


@dataclass(frozen=True)
class Agreement:
    """Scores beside the published ones in float32.

    Attributes:
        max_error_over_std: the largest difference, over the standard deviation of the scores.
        spearman: the rank correlation.
        images: how many were compared.
    """

    max_error_over_std: float
    spearman: float
    images: int

    @property
    def wrong(self) -> bool:
        """Whether this is another score; not, where there are too few images to tell."""
        if math.isnan(self.max_error_over_std):
            return False
        return not self.max_error_over_std <= _LARGEST_ERROR


def agreement(scores: Tensor, exact: Tensor) -> Agreement:
    """Compare scores [n] with the published ones [n]. One image has no standard deviation: NaN."""
    if scores.shape != exact.shape:
        raise ValueError(f"wanted scores {list(exact.shape)}, got {list(scores.shape)}")
    error = (scores.double() - exact.double()).abs()
    largest = float("inf") if error.isnan().any() else float(error.max())
    deviation = float(exact.double().std()) if len(exact) > 1 else float("nan")
    relative = largest / deviation if deviation else float("nan")
    return Agreement(relative, spearman(scores.numpy(), exact.numpy()), len(exact))
