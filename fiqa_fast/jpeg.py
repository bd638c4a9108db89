# SPDX-License-Identifier: Apache-2.0
"""Plain JPEGs, which most crops are, straight through libjpeg-turbo.

Pillow decodes them by the same library, to the same bits, but takes almost as long again around it
and keeps the interpreter meanwhile, so that threads help less. Whatever is not plain and whole is
left to it: it decides what an image is, and says what is wrong with one.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import simplejpeg

from fiqa_fast.image_limits import check_pixels, check_scans, room_for

__all__ = ["decode_plain"]

_START = b"\xff\xd8\xff"
_TURNING = (b"Exif\0", b"tiff:Orientation")  # what may turn the image: EXIF and XMP


def decode_plain(data: bytes) -> npt.NDArray[np.uint8] | None:
    """Decode a grey or YCbCr JPEG of 8 bits that nothing turns to RGB, uint8 [H, W, 3].

    Returns None for everything else, and for what libjpeg-turbo warns of. Raises
    :class:`fiqa_fast.ImageError` where the image asks for too much, before any pixel is decoded.
    """
    if not data.startswith(_START) or any(mark in data for mark in _TURNING):
        return None
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    if colorspace not in ("YCbCr", "Gray"):
        return None
    pixels = int(height) * int(width)
    check_pixels(int(width), int(height))
    check_scans(data, pixels)
    with room_for(pixels):
        try:
            decoded: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB")
        except ValueError:
            return None
    return decoded
