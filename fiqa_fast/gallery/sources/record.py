# SPDX-License-Identifier: Apache-2.0
"""MXNet's RecordIO, ``.rec`` with or without its ``.idx``, as insightface's training sets are.

A record is a magic number, three bits that say whether it is one part of several, 29 bits of
length, and the bytes, padded to four. Where a record's bytes would hold the magic number at a
multiple of four, the writer leaves it out and splits the record there: so a reader that has lost
its way finds the next record by looking for that number.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator
from functools import partial
from typing import BinaryIO

import numpy as np

from fiqa_fast.errors import ImageError
from fiqa_fast.gallery.errors import InputError
from fiqa_fast.gallery.sources.container import (
    Container,
    DamagedError,
    Entry,
    RandomFile,
    check_size,
    fails,
)
from fiqa_fast.gallery.sources.item import Opening
from fiqa_fast.gallery.text import printable
from fiqa_fast.images import describe, open_regular

__all__ = ["RecordSource", "open_record"]

_MAGIC = 0xCED7230A
_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)
_HEADER = struct.Struct("<IfQQ")  # how many labels follow, or one label itself; identifiers
_MAX_PARTS = 1024  # an image holds the magic number once in a thousand times
_Parts = tuple[tuple[int, int], ...]  # offset and length of each


class RecordSource(Container):
    """Keys are those of the ``.idx``, else the identifiers in the records (the same, mostly).

    Records of insightface that hold the ranges of identities instead of an image are left out.
    """

    def count(self) -> int | None:
        """Count the lines of the ``.idx``."""
        index = self._index()
        if index is None:
            return None
        with open_regular(index) as file:
            return sum(piece.count(b"\n") for piece in iter(lambda: file.read(2**20), b""))

    def _index(self) -> str | None:
        path = os.path.splitext(self.path)[0] + ".idx"
        return path if os.path.lexists(path) else None

    def _entries(self) -> Iterator[Entry]:
        index, file = self._index(), RandomFile(self.path)
        return self._scanned(file) if index is None else self._indexed(file, index)

    def _indexed(self, file: RandomFile, index: str) -> Iterator[Entry]:
        covered, sound = 0, True
        for number, line in enumerate(_lines(index), 1):
            key, _, offset = line.strip().partition(b"\t")
            try:
                if not offset.isdigit():
                    key = b"(line %d of the .idx)" % number
                    raise ImageError("wanted a key, a tab and an offset in the .idx")
                parts, end = _locate(file, int(offset))
                covered += end - int(offset)
                if not _is_ranges(file, parts):
                    yield printable(os.fsdecode(key)), partial(_image, file, parts)
            except ImageError as error:
                sound = False
                yield printable(os.fsdecode(key)), fails(str(error))
        if sound and covered < file.size:
            left = file.size - covered
            raise DamagedError(f"its .idx leaves out {left} bytes; without an .idx all is read")

    def _scanned(self, file: RandomFile) -> Iterator[Entry]:
        offset = 0
        while offset < file.size:
            try:
                parts, end = _locate(file, offset)
                if not _is_ranges(file, parts):
                    yield str(_header(file, parts)[2]), partial(_image, file, parts)
            except ImageError as error:
                # How many records the bytes up to the next one were, nobody knows.
                if not self.damage:
                    self.damage.append(f"{printable(self.path)}: from byte {offset} on: {error}")
                yield f"(record at byte {offset})", fails(str(error))
                end = _next_record(file, offset + 4)
            offset = end


def _lines(path: str) -> Iterator[bytes]:
    with open_regular(path) as file:
        yield from iter(lambda: file.readline(64), b"")


def _locate(file: RandomFile, offset: int) -> tuple[_Parts, int]:
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


def _next_record(file: RandomFile, offset: int) -> int:
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


def _header(file: RandomFile, parts: _Parts) -> tuple[int, float, int, int]:
    # A header that is split itself is rare enough to be read with its image.
    whole = len(parts) == 1 or parts[0][1] >= _HEADER.size
    data = file.read(parts[0][0], min(parts[0][1], _HEADER.size)) if whole else _read(file, parts)
    if len(data) < _HEADER.size:
        raise ImageError("damaged: the record is shorter than its header")
    flag, label, identifier, second = _HEADER.unpack_from(data)
    return flag, label, identifier, second


def _is_ranges(file: RandomFile, parts: _Parts) -> bool:
    """Whether this is insightface's record of two labels, from and to, and no image."""
    if sum(length for _, length in parts) != _HEADER.size + 8:
        return False
    return _header(file, parts)[0] == 2


def _read(file: RandomFile, parts: _Parts) -> bytes:
    check_size(sum(length for _, length in parts))
    return struct.pack("<I", _MAGIC).join(file.read(*part) for part in parts)


def _image(file: RandomFile, parts: _Parts) -> BinaryIO:
    data = _read(file, parts)
    start = _HEADER.size + 4 * _header(file, parts)[0]
    if start > len(data):
        raise ImageError("damaged: the record is shorter than its labels")
    return io.BytesIO(data[start:])


def open_record(path: str, opening: Opening) -> RecordSource:
    """Open a ``.rec``, which has to begin with a record."""
    try:
        _locate(RandomFile(path), 0)
    except ImageError as error:
        raise InputError(f"{printable(path)}: no RecordIO file: {describe(error)}") from error
    return RecordSource(path, opening)
