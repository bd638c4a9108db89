# SPDX-License-Identifier: Apache-2.0
"""Tar archives as they can be read: at any place, or only on."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from functools import partial
from typing import BinaryIO, Protocol

from fiqa_fast.errors import ImageError
from fiqa_fast.gallery.sources.container import (
    DamagedError,
    RandomFile,
    check_size,
    fails,
)
from fiqa_fast.gallery.sources.item import InMemory
from fiqa_fast.gallery.sources.tar_headers import BLOCK

__all__ = ["FileTape", "StreamTape", "Tape"]

_HEAD = 16
Taken = tuple[Callable[[], bytes], Callable[[], BinaryIO]]  # the first bytes; all of them


class Tape(Protocol):
    def read(self, n: int) -> bytes: ...
    def skip(self, n: int) -> None: ...
    def take(self, n: int) -> Taken: ...


class FileTape:
    """A plain archive in a file: members are read when they are opened."""

    def __init__(self, file: RandomFile) -> None:
        self._file, self._offset = file, 0

    def read(self, n: int) -> bytes:
        data = self._file.read(self._offset, min(n, self._file.size - self._offset))
        self._offset += len(data)
        return data

    def skip(self, n: int) -> None:
        if n > self._file.size - self._offset:
            raise DamagedError("the archive is cut off")
        self._offset += n

    def take(self, n: int) -> Taken:
        start = self._offset
        self.skip(n)
        head = partial(self._file.read, start, min(n, _HEAD))
        return head, partial(self._file.image, start, n)


class StreamTape:
    """An archive that can only be read on: a member is read when it comes by."""

    def __init__(self, stream: BinaryIO, start: bytes = b"") -> None:
        self._stream, self._start = stream, start

    def read(self, n: int) -> bytes:
        data, self._start = self._start[:n], self._start[n:]
        try:
            return data + self._stream.read(n - len(data)) if len(data) < n else data
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DamagedError(f"the gzip data is damaged or cut off: {error}") from error

    def peek(self, n: int) -> bytes:
        self._start = self.read(max(n, BLOCK))
        return self._start[:n]

    def skip(self, n: int) -> None:
        while n > 0:
            data = self.read(min(n, 2**16))
            if not data:
                raise DamagedError("the archive is cut off")
            n -= len(data)

    def take(self, n: int) -> Taken:
        try:
            check_size(n)
        except ImageError as error:
            self.skip(n)
            return bytes, fails(str(error))
        data = self.read(n)
        if len(data) < n:
            raise DamagedError("the archive is cut off")
        return lambda: data[:_HEAD], InMemory(data)
