# SPDX-License-Identifier: Apache-2.0
"""insightface's ``.bin`` sets: a pickle of (encoded images, one flag per pair).

Pair i is of the images 2i and 2i + 1.
"""

from __future__ import annotations

import os
from functools import partial
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from fiqa_fast.evaluate.readers.files import StrPath, open_input, stem_of
from fiqa_fast.evaluate.readers.layouts.dataset import Dataset
from fiqa_fast.gallery.errors import InputError
from fiqa_fast.gallery.pickles import Array, PickleContentError, read_blob
from fiqa_fast.gallery.sources import Item, printable
from fiqa_fast.gallery.sources.pair_set import image_blob, image_key, open_blob, read_set

__all__ = ["open_pair_set"]


def open_pair_set(path: StrPath) -> Dataset:
    """Open a ``.bin`` set. Image i is called ``%05d`` of i, as extraction scripts call it."""
    name = printable(os.fspath(path))
    try:
        with open_input(path) as file:
            found, flags = read_set(file)
            images = [image_blob(i, image) for i, image in enumerate(found)]
            genuine = _flags(file, flags)
    except PickleContentError as error:
        raise InputError(f"{name}: no set of image pairs: {error}") from error
    if not len(genuine) or len(images) != 2 * len(genuine):
        raise InputError(
            f"{name}: wanted two images per flag, got {len(images)} images and {len(genuine)} flags"
        )
    keys = [image_key(i) for i in range(len(images))]
    first = np.arange(0, len(images), 2, dtype=np.int32)
    return Dataset(
        stem_of(path),
        keys,
        pairs=(first, first + np.int32(1), genuine),
        items=[
            Item(key, partial(open_blob, os.fspath(path), blob))
            for key, blob in zip(keys, images, strict=True)
        ],
    )


def _flags(file: BinaryIO, flags: Any) -> npt.NDArray[np.bool_]:  # [P]
    if isinstance(flags, Array):
        values: list[Any] = _array(file, flags)
    else:
        if not isinstance(flags, (list, tuple)):
            raise PickleContentError("wanted a list of flags, got something else")
        values = list(flags)
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
