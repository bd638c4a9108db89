# SPDX-License-Identifier: Apache-2.0
"""From files to pixels: decoding and resizing, with one behaviour for every entry point.

Whatever is wrong with an image becomes one :class:`fiqa_fast.ImageError` with a one-line text.
"""

from __future__ import annotations

import io
import os
import re
import stat
import warnings
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import (  # the plugins register the formats below; the others stay unloaded
    BmpImagePlugin,  # noqa: F401
    GifImagePlugin,  # noqa: F401
    Image,
    Jpeg2KImagePlugin,  # noqa: F401
    JpegImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    PpmImagePlugin,  # noqa: F401
    TiffImagePlugin,  # noqa: F401
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401
)

from fiqa_fast.errors import ImageError
from fiqa_fast.image_limits import (
    MAX_BYTES,
    MAX_PIXELS,
    check_file,
    check_pixels,
    check_scans,
    room_for,
)
from fiqa_fast.jpeg import decode_plain

__all__ = [
    "FORMATS",
    "MAX_BYTES",
    "MAX_PIXELS",
    "Pixels",
    "ResizeWarning",
    "check_array",
    "decode",
    "fit",
    "load_image",
    "resize",
    "to_tensor",
]

Pixels = npt.NDArray[np.uint8]

# Photographs only: Pillow's other formats (EPS among them) start interpreters or are not images.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "JPEG2000")

_WANTED = "wanted a JPEG, PNG, WebP, BMP, TIFF, GIF, PPM or JPEG 2000 image"
# Modes that Pillow converts to RGB with a defined meaning; 16-bit grey is scaled here.
_RGB_MODES = frozenset(("1", "L", "P", "LA", "PA", "La", "RGB", "RGBA", "RGBa", "RGBX", "CMYK"))
_RGB_MODES |= {"YCbCr", "HSV"}
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION, _BITS_PER_SAMPLE, _PHOTOMETRIC = 0x0112, 258, 262


class ResizeWarning(UserWarning):
    """An image was reduced more than twofold without antialiasing, which aliases fine detail."""


def decode(source: bytes | str | os.PathLike[str] | BinaryIO) -> Pixels:
    """Decode one image to RGB.

    ``source`` is the encoded image as bytes, a path, or a seekable binary file. Of an animation
    or a multi-page file, the first frame is taken. The EXIF orientation is applied, as OpenCV
    does. Grey, palette, CMYK and YCbCr images are converted to RGB without colour management;
    an alpha channel is dropped, not blended; 16-bit grey is scaled to 8 bits.

    Returns a uint8 array [H, W, 3]. Raises :class:`fiqa_fast.ImageError` where there is no such
    image: missing, empty, longer than 32 MiB, truncated, no known format, more than 64 Mpixel by
    its header (checked before any pixel is decoded), or a pixel type without a defined conversion
    (32-bit, float).
    """
    try:
        if isinstance(source, (bytes, bytearray, memoryview)):
            return _decode_file(io.BytesIO(source))
        if isinstance(source, (str, os.PathLike)):
            with open_regular(source) as file:
                return _decode_file(file)
        return _decode_file(source)
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError("out of memory while decoding") from error
    except Exception as error:
        # Damaged files make Pillow raise nearly anything: OSError, SyntaxError, ValueError,
        # struct.error, zlib.error, OverflowError, IndexError, DecompressionBombError ...
        raise ImageError(describe(error)) from error


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading; a pipe, a socket or a device is refused, never opened.

    Opening a pipe would wait for a writer for ever. Raises :class:`fiqa_fast.ImageError`.
    """
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISREG(mode):
            return open(path, "rb")
    except FileNotFoundError as error:
        if os.path.islink(path):
            raise ImageError(f"dangling link to {_one_line(os.readlink(path))}") from error
        raise ImageError("no such file") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise ImageError(describe(error)) from error
    kinds = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"))
    got = next((name for is_kind, name in kinds if is_kind(mode)), "a device")
    raise ImageError(f"wanted a file, got {got}")


def describe(error: BaseException) -> str:
    """Return one line that says what ``error`` is about, without paths and object addresses."""
    if isinstance(error, ImageError):
        return str(error)
    if isinstance(error, UnidentifiedImageError):
        return f"{_WANTED}, got something else, or a damaged header"
    if isinstance(error, Image.DecompressionBombError):
        found = re.search(r"\d+", str(error))
        got = f"{int(found[0]) // 2**20} Mpixel" if found else "far more"
        return f"wanted at most {MAX_PIXELS // 2**20} Mpixel, got {got}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[0].lower() + error.strerror[1:]
    text = _one_line(str(error)) or type(error).__name__
    if isinstance(error, OSError):
        return text
    return f"damaged image: {text}"


def _one_line(text: str, limit: int = 200) -> str:
    text = " ".join(text.encode("utf-8", "backslashreplace").decode("utf-8").split())
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _decode_file(file: BinaryIO) -> Pixels:
    if not file.read(1):
        raise ImageError(f"{_WANTED}, got an empty file")
    check_file(file)
    # Read whole: what asks a file for so many bytes gets room for them, whatever the file has.
    data = file.read()
    pixels = decode_plain(data)
    if pixels is not None:
        return pixels
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        width, height = image.size
        check_pixels(width, height)
        if image.format in ("JPEG", "MPO"):  # the latter is several JPEGs in one file
            check_scans(data, width * height)
        with room_for(width * height):
            image.load()
            return _to_rgb(image)


def _to_rgb(image: Image.Image) -> Pixels:
    """Return the pixels of a loaded Pillow image as RGB, upright."""
    try:
        method = _TRANSPOSE.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF says nothing about the pixels
        method = None
    depth = _grey_depth(image)
    if depth is not None:
        grey = _scale_grey(image, depth)
        image = Image.fromarray(grey)
    elif image.mode not in _RGB_MODES:
        raise ImageError(f"wanted 8-bit colour or 8- or 16-bit grey, got pixels of {image.mode!r}")
    if image.mode == "La":  # premultiplied alpha: Pillow converts it in two steps
        image = image.convert("LA")
    elif image.mode == "RGBa":
        image = image.convert("RGBA")
    if image.mode != "RGB":
        image = image.convert("RGB")
    if method is not None:
        image = image.transpose(method)
    return np.array(image, dtype=np.uint8)


def _grey_depth(image: Image.Image) -> int | None:
    """Return the bits per pixel of deep grey images; None for all others."""
    if image.mode.startswith("I;16"):
        tags = getattr(image, "tag_v2", None)
        bits = tags.get(_BITS_PER_SAMPLE, (16,)) if tags is not None else (16,)
        return int(bits[0] if isinstance(bits, tuple) else bits)
    if image.mode == "I" and getattr(image, "format", None) in ("PPM", "PNG"):
        return 16  # Pillow's wide integer mode, but these formats hold at most 16 bits
    return None


def _scale_grey(image: Image.Image, depth: int) -> Pixels:
    highest = 2**depth - 1
    values = np.minimum(np.asarray(image).astype(np.uint32), highest)
    tags = getattr(image, "tag_v2", None)
    if tags is not None and tags.get(_PHOTOMETRIC) == 0:
        values = highest - values  # white is zero, which Pillow sees to for 8 bits only
    scaled: Pixels = ((values * 255 + highest // 2) // highest).astype(np.uint8)
    return scaled


def load_image(
    item: str | os.PathLike[str] | Image.Image | Pixels,
    size: int,
) -> torch.Tensor:  # [3, size, size]
    """Load one image of any kind at the size a model wants.

    ``item`` is a path, a Pillow image (treated as its file would be, EXIF orientation included)
    or an RGB array uint8 [H, W, 3]. Returns a uint8 tensor [3, size, size]; see :func:`decode`
    and :func:`resize`. Raises :class:`fiqa_fast.ImageError`, which names the path.
    """
    if isinstance(item, np.ndarray):
        pixels = check_array(item)
    elif isinstance(item, Image.Image):
        pixels = _decode_pillow(item)
    elif isinstance(item, (str, os.PathLike)):
        try:
            pixels = decode(item)
        except ImageError as error:
            raise ImageError(f"{_one_line(os.fspath(item))}: {error}") from error
    else:
        raise ImageError(
            "wanted a path, a PIL image or a uint8 RGB array [H, W, 3], "
            f"got {type(item).__module__}.{type(item).__qualname__}"
        )
    fitted = fit(pixels, size)
    if fitted.reduction > 2:
        _warn(pixels.shape[0], pixels.shape[1], size)
    return torch.from_numpy(fitted.planes)


def check_array(array: Pixels) -> Pixels:
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or array.size == 0:
        raise ImageError(
            f"wanted an RGB array uint8 [H, W, 3], got {array.dtype} {list(array.shape)}"
        )
    return array


def _decode_pillow(image: Image.Image) -> Pixels:
    try:
        image.load()
        return _to_rgb(image)
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(describe(error)) from error


def to_tensor(pixels: Pixels) -> torch.Tensor:  # [H, W, 3] -> [3, H, W]
    """Return RGB pixels uint8 [H, W, 3] as a contiguous uint8 tensor [3, H, W]."""
    return torch.from_numpy(np.array(check_array(pixels).transpose(2, 0, 1), order="C"))


class Fitted(NamedTuple):
    """Pixels at the model's size, and how much they were reduced (1 or less: they were not)."""

    planes: Pixels  # [3, size, size]
    reduction: float
    resized: bool


def fit(pixels: Pixels, size: int) -> Fitted:
    """Bring RGB pixels uint8 [H, W, 3] to planes [3, size, size], without torch and its threads.

    The same arithmetic as :func:`resize`, for decode threads; nothing is warned about.
    """
    height, width = pixels.shape[:2]
    planes = pixels.transpose(2, 0, 1)
    if (height, width) != (size, size):
        return Fitted(_bilinear_numpy(planes, size), max(height, width) / size, True)
    return Fitted(np.array(planes, order="C"), 1.0, False)


def resize(images: torch.Tensor, size: int) -> torch.Tensor:  # [..., H, W] -> [..., size, size]
    """Resize uint8 images to ``size`` x ``size``: bilinear, half-pixel centres, no antialiasing.

    These are the semantics of OpenCV's ``INTER_LINEAR`` (to one grey level: OpenCV rounds its
    weights to 11 bits). Images of the wanted size are returned as they are. The result does not
    depend on the device, the threads or the other images. Issues a :class:`ResizeWarning` where
    a side shrinks more than twofold. Raises :class:`fiqa_fast.ImageError` for other dtypes.
    """
    if images.dtype != torch.uint8 or images.ndim < 2 or 0 in images.shape[-2:]:
        raise ImageError(
            f"wanted uint8 images [..., H, W], got {images.dtype} {list(images.shape)}"
        )
    height, width = images.shape[-2:]
    if (height, width) == (size, size):
        return images
    if max(height, width) > 2 * size:
        _warn(height, width, size)
    return _bilinear_torch(images, size)


def _warn(height: int, width: int, size: int) -> None:
    warnings.warn(
        f"an image of {width} x {height} is reduced more than twofold to {size} x {size} without "
        "antialiasing; scores are meant for aligned face crops of about that size",
        ResizeWarning,
        stacklevel=3,
    )


def _taps(length: int, size: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Any]:
    """Return, for one axis, both neighbours of every target pixel and the second one's weight."""
    centres = (np.arange(size, dtype=np.float64) + 0.5) * (length / size) - 0.5
    centres = np.clip(centres, 0, length - 1)
    low = centres.astype(np.int64)
    return low, np.minimum(low + 1, length - 1), (centres - low).astype(np.float32)


def _lerp(a: Any, b: Any, weight: Any) -> Any:
    return a + (b - a) * weight


# The two below are the same float32 operations in the same order, so that a path and a tensor of
# its pixels give the same bits. torch's interpolate is no help here: a decode thread must not
# start torch's thread pool, and its rounding differs between devices.
def _bilinear_numpy(planes: Pixels, size: int) -> Pixels:  # [..., H, W]
    y0, y1, wy = _taps(planes.shape[-2], size)
    x0, x1, wx = _taps(planes.shape[-1], size)

    def tap(y: npt.NDArray[np.int64], x: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        return planes[..., y[:, None], x].astype(np.float32)

    top = _lerp(tap(y0, x0), tap(y0, x1), wx)
    bottom = _lerp(tap(y1, x0), tap(y1, x1), wx)
    blend = np.floor(_lerp(top, bottom, wy[:, None]) + np.float32(0.5))
    return np.ascontiguousarray(blend.astype(np.uint8))


def _bilinear_torch(images: torch.Tensor, size: int) -> torch.Tensor:  # [..., H, W]
    def taps(length: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        low, high, weight = (torch.from_numpy(t).to(images.device) for t in _taps(length, size))
        return low, high, weight

    y0, y1, wy = taps(images.shape[-2])
    x0, x1, wx = taps(images.shape[-1])

    def tap(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return images[..., y[:, None], x].to(torch.float32)

    top = _lerp(tap(y0, x0), tap(y0, x1), wx)
    bottom = _lerp(tap(y1, x0), tap(y1, x1), wx)
    blend = torch.floor(_lerp(top, bottom, wy[:, None]) + 0.5)
    return blend.to(torch.uint8).contiguous()
