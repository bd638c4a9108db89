# SPDX-License-Identifier: Apache-2.0
"""Tar archives, WebDataset's among them: from a file, gzip or not, or from standard input."""

from __future__ import annotations

import gzip
import os
import sys
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import BinaryIO, Protocol, cast

from fiqa_fast.errors import ImageError
from fiqa_fast.gallery.errors import InputError
from fiqa_fast.gallery.sources.container import (
    Container,
    DamagedError,
    Entry,
    RandomFile,
    check_size,
    fails,
    in_memory,
    is_sidecar,
)
from fiqa_fast.gallery.sources.item import Opening
from fiqa_fast.gallery.sources.keys import member_key
from fiqa_fast.gallery.sources.tar_headers import BLOCK, is_header, read_members
from fiqa_fast.gallery.text import printable
from fiqa_fast.images import describe, open_regular

__all__ = ["StandardInput", "TarSource", "open_tar"]

_GZIP = b"\x1f\x8b"
_HEAD = 16
Taken = tuple[Callable[[], bytes], Callable[[], BinaryIO]]  # the first bytes; all of them


class _Tape(Protocol):
    def read(self, n: int) -> bytes: ...
    def skip(self, n: int) -> None: ...
    def take(self, n: int) -> Taken: ...


class _FileTape:
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


class _StreamTape:
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
        return lambda: data[:_HEAD], in_memory(data)


class TarSource(Container):
    """Keys are the members' names. Links, devices and members that are no images are left out."""

    def _tape(self) -> _Tape:
        with open_regular(self.path) as file:
            zipped = file.read(2) == _GZIP
        if zipped:
            return _StreamTape(cast(BinaryIO, gzip.GzipFile(self.path)))
        return _FileTape(RandomFile(self.path))

    def _entries(self) -> Iterator[Entry]:
        tape = self._tape()
        for member in read_members(tape.read, tape.skip):
            head, opener = tape.take(member.size)
            tape.skip(-member.size % BLOCK)
            key = member_key(os.fsdecode(member.name))
            if member.kind == b"5" or member.name.endswith(b"/"):
                continue  # a folder
            if not member.regular or is_sidecar(key, head, self.opening.ext):
                self.skipped += 1
            elif member.sparse:
                yield key, fails("wanted a plain file, got a sparse one")
            else:
                yield key, opener


class StandardInput(TarSource):
    """An archive from standard input, which can be read once."""

    def __init__(self, opening: Opening) -> None:
        super().__init__("standard input", opening)
        stream = _StreamTape(sys.stdin.buffer)
        if stream.peek(2) == _GZIP:
            stream = _StreamTape(cast(BinaryIO, gzip.GzipFile(fileobj=cast(BinaryIO, stream))))
        _check(self.path, stream.peek)
        self._once: _StreamTape | None = stream

    def _tape(self) -> _Tape:
        if self._once is None:
            raise InputError("standard input can be read once only; store it in a file")
        tape, self._once = self._once, None
        return tape


def _check(name: str, read: Callable[[int], bytes]) -> None:
    """Raise :class:`InputError` for what does not begin as an archive does."""
    try:
        block = read(BLOCK)
    except (DamagedError, OSError) as error:
        raise InputError(f"{name}: {describe(error)}") from error
    if not is_header(block) and (block.strip(b"\0") or not block):
        raise InputError(f"{name}: wanted a tar archive, got something else")


def open_tar(path: str, opening: Opening) -> TarSource:
    """Open an archive, which has to begin as one."""
    source = TarSource(path, opening)
    _check(printable(path), source._tape().read)
    return source
