# SPDX-License-Identifier: Apache-2.0
"""The images of insightface's ``.bin`` sets: a pickle of (encoded images, one flag per pair)."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from functools import partial
from typing import Any, BinaryIO

import numpy as np

from fiqa_fast.errors import ImageError
from fiqa_fast.gallery.errors import InputError
from fiqa_fast.gallery.pickles import Array, Blob, PickleContentError, read_blob, read_pickle
from fiqa_fast.gallery.sources.container import Container, Entry, check_size, fails
from fiqa_fast.gallery.sources.item import Opening
from fiqa_fast.gallery.text import printable
from fiqa_fast.images import open_regular

__all__ = ["PairSetSource", "image_blob", "image_key", "open_blob", "open_pair_set", "read_set"]


def read_set(file: BinaryIO) -> tuple[list[Any] | tuple[Any, ...], Any]:
    """Return the images, not read yet, and the flags. Raises :class:`PickleContentError`."""
    content = read_pickle(file)
    if not isinstance(content, (list, tuple)) or len(content) != 2:
        raise PickleContentError("wanted a list of images and one of flags")
    images, flags = content
    if not isinstance(images, (list, tuple)):
        raise PickleContentError("wanted a list of images, got something else")
    return images, flags


def image_key(number: int) -> str:
    """Return what image ``number`` is called, as extraction scripts call it."""
    return f"{number:05d}"


def image_blob(number: int, image: Any) -> Blob:
    """Return where an image stands. Raises :class:`PickleContentError` for what is none."""
    if isinstance(image, Blob):
        return image
    if not isinstance(image, Array) or image.data is None or image.dtype != np.uint8:
        raise PickleContentError(f"wanted encoded images, got something else as image {number}")
    # An encoder's output is [length], [length, 1] or [1, length]; decoded pixels are not.
    if math.prod(image.shape) != max(image.shape, default=0):
        shape = list(image.shape)[:4]
        raise PickleContentError(f"wanted encoded images, got pixels {shape} as image {number}")
    return image.data


def open_blob(path: str, blob: Blob) -> BinaryIO:
    """Open an image. Raises :class:`fiqa_fast.ImageError`."""
    check_size(blob.length)
    with open_regular(path) as file:
        try:
            return io.BytesIO(read_blob(file, blob))
        except ValueError as error:
            raise ImageError(f"damaged: {error}") from error


class PairSetSource(Container):
    """Keys are the images' numbers, of five digits or more; the flags do not matter."""

    _images: list[Any] | tuple[Any, ...]

    def count(self) -> int:
        """Return how many images there are."""
        return len(self._images)

    def _entries(self) -> Iterator[Entry]:
        for number, image in enumerate(self._images):
            try:
                opener = partial(open_blob, self.path, image_blob(number, image))
            except PickleContentError as error:
                yield image_key(number), fails(str(error))
            else:
                yield image_key(number), opener


def open_pair_set(path: str, opening: Opening) -> PairSetSource:
    """Open a ``.bin``: where its images stand is kept, some hundred bytes of memory each."""
    source = PairSetSource(path, opening)
    try:
        with open_regular(path) as file:
            source._images, _ = read_set(file)
    except PickleContentError as error:
        raise InputError(f"{printable(path)}: no set of image pairs: {error}") from error
    return source
