# SPDX-License-Identifier: Apache-2.0
"""What Arrow's messages claim, read before pyarrow reserves memory for it.

A message is the length of its head, the head (a FlatBuffer) and a body of buffers. A packed
buffer begins with the length that it claims to have unpacked.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from fiqa_fast.gallery.sources.container import DamagedError, RandomFile

__all__ = ["MAX_BATCH", "file_checks", "stream_checks"]

MAX_BATCH = 2**30  # bytes of a batch of rows, unpacked
_MAX_HEAD = 2**24  # of a message, and of a file's footer

# Fields of FlatBuffers' tables, and kinds of messages.
_KIND, _CONTENT, _BODY = 1, 2, 3  # of a message
_BUFFERS, _COMPRESSION = 2, 3  # of a batch
_DICTIONARIES, _BATCHES = 2, 3  # of a footer
_BLOCK = 24  # bytes of an entry of either
_DICTIONARY_BATCH, _RECORD_BATCH = 2, 3
_MARK = 0xFFFFFFFF


def stream_checks(file: RandomFile) -> Iterator[None]:
    """Check a stream as it is read: up to its schema, then up to each batch in turn.

    Raises :class:`DamagedError` where a message claims too much. Where messages are missing it
    ends: that is the reader's to say.
    """
    offset = 0
    first = True
    while offset + 8 <= file.size:
        kind, offset = _check_message(file, offset)
        if first or kind == _RECORD_BATCH:
            yield
        if kind is None:
            return
        first = False


def file_checks(file: RandomFile) -> Iterator[None]:
    """The same of a file, whose footer says where its batches are."""
    length = int.from_bytes(file.read(file.size - 10, 4), "little")
    if not 0 < length <= min(_MAX_HEAD, file.size - 10):
        raise DamagedError(f"damaged: a footer of {length} bytes")
    footer = _Table.root(file.read(file.size - 10 - length, length))
    for block in footer.structs(_DICTIONARIES, _BLOCK):
        _check_message(file, int.from_bytes(block[:8], "little"))
    yield
    for block in footer.structs(_BATCHES, _BLOCK):
        _check_message(file, int.from_bytes(block[:8], "little"))
        yield


def _check_message(file: RandomFile, offset: int) -> tuple[int | None, int]:
    """Return the kind of a message, None for the end, and where the next one is."""
    mark, length = struct.unpack("<II", file.read(offset, 8))
    start = offset + (8 if mark == _MARK else 4)  # old writers have no mark
    length = length if mark == _MARK else mark
    if length == 0:
        return None, start
    if length > _MAX_HEAD and mark != _MARK:
        raise DamagedError("wanted a Parquet, Arrow or Feather table, got something else")
    if length > min(_MAX_HEAD, file.size - start):
        raise DamagedError(f"damaged or cut off: a message whose head has {length} bytes")
    message = _Table.root(file.read(start, length))
    body = message.number(_BODY, "<q")
    if not 0 <= body <= MAX_BATCH:
        raise DamagedError(f"wanted batches of at most {MAX_BATCH // 2**20} MiB, got {body} bytes")
    kind = message.number(_KIND, "<B")
    if kind in (_DICTIONARY_BATCH, _RECORD_BATCH):
        batch = message.table(_CONTENT)
        if batch is not None and kind == _DICTIONARY_BATCH:
            batch = batch.table(1)
        if batch is not None and batch.table(_COMPRESSION) is not None:
            _check_packed(file, batch, start + length)
    return kind, start + length + body


def _check_packed(file: RandomFile, batch: _Table, body: int) -> None:
    claimed = 0
    for buffer in batch.structs(_BUFFERS, 16):
        offset, length = struct.unpack("<qq", buffer)
        if length >= 8 and offset >= 0 and body + offset + 8 <= file.size:
            unpacked = int.from_bytes(file.read(body + offset, 8), "little", signed=True)
            claimed += max(unpacked, length - 8)  # -1: as it is
    if claimed > MAX_BATCH:
        most = MAX_BATCH // 2**20
        raise DamagedError(f"wanted batches of at most {most} MiB, got {claimed} bytes unpacked")


class _Table:
    """A table of a FlatBuffer: fields at places that its own list of places says."""

    def __init__(self, data: bytes, place: int) -> None:
        self._data, self._place = data, place
        self._fields = place - int(self._unpack("<i", place))
        self._length = int(self._unpack("<H", self._fields))

    @classmethod
    def root(cls, data: bytes) -> _Table:
        if len(data) < 8:
            raise DamagedError("damaged: a message without a head")
        return cls(data, int.from_bytes(data[:4], "little"))

    def _unpack(self, form: str, place: int) -> int:
        if not 0 <= place <= len(self._data) - struct.calcsize(form):
            raise DamagedError("damaged: a message that leads out of itself")
        return int(struct.unpack_from(form, self._data, place)[0])

    def _find(self, field: int) -> int | None:
        entry = 4 + 2 * field
        if entry >= self._length:
            return None
        offset = self._unpack("<H", self._fields + entry)
        return self._place + offset if offset else None

    def number(self, field: int, form: str) -> int:
        place = self._find(field)
        return 0 if place is None else self._unpack(form, place)

    def table(self, field: int) -> _Table | None:
        place = self._find(field)
        return None if place is None else _Table(self._data, place + self._unpack("<I", place))

    def structs(self, field: int, size: int) -> Iterator[bytes]:
        place = self._find(field)
        if place is None:
            return
        start = place + self._unpack("<I", place)
        for i in range(self._unpack("<I", start)):
            first = start + 4 + i * size
            if first + size > len(self._data):
                raise DamagedError("damaged: a message that leads out of itself")
            yield self._data[first : first + size]
