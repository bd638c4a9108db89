# SPDX-License-Identifier: Apache-2.0
"""Ridge regression of one block's last variable on the others, from moments, in float64.

With features x and target t, standardised over the rows, C the features' correlation and c their
correlation with the target, the weights of strength a are (C + a I)^-1 c.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from .moments import Moments

STRENGTHS = [10 ** (n / 4) for n in range(-24, 9)]  # quarters of a decade
# Among strengths that do as well as the best on the held-back rows, up to this much of R2, the
# largest is taken: small weights keep their digits in low precision. (On 460 crops, 0.01 cost
# 0.01 of the pAUC ratio of the built-in model on other people, and 0.002 cost 0.003.)
R2_TOLERANCE = 0.002
# A feature that varies by less of its size is its own rounding in float32.
CONSTANT = 1e-6


@dataclasses.dataclass(frozen=True)
class Linear:
    """t = weight . x + offset; ``strength`` of its ridge."""

    weight: Tensor  # [F]
    offset: float
    strength: float


def fit(moments: Moments, block: int, strengths: Sequence[float]) -> list[Linear]:
    """The regression of ``block`` (from 0) at every strength.

    Features that do not vary get no weight.
    """
    mean, covariance = moments.mean(block), moments.covariance(block)
    deviation = covariance.diagonal()[:-1].clamp(min=0).sqrt()
    varies = deviation > CONSTANT * mean[:-1].abs()
    inverse = torch.where(varies, 1 / deviation, 0.0)
    correlation = covariance[:-1, :-1] * inverse.outer(inverse)
    values, vectors = torch.linalg.eigh(correlation)
    along = vectors.T @ (covariance[:-1, -1] * inverse)
    fits = []
    for strength in strengths:
        weight = inverse * (vectors @ (along / (values.clamp(min=0) + strength)))
        fits.append(Linear(weight, float(mean[-1] - weight @ mean[:-1]), strength))
    return fits


def r2(moments: Moments, block: int, fit: Linear) -> float:
    """Share of the target's variance over these rows that the regression explains."""
    mean, covariance = moments.mean(block), moments.covariance(block)
    direction = torch.cat([-fit.weight, fit.weight.new_ones(1)])  # of the residual
    bias = direction @ mean - fit.offset
    return float(1 - (direction @ covariance @ direction + bias**2) / covariance[-1, -1])


def choose(fitting: Moments, held_back: Moments, block: int) -> tuple[Linear, float]:
    """The regression of the strength that the held-back rows ask for, and its R2 on them."""
    fits = fit(fitting, block, STRENGTHS)
    scores = [r2(held_back, block, candidate) for candidate in fits]
    good = [n for n, score in enumerate(scores) if score >= max(scores) - R2_TOLERANCE]
    return fits[good[-1]], scores[good[-1]]
