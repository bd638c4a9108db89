# SPDX-License-Identifier: Apache-2.0
"""From encoded bytes to what a model takes: one rule for all images of a run."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, BinaryIO

from fiqa_fast.errors import ImageError
from fiqa_fast.images import Fitted, Pixels, decode, fit

__all__ = ["Reading"]


@dataclass(frozen=True)
class Reading:
    """How images are read: to which size, in which order of colours, resized or not.

    Attributes:
        size: of the planes, pixels.
        bgr: whether red and blue change places. The reference scripts read with OpenCV, which
            gives blue first, and hand that to models that were trained on red first; scores
            that are to be theirs need the same.
        resize: whether an image of another size is resized bilinearly; else it is refused.
    """

    size: int
    bgr: bool = False
    resize: bool = True

    def __call__(self, source: bytes | str | os.PathLike[str] | BinaryIO) -> Fitted:
        """Read one image: encoded bytes, a path or a seekable binary file.

        Returns planes uint8 [3, size, size]. Raises :class:`fiqa_fast.ImageError` where
        :func:`fiqa_fast.images.decode` does, and for another size where that is refused.
        """
        return self.fit(decode(source))

    def fit(self, pixels: Pixels) -> Fitted:
        """Bring RGB pixels uint8 [H, W, 3] to planes. Raises :class:`fiqa_fast.ImageError`."""
        height, width = pixels.shape[:2]
        if not self.resize and (height, width) != (self.size, self.size):
            raise ImageError(f"wanted {self.size} x {self.size}, got {width} x {height}")
        return fit(pixels[:, :, ::-1] if self.bgr else pixels, self.size)

    def describe(self) -> dict[str, Any]:
        """Everything that decides the planes of an image, as JSON-able facts."""
        return {
            "color": "bgr" if self.bgr else "rgb",
            "resize": "bilinear" if self.resize else "refused",
            "size": self.size,
        }
