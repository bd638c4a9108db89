# SPDX-License-Identifier: Apache-2.0
"""insightface's ``.bin`` sets: a pickle of (encoded images, one flag per pair).

Pair i is of the images 2i and 2i + 1.
"""

from __future__ import annotations

import io
import math
import os
from functools import partial
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from fiqa_fast.errors import ImageError
from fiqa_fast.evaluate.readers.files import StrPath, open_input, stem_of
from fiqa_fast.evaluate.readers.layouts.dataset import Dataset
from fiqa_fast.evaluate.readers.pickles import (
    Array,
    Blob,
    PickleContentError,
    read_blob,
    read_pickle,
)
from fiqa_fast.gallery.errors import InputError
from fiqa_fast.gallery.sources import Item, printable
from fiqa_fast.images import open_regular

__all__ = ["open_pair_set"]


def open_pair_set(path: StrPath) -> Dataset:
    """Open a ``.bin`` set. Image i is called ``%05d`` of i, as extraction scripts call it."""
    name = printable(os.fspath(path))
    try:
        with open_input(path) as file:
            content = read_pickle(file)
            if not isinstance(content, (list, tuple)) or len(content) != 2:
                raise PickleContentError("wanted a list of images and one of flags")
            images = [_image(i, image) for i, image in enumerate(_listed(content[0], "images"))]
            genuine = _flags(file, content[1])
    except PickleContentError as error:
        raise InputError(f"{name}: no set of image pairs: {error}") from error
    if not len(genuine) or len(images) != 2 * len(genuine):
        raise InputError(
            f"{name}: wanted two images per flag, got {len(images)} images and {len(genuine)} flags"
        )
    keys = [f"{i:05d}" for i in range(len(images))]
    first = np.arange(0, len(images), 2, dtype=np.int32)
    return Dataset(
        stem_of(path),
        keys,
        pairs=(first, first + np.int32(1), genuine),
        items=[
            Item(key, partial(_open, os.fspath(path), blob))
            for key, blob in zip(keys, images, strict=True)
        ],
    )


def _open(path: str, blob: Blob) -> BinaryIO:
    with open_regular(path) as file:
        try:
            return io.BytesIO(read_blob(file, blob))
        except ValueError as error:
            raise ImageError(f"damaged: {error}") from error


def _listed(value: Any, what: str) -> list[Any] | tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise PickleContentError(f"wanted a list of {what}, got something else")
    return value


def _image(number: int, image: Any) -> Blob:
    if isinstance(image, Blob):
        return image
    if not isinstance(image, Array) or image.data is None or image.dtype != np.uint8:
        raise PickleContentError(f"wanted encoded images, got something else as image {number}")
    # An encoder's output is [length], [length, 1] or [1, length]; decoded pixels are not.
    if math.prod(image.shape) != max(image.shape, default=0):
        shape = list(image.shape)[:4]
        raise PickleContentError(f"wanted encoded images, got pixels {shape} as image {number}")
    return image.data


def _flags(file: BinaryIO, flags: Any) -> npt.NDArray[np.bool_]:  # [P]
    if isinstance(flags, Array):
        values: list[Any] = _array(file, flags)
    else:
        values = list(_listed(flags, "flags"))
    for i, value in enumerate(values):
        if not isinstance(value, int) or value not in (0, 1):
            raise PickleContentError(f"wanted flags, true or false, got another as flag {i}")
    return np.array(values, dtype=bool)


def _array(file: BinaryIO, array: Array) -> list[Any]:
    if array.data is None or array.dtype is None:
        raise PickleContentError("damaged: an array without values")
    data = read_blob(file, array.data)
    if [len(data)] != [n * array.dtype.itemsize for n in array.shape]:
        raise PickleContentError("wanted as many flags as their array has room for")
    return list(np.frombuffer(data, array.dtype).tolist())
