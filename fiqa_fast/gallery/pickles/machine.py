# SPDX-License-Identifier: Apache-2.0
"""The interpreter's file, stack and memo, and the steps that instructions are made of."""

from __future__ import annotations

import struct
from typing import Any, BinaryIO

from fiqa_fast.gallery.pickles.values import Blob, PickleContentError, read_blob

__all__ = ["Machine"]

_MAX_TEXT = 128


class Machine:
    """Every step raises for what a sound file never asks of it; nothing grows beyond the file."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.size = file.seek(0, 2)
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: list[Any] = []
        file.seek(0)

    # Bytes of the file.

    def read(self, n: int) -> bytes:
        data = self.file.read(n)
        if len(data) != n:
            raise PickleContentError("damaged or cut off, or no pickle at all")
        return data

    def number(self, layout: str) -> int:
        return int(struct.unpack(layout, self.read(struct.calcsize(layout)))[0])

    def line(self, limit: int = _MAX_TEXT) -> bytes:
        line = self.file.readline(limit)
        if not line.endswith(b"\n"):
            raise PickleContentError("damaged or cut off, or no pickle at all")
        return line[:-1].removesuffix(b"\r")

    def push_string(self, layout: str, codec: str) -> None:
        length, offset = self.number(layout), self.file.tell()
        if not 0 <= length <= self.size - offset:
            raise PickleContentError("the file ends before its images do")
        self.file.seek(length, 1)
        self.stack.append(Blob(offset, length, codec))

    def push_line(self, codec: str, quotes: int) -> None:
        offset = self.file.tell()
        length = len(self.line(self.size)) - 2 * quotes
        if length < 0:
            raise PickleContentError("damaged or cut off, or no pickle at all")
        self.stack.append(Blob(offset + quotes, length, codec))

    def bytes(self, blob: object, limit: int = _MAX_TEXT) -> bytes:
        if not isinstance(blob, Blob) or blob.length > limit:
            raise PickleContentError("damaged: wanted a short text")
        here = self.file.tell()
        try:
            return read_blob(self.file, blob)
        finally:
            self.file.seek(here)

    def text(self, blob: object) -> str:
        return self.bytes(blob).decode("latin-1")

    # Values on the stack. What stands before a mark is out of reach until the mark is gone.

    def pop(self) -> Any:
        if self.marks and len(self.stack) <= self.marks[-1]:
            raise IndexError
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def push_tuple(self, n: int) -> None:
        self.stack.append(tuple(reversed([self.pop() for _ in range(n)])))

    def extend(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise TypeError
        target.extend(values)

    def put(self, number: int) -> None:
        # Writers count up from 0, or from 1; who skips numbers wants memory.
        if number > len(self.memo) + 1:
            raise IndexError
        self.memo.extend([None] * (number + 1 - len(self.memo)))
        self.memo[number] = self.stack[-1]

    def get(self, number: int) -> None:
        self.stack.append(self.memo[number])

    def push_long(self) -> None:
        length = self.number("<B")
        if length > 8:
            raise PickleContentError("wanted flags, got a number of more than 64 bits")
        self.stack.append(int.from_bytes(self.read(length), "little", signed=True))

    def push_line_number(self) -> None:
        line = self.line(32)
        flags = {b"00": False, b"01": True}
        self.stack.append(flags[line] if line in flags else int(line.removesuffix(b"L")))
