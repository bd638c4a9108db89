# SPDX-License-Identifier: Apache-2.0
"""MXNet's RecordIO, ``.rec`` with or without its ``.idx``, as insightface's training sets are.

A record is a magic number, three bits that say whether it is one part of several, 29 bits of
length, and the bytes, padded to four. Where a record's bytes would hold the magic number at a
multiple of four, the writer leaves it out and splits the record there: so a reader that has lost
its way finds the next record by looking for that number.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial

from fiqa_fast.errors import ImageError
from fiqa_fast.gallery.errors import InputError
from fiqa_fast.gallery.sources.container import Container, DamagedError, Entry, RandomFile, fails
from fiqa_fast.gallery.sources.item import Opening
from fiqa_fast.gallery.sources.record_parts import (
    header_of,
    image_of,
    is_ranges,
    locate,
    next_record,
)
from fiqa_fast.gallery.text import printable
from fiqa_fast.images import describe, open_regular

__all__ = ["RecordSource", "open_record"]


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
                parts, end = locate(file, int(offset))
                covered += end - int(offset)
                if not is_ranges(file, parts):
                    yield printable(os.fsdecode(key)), partial(image_of, file, parts)
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
                parts, end = locate(file, offset)
                if not is_ranges(file, parts):
                    yield str(header_of(file, parts)[2]), partial(image_of, file, parts)
            except ImageError as error:
                # How many records the bytes up to the next one were, nobody knows.
                if not self.damage:
                    self.damage.append(f"{printable(self.path)}: from byte {offset} on: {error}")
                yield f"(record at byte {offset})", fails(str(error))
                end = next_record(file, offset + 4)
            offset = end


def _lines(path: str) -> Iterator[bytes]:
    with open_regular(path) as file:
        yield from iter(lambda: file.readline(64), b"")


def open_record(path: str, opening: Opening) -> RecordSource:
    """Open a ``.rec``, which has to begin with a record; an ``.idx`` has to be readable."""
    source = RecordSource(path, opening)
    try:
        locate(RandomFile(path), 0)
        if (index := source._index()) is not None:
            open_regular(index).close()
    except ImageError as error:
        raise InputError(f"{printable(path)}: no records to be read: {describe(error)}") from error
    return source
