# SPDX-License-Identifier: Apache-2.0
"""From a value per patch to a value per pixel.

Patch i of a ViT covers the pixels i p .. (i + 1) p - 1, so its value belongs to the pixel position
(i + 1/2) p - 1/2. Stretching a map over the crop would be right only where p divides the side: 12
patches of 9 pixels cover 108 of 112, and the model never sees the other four.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["PatchGrid"]

Floats = npt.NDArray[np.float32]


class PatchGrid:
    """The patches of a square image.

    Args:
        image: side of the image in pixels.
        patch: side of a patch in pixels; what is left beyond the last whole patch is not covered.
        smooth: interpolate linearly between the centres of patches, so that every pixel's value
            lies between those of its neighbours and a patch's centre has the patch's own; False
            gives every pixel its patch's value.
    """

    def __init__(self, image: int, patch: int, smooth: bool = True) -> None:
        self.side = image // patch  # patches per side
        self.covered = self.side * patch  # pixels per side
        self._weights = _linear(self.side, patch) if smooth else _nearest(self.side, patch)

    def spread(self, values: Floats) -> Floats:
        """Values of patches [..., side, side] as those of pixels [..., covered, covered]."""
        pixels: Floats = self._weights @ values.astype(np.float32) @ self._weights.T
        return pixels


def _nearest(side: int, patch: int) -> Floats:  # [side * patch, side]
    return np.repeat(np.eye(side, dtype=np.float32), patch, axis=0)


def _linear(side: int, patch: int) -> Floats:  # [side * patch, side]
    pixels = np.arange(side * patch)
    # In units of patches, from the first one's centre; the rim has nothing to interpolate with.
    place = np.clip((pixels + 0.5) / patch - 0.5, 0, side - 1)
    low = np.minimum(place.astype(np.int64), max(side - 2, 0))
    weights = np.zeros((len(pixels), side), np.float64)
    weights[pixels, low] = 1 - (place - low)
    if side > 1:
        weights[pixels, low + 1] = place - low
    return weights.astype(np.float32)
