# SPDX-License-Identifier: Apache-2.0
"""Seven ways in which a face crop gets worse, each with a strength from 0 to 5.

Whole levels 1 to 5 have the parameters of ``_PARAMETERS``; between them, the parameter is
interpolated, and it goes to "nothing" at level 0. Lengths hold for a side of 112 pixels and grow
with the image; the blocks of JPEG and the grain of noise do not. What is random (the direction of
motion, the noise, where an occlusion lies) is drawn from the generator alike at every level: a
generator of the same seed gives one image the same damage, only stronger.

No operation here depends on threads or on a linear algebra library.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

__all__ = ["MAX_LEVEL", "TYPES", "degrade", "parameter", "random_degradation"]

Pixels = npt.NDArray[np.uint8]  # [H, W, 3]
Floats = npt.NDArray[np.float32]

# The parameter of each type at the levels 0, 1, ..., 5.
_PARAMETERS: dict[str, tuple[float, ...]] = {
    "gblur": (0, 0.8, 1.4, 2.0, 3.0, 4.5),  # standard deviation of the Gaussian, pixels
    "mblur": (1, 5, 9, 13, 17, 23),  # length of the line that a point becomes, pixels
    "down": (112, 56, 36, 26, 18, 12),  # side to which 112 pixels are reduced
    "jpeg": (100, 30, 18, 12, 8, 4),  # quality of the encoder
    "noise": (0, 8, 16, 26, 38, 55),  # strength, grey levels
    "dark": (1, 1.6, 2.4, 3.4, 4.8, 6.5),  # exponent of the tone curve
    "occl": (0, 0.08, 0.16, 0.26, 0.38, 0.52),  # share of the image that is covered
}
TYPES = tuple(_PARAMETERS)
MAX_LEVEL = 5
_SIDE = 112  # of the image that lengths in pixels refer to


def parameter(kind: str, level: float) -> float:
    """Return the parameter of ``kind`` at ``level``; raises ValueError for either out of range."""
    if kind not in TYPES:
        raise ValueError(f"kind must be one of {', '.join(TYPES)}, got {kind!r}")
    if not 0 <= level <= MAX_LEVEL:  # nan too
        raise ValueError(f"level must be from 0 to {MAX_LEVEL}, got {level!r}")
    return float(np.interp(level, range(MAX_LEVEL + 1), _PARAMETERS[kind]))


def degrade(pixels: Pixels, kind: str, level: float, rng: np.random.Generator) -> Pixels:
    """Return a degraded copy of an image; the image itself at level 0.

    Args:
        pixels: uint8 RGB [H, W, 3].
        kind: one of :data:`TYPES`: ``gblur`` Gaussian blur; ``mblur`` motion blur in a random
            direction; ``down`` reduced by averaging and enlarged again, bicubically; ``jpeg``
            with halved chroma; ``noise`` Gaussian, mostly alike in the three channels; ``dark``
            ``255 (v / 255) ** exponent``; ``occl`` a rectangle of one colour, anywhere.
        level: strength, 0 to 5.
        rng: where the random choices come from.

    Raises:
        ValueError: for another type or level, or another kind of array.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.size == 0:
        raise ValueError(
            f"pixels must be uint8 RGB [H, W, 3], got {pixels.dtype} {list(pixels.shape)}"
        )
    value = parameter(kind, level)
    return _FUNCTIONS[kind](pixels, value, rng) if level > 0 else pixels


def random_degradation(
    rng: np.random.Generator, types: Sequence[str] = TYPES, clean_share: float = 0.4
) -> tuple[str | None, float]:
    """Draw a type and a level in (0, 5], both uniformly; ``(None, 0.0)`` with ``clean_share``.

    Raises ValueError for a type that is not known, for none, and for a share outside [0, 1].
    """
    for kind in types:
        parameter(kind, 0)
    if not types:
        raise ValueError(f"types must be some of {', '.join(TYPES)}, got none")
    if not 0 <= clean_share <= 1:
        raise ValueError(f"clean_share must be from 0 to 1, got {clean_share!r}")
    if rng.random() < clean_share:
        return None, 0.0
    kind = types[int(rng.integers(len(types)))]
    return kind, MAX_LEVEL * (1.0 - float(rng.random()))


def _scale(pixels: Pixels) -> float:
    return math.sqrt(pixels.shape[0] * pixels.shape[1]) / _SIDE


def _to_pixels(values: Floats) -> Pixels:
    pixels: Pixels = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return pixels


def _blur(pixels: Pixels, sigma: float, rng: np.random.Generator) -> Pixels:
    sigma *= _scale(pixels)
    offsets = np.arange(-math.ceil(3 * sigma), math.ceil(3 * sigma) + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    taps = [(int(k), float(w)) for k, w in zip(offsets, weights / weights.sum(), strict=True)]
    rows = _weighted_sum(pixels.astype(np.float32), [(k, 0, w) for k, w in taps])
    return _to_pixels(_weighted_sum(rows, [(0, k, w) for k, w in taps]))


def _motion(pixels: Pixels, length: float, rng: np.random.Generator) -> Pixels:
    angle = math.pi * rng.random()
    length = 1 + (length - 1) * _scale(pixels)
    dy, dx = math.sin(angle), math.cos(angle)
    steep = max(abs(dy), abs(dx))
    reach = length * steep  # along the axis that the line is closer to
    slope = (dx / dy) if abs(dy) == steep else (dy / dx)
    taps: list[tuple[int, int, float]] = []
    for k in range(-math.ceil(reach / 2), math.ceil(reach / 2) + 1):
        inside = min(1.0, reach / 2 + 0.5 - abs(k)) / reach  # of this pixel's length, the line has
        across = math.floor(slope * k)
        fraction = slope * k - across
        for step, weight in ((across, 1 - fraction), (across + 1, fraction)):
            if inside > 0 and weight > 0:
                y, x = (k, step) if abs(dy) == steep else (step, k)
                taps.append((y, x, inside * weight))
    total = sum(weight for _, _, weight in taps)
    taps = [(y, x, weight / total) for y, x, weight in taps]
    return _to_pixels(_weighted_sum(pixels.astype(np.float32), taps))


def _weighted_sum(image: Floats, taps: list[tuple[int, int, float]]) -> Floats:
    """Return the sum of weight x the image moved by (y, x), mirrored beyond its edges."""
    height, width, channels = image.shape
    up = max(abs(y) for y, _, _ in taps)
    left = max(abs(x) for _, x, _ in taps)
    rows, columns = _mirrored(height, up), _mirrored(width, left)
    # Two dimensions, so that every move is a slice of long rows.
    padded = image[rows][:, columns].reshape(len(rows), -1)
    total = np.zeros((height, width * channels), np.float32)
    term = np.empty_like(total)
    for y, x, weight in taps:
        start = (left + x) * channels
        moved = padded[up + y : up + y + height, start : start + width * channels]
        total += np.multiply(moved, np.float32(weight), out=term)
    return total.reshape(image.shape)


def _mirrored(length: int, margin: int) -> npt.NDArray[np.int64]:
    """Return the indices -margin .. length - 1 + margin, reflected without repeating the edge."""
    period = max(1, 2 * (length - 1))
    index = np.arange(-margin, length + margin) % period
    return np.minimum(index, period - index) if length > 1 else np.zeros_like(index)


def _reduce(pixels: Pixels, side: float, rng: np.random.Generator) -> Pixels:
    height, width = pixels.shape[:2]
    # The length that scales is what one pixel of the small image covers.
    block = 1 + (_SIDE / side - 1) * _scale(pixels)
    rows = _averaged(pixels.astype(np.float32), max(1, round(height / block)))
    small = _averaged(rows.swapaxes(0, 1), max(1, round(width / block)))
    small = np.rint(small)  # as an image of that size would be
    return _to_pixels(_enlarged(_enlarged(small, width).swapaxes(0, 1), height))


def _averaged(image: Floats, size: int) -> Floats:  # [H, ...] -> [size, ...]
    """Average over ``size`` equal parts of the first axis, pixels at a border shared."""
    # Differences of the running integral, which is linear within a pixel.
    length = len(image)
    integral = np.zeros((length + 1, *image.shape[1:]))
    np.cumsum(image, axis=0, out=integral[1:])
    borders = np.arange(size + 1) * (length / size)
    whole = np.minimum(borders.astype(np.int64), length - 1)
    part = (borders - whole).reshape(-1, *[1] * (image.ndim - 1))
    at = integral[whole] * (1 - part) + integral[whole + 1] * part
    averages: Floats = (np.diff(at, axis=0) * (size / length)).astype(np.float32)
    return averages


def _enlarged(image: Floats, size: int) -> Floats:  # [H, ...] -> [size, ...]
    """Interpolate along the first axis: Keys' cubic with a = -0.75, half-pixel centres."""
    length = len(image)
    centres = (np.arange(size) + 0.5) * (length / size) - 0.5
    base = np.floor(centres).astype(np.int64)
    t = (centres - base).astype(np.float32).reshape(-1, *[1] * (image.ndim - 1))
    total = np.zeros((size, *image.shape[1:]), np.float32)
    for step in (-1, 0, 1, 2):
        total += image[np.clip(base + step, 0, length - 1)] * _cubic(np.abs(step - t))
    return total


def _cubic(x: Floats, a: float = -0.75) -> Floats:
    near: Floats = ((a + 2) * x - (a + 3)) * x * x + 1
    far: Floats = ((x - 5) * x + 8) * x * a - 4 * a
    return np.where(x <= 1, near, far)


def _jpeg(pixels: Pixels, quality: float, rng: np.random.Generator) -> Pixels:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=round(quality), subsampling="4:2:0")
    with Image.open(file, formats=("JPEG",)) as image:
        return np.array(image, dtype=np.uint8)


def _noise(pixels: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    # A sensor's noise, demosaiced: most of it is brightness, some is colour.
    brightness = rng.standard_normal((*pixels.shape[:2], 1), np.float32)
    colour = rng.standard_normal(pixels.shape, np.float32)
    noise = np.float32(0.63) * brightness + np.float32(0.31) * colour
    return _to_pixels(pixels + np.float32(strength) * noise)


def _darken(pixels: Pixels, exponent: float, rng: np.random.Generator) -> Pixels:
    curve = 255 * (np.arange(256) / 255) ** exponent
    darkened: Pixels = np.rint(curve).astype(np.uint8)[pixels]
    return darkened


def _occlude(pixels: Pixels, share: float, rng: np.random.Generator) -> Pixels:
    at_y, at_x = rng.random(2)
    colour = rng.integers(0, 256, 3, dtype=np.uint8)
    height, width = (round(length * math.sqrt(share)) for length in pixels.shape[:2])
    top = round(at_y * (pixels.shape[0] - height))
    left = round(at_x * (pixels.shape[1] - width))
    covered: Pixels = pixels.copy()
    covered[top : top + height, left : left + width] = colour
    return covered


_FUNCTIONS: dict[str, Callable[[Pixels, float, np.random.Generator], Pixels]] = {
    "gblur": _blur,
    "mblur": _motion,
    "down": _reduce,
    "jpeg": _jpeg,
    "noise": _noise,
    "dark": _darken,
    "occl": _occlude,
}
