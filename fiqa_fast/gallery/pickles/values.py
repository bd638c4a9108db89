# SPDX-License-Identifier: Apache-2.0
"""What the pickle of an evaluation set comes down to; bytes stay in the file until wanted."""

from __future__ import annotations

import codecs
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

__all__ = ["Array", "Blob", "Dtype", "Name", "PickleContentError", "read_blob"]


class PickleContentError(ValueError):
    """The file is damaged, or holds more than images and flags; the text is one line."""


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes or text in the file, not read yet."""

    offset: int
    length: int
    codec: str  # how it is written there: raw, utf-8, escape or raw-unicode-escape


@dataclass(slots=True)
class Array:
    """A numpy array of bytes, flags or whole numbers; its values are not read yet."""

    shape: tuple[int, ...] = ()
    dtype: np.dtype[Any] | None = None
    data: Blob | None = None


@dataclass(frozen=True, slots=True)
class Name:
    """Something that a pickle names; only what stands in the list of known names."""

    text: str


@dataclass(slots=True)
class Dtype:
    code: str
    order: str = "|"

    def numpy(self) -> np.dtype[Any]:
        return np.dtype((self.order if self.order in "<>" else "") + self.code)


def read_blob(file: BinaryIO, blob: Blob) -> bytes:
    """Return a blob's bytes; a text stands for the bytes of the same Latin-1 characters."""
    file.seek(blob.offset)
    data = file.read(blob.length)
    if len(data) != blob.length:
        raise PickleContentError("the file ends before its images do")
    if blob.codec == "raw":
        return data
    if blob.codec == "escape":
        return bytes(codecs.escape_decode(data)[0])
    return data.decode(blob.codec).encode("latin-1")
