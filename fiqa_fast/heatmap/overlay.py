# SPDX-License-Identifier: Apache-2.0
"""A map's colours blended over the crop."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fiqa_fast.heatmap.colours import Colours, Limits, find_limits
from fiqa_fast.heatmap.grid import PatchGrid

__all__ = ["Painter"]

Floats = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]


class Painter:
    """Paints maps over crops; may be called from several threads.

    Args:
        grid: the model's patches.
        table: the colours from low to high, uint8 [n, 3].
        alpha: 0 leaves the crop as it is, 1 shows the colours alone.
        limits: one scale for every map; None for each map's own, from its lowest patch to its
            highest.
    """

    def __init__(self, grid: PatchGrid, table: Pixels, alpha: float, limits: Limits | None) -> None:
        self.grid, self.table, self.limits = grid, table, limits
        self._keep = np.float32(1 - alpha)
        # Half a level is added so that cutting off the fraction rounds.
        self._tint = (table * np.float32(alpha) + np.float32(0.5)).astype(np.float32)

    def limits_of(self, values: Floats) -> Limits:
        """The limits that a map is painted with."""
        return self.limits or find_limits(values, (0, 100), None, None)

    def paint(self, crop: Pixels, values: Floats) -> Pixels:
        """``crop`` uint8 [S, S, 3] under the map ``values`` [gh, gw]: a new image of its size.

        Pixels that no patch covers stay as they are: the model does not see them.
        """
        colours = Colours(self.table, *self.limits_of(values))
        tint = np.take(self._tint, colours.index(self.grid.spread(values)), axis=0)
        covered = self.grid.covered
        painted: Pixels = crop.copy()
        painted[:covered, :covered] = crop[:covered, :covered] * self._keep + tint
        return painted
