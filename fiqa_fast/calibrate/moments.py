# SPDX-License-Identifier: Apache-2.0
"""Second moments of a stream of rows, float64, in memory that does not grow with the rows."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor


@dataclasses.dataclass
class Moments:
    """Sums over rows z [L, V] of every block's V variables: of z - origin, and of its products.

    The origin, any point near the rows, keeps the products from cancelling when the covariance is
    formed of them.
    """

    origin: Tensor  # [L, V]
    total: Tensor  # [L, V]
    products: Tensor  # [L, V, V]
    rows: int = 0

    @classmethod
    def around(cls, origin: Tensor) -> Moments:
        L, V = origin.shape
        return cls(origin.clone(), origin.new_zeros(L, V), origin.new_zeros(L, V, V))

    def add(self, rows: Tensor) -> None:
        """Add rows [R, L, V], float64."""
        shifted = (rows - self.origin).transpose(0, 1).contiguous()  # [L, R, V]
        self.total += shifted.sum(1)
        self.products.baddbmm_(shifted.mT, shifted)
        self.rows += len(rows)

    def merged(self, other: Moments) -> Moments:
        """Both streams' rows in one. They must have one origin."""
        assert torch.equal(self.origin, other.origin)
        return Moments(
            self.origin,
            self.total + other.total,
            self.products + other.products,
            self.rows + other.rows,
        )

    def mean(self, block: int) -> Tensor:  # [V]
        return self.origin[block] + self.total[block] / self.rows

    def covariance(self, block: int) -> Tensor:  # [V, V]
        mean = self.total[block] / self.rows
        return self.products[block] / self.rows - mean.outer(mean)
