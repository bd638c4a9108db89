# SPDX-License-Identifier: Apache-2.0
"""RecordIO's records: their parts, their headers, their images."""

from __future__ import annotations

import io
import struct
from typing import BinaryIO

import numpy as np

from fiqa_fast.errors import ImageError
from fiqa_fast.gallery.sources.container import RandomFile, check_size

__all__ = ["Parts", "header_of", "image_of", "is_ranges", "locate", "next_record"]

_MAGIC = 0xCED7230A
_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)
_HEADER = struct.Struct("<IfQQ")  # how many labels follow, or one label itself; identifiers
_MAX_PARTS = 1024  # an image holds the magic number once in a thousand times
Parts = tuple[tuple[int, int], ...]  # offset and length of each


def locate(file: RandomFile, offset: int) -> tuple[Parts, int]:
    """Return where the parts of the record at ``offset`` stand, and where it ends."""
    parts: list[tuple[int, int]] = []
    while len(parts) < _MAX_PARTS:
        magic, word = struct.unpack("<II", file.read(offset, 8))
        kind, length = word >> 29, word & 0x1FFFFFFF
        if magic != _MAGIC or kind not in ((_MIDDLE, _LAST) if parts else (_WHOLE, _FIRST)):
            raise ImageError("damaged: wanted a record here, got something else")
        if length > file.size - offset - 8:
            raise ImageError("damaged or cut off: the record is longer than what is left")
        parts.append((offset + 8, length))
        offset += 8 + -(-length // 4) * 4
        if kind in (_WHOLE, _LAST):
            return tuple(parts), min(offset, file.size)
    raise ImageError(f"damaged: wanted at most {_MAX_PARTS} parts of a record, got more")


def next_record(file: RandomFile, offset: int) -> int:
    """Return where the next record starts, or the end of the file."""
    offset, length = -(-offset // 4) * 4, 4096
    while (length := min(length, (file.size - offset) // 4 * 4)) > 0:
        words = np.frombuffer(file.read(offset, length), "<u4")
        for place in np.flatnonzero(words == _MAGIC).tolist():
            start = offset + 4 * place
            if start + 8 > file.size:
                return file.size
            if file.read(start + 4, 4)[3] >> 5 in (_WHOLE, _FIRST):
                return int(start)
        offset, length = offset + length, min(2 * length, 2**20)
    return file.size


def header_of(file: RandomFile, parts: Parts) -> tuple[int, float, int, int]:
    # A header that is split itself is rare enough to be read with its image.
    whole = len(parts) == 1 or parts[0][1] >= _HEADER.size
    data = file.read(parts[0][0], min(parts[0][1], _HEADER.size)) if whole else _read(file, parts)
    if len(data) < _HEADER.size:
        raise ImageError("damaged: the record is shorter than its header")
    flag, label, identifier, second = _HEADER.unpack_from(data)
    return flag, label, identifier, second


def is_ranges(file: RandomFile, parts: Parts) -> bool:
    """Whether this is insightface's record of two labels, from and to, and no image."""
    if sum(length for _, length in parts) != _HEADER.size + 8:
        return False
    return header_of(file, parts)[0] == 2


def _read(file: RandomFile, parts: Parts) -> bytes:
    check_size(sum(length for _, length in parts))
    return struct.pack("<I", _MAGIC).join(file.read(*part) for part in parts)


def image_of(file: RandomFile, parts: Parts) -> BinaryIO:
    data = _read(file, parts)
    start = _HEADER.size + 4 * header_of(file, parts)[0]
    if start > len(data):
        raise ImageError("damaged: the record is shorter than its labels")
    return io.BytesIO(data[start:])
