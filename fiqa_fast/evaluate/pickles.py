# SPDX-License-Identifier: Apache-2.0
"""Reads the pickles of face verification sets without running what is in them.

Python's unpickler calls what a file names, allocates what it claims, and holds it all in memory.
This one is a small interpreter of the instructions that lists of encoded images need, from
Python 2 or 3. It calls nothing, makes nothing but lists, tuples, numbers and numpy arrays' parts,
and remembers where the images' bytes stand instead of reading them.
"""

from __future__ import annotations

import codecs
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

__all__ = ["Array", "Blob", "PickleContentError", "read_blob", "read_pickle"]

# Bounds memory and time: about a gigabyte at worst. A set takes two to twenty for each image.
_MAX_INSTRUCTIONS = 2**24
_MAX_TEXT = 128


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
class _Name:
    """Something that a pickle names; only what stands in ``_CALLS`` or is listed here."""

    text: str


@dataclass(slots=True)
class _Dtype:
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


def read_pickle(file: BinaryIO) -> Any:
    """Return what a pickle holds: lists, tuples, numbers, flags, None, blobs and arrays.

    Raises :class:`PickleContentError` for anything else, which it names.
    """
    try:
        return _Reader(file).run()
    except PickleContentError:
        raise
    except RecursionError as error:
        raise PickleContentError("its lists are nested too deeply") from error
    except (IndexError, KeyError, ValueError, TypeError, struct.error, OverflowError) as error:
        raise PickleContentError("damaged or cut off, or no pickle at all") from error


class _Reader:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = file.seek(0, 2)
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: list[Any] = []
        file.seek(0)

    def run(self) -> Any:
        for _ in range(_MAX_INSTRUCTIONS):
            code = self._read(1)
            if code == b".":
                return self._pop()
            if code in _STRINGS:
                self._push_string(*_STRINGS[code])
            elif code in _INSTRUCTIONS:
                _INSTRUCTIONS[code](self)
            else:
                got = _REFUSED.get(code, f"the instruction {code!r}")
                raise PickleContentError(f"wanted images and flags alone, got {got}")
        raise PickleContentError(f"wanted at most {_MAX_INSTRUCTIONS} instructions, got more")

    # Bytes of the file.

    def _read(self, n: int) -> bytes:
        data = self._file.read(n)
        if len(data) != n:
            raise PickleContentError("damaged or cut off, or no pickle at all")
        return data

    def _number(self, layout: str) -> int:
        return int(struct.unpack(layout, self._read(struct.calcsize(layout)))[0])

    def _line(self, limit: int = _MAX_TEXT) -> bytes:
        line = self._file.readline(limit)
        if not line.endswith(b"\n"):
            raise PickleContentError("damaged or cut off, or no pickle at all")
        return line[:-1].removesuffix(b"\r")

    def _push_string(self, layout: str, codec: str) -> None:
        length, offset = self._number(layout), self._file.tell()
        if not 0 <= length <= self._size - offset:
            raise PickleContentError("the file ends before its images do")
        self._file.seek(length, 1)
        self._stack.append(Blob(offset, length, codec))

    def _push_line(self, codec: str, quotes: int) -> None:
        offset = self._file.tell()
        length = len(self._line(self._size)) - 2 * quotes
        if length < 0:
            raise PickleContentError("damaged or cut off, or no pickle at all")
        self._stack.append(Blob(offset + quotes, length, codec))

    def _bytes(self, blob: object, limit: int = _MAX_TEXT) -> bytes:
        if not isinstance(blob, Blob) or blob.length > limit:
            raise PickleContentError("damaged: wanted a short text")
        here = self._file.tell()
        try:
            return read_blob(self._file, blob)
        finally:
            self._file.seek(here)

    def _text(self, blob: object) -> str:
        return self._bytes(blob).decode("latin-1")

    # Values on the stack. What stands before a mark is out of reach until the mark is gone.

    def _pop(self) -> Any:
        if self._marks and len(self._stack) <= self._marks[-1]:
            raise IndexError
        return self._stack.pop()

    def _pop_to_mark(self) -> list[Any]:
        start = self._marks.pop()
        values = self._stack[start:]
        del self._stack[start:]
        return values

    def _push_tuple(self, n: int) -> None:
        self._stack.append(tuple(reversed([self._pop() for _ in range(n)])))

    def _extend(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, list):
            raise TypeError
        target.extend(values)

    def _put(self, number: int) -> None:
        # Writers count up from 0, or from 1; who skips numbers wants memory.
        if number > len(self._memo) + 1:
            raise IndexError
        self._memo.extend([None] * (number + 1 - len(self._memo)))
        self._memo[number] = self._stack[-1]

    def _get(self, number: int) -> None:
        self._stack.append(self._memo[number])

    def _long(self) -> None:
        length = self._number("<B")
        if length > 8:
            raise PickleContentError("wanted flags, got a number of more than 64 bits")
        self._stack.append(int.from_bytes(self._read(length), "little", signed=True))

    def _line_number(self) -> None:
        line = self._line(32)
        flags = {b"00": False, b"01": True}
        self._stack.append(flags[line] if line in flags else int(line.removesuffix(b"L")))

    # Names, calls and states: none is looked up, called or set; all are understood or refused.

    def _global(self, module: str, name: str) -> None:
        text = f"{module}.{name}"
        if text not in _CALLS and text not in _NAMES:
            shown = text.encode("ascii", "backslashreplace").decode().replace("\n", "\\n")
            raise PickleContentError(
                f"wanted images and flags alone, got the name {shown}; it holds code"
            )
        self._stack.append(_Name(text))

    def _stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        self._global(self._text(module), self._text(name))

    def _reduce(self) -> None:
        arguments, name = self._pop(), self._pop()
        if not isinstance(name, _Name) or name.text not in _CALLS:
            raise PickleContentError("wanted images and flags alone, got a call")
        if not isinstance(arguments, tuple):
            raise TypeError
        self._stack.append(_CALLS[name.text](self, *arguments))

    def _build(self) -> None:
        state, target = self._pop(), self._stack[-1]
        if isinstance(target, _Dtype):
            order = self._text(state[1])
            if order not in ("<", ">", "|", "="):
                raise ValueError
            target.order = order
        elif isinstance(target, Array):
            *_, shape, dtype, _, data = state
            self._fill(target, shape, dtype, data)
        else:
            raise PickleContentError("wanted images and flags alone, got the state of an object")

    def _fill(self, array: Array, shape: Any, dtype: Any, data: Any) -> Array:
        if not (isinstance(dtype, _Dtype) and isinstance(data, Blob) and isinstance(shape, tuple)):
            raise PickleContentError("wanted arrays of bytes or flags, got one of objects")
        if not all(type(n) is int and n >= 0 for n in shape) or len(shape) > 32:
            raise ValueError
        array.shape, array.dtype, array.data = shape, dtype.numpy(), data
        return array

    def _dtype(self, code: object, *_: object) -> _Dtype:
        text = self._text(code)
        if text not in _DTYPES:
            shown = text.encode("ascii", "backslashreplace").decode()
            raise PickleContentError(f"wanted arrays of bytes or flags, got the type {shown!r}")
        return _Dtype(text)

    def _scalar(self, dtype: object, data: object) -> Any:
        if not isinstance(dtype, _Dtype):
            raise TypeError
        return np.frombuffer(self._bytes(data, 8), dtype.numpy(), 1)[0].item()

    def _from_buffer(self, data: object, dtype: object, shape: object, *_: object) -> Array:
        return self._fill(Array(), shape, dtype, data)


def _empty_array(_: _Reader, kind: object, *__: object) -> Array:
    if not isinstance(kind, _Name):
        raise TypeError
    return Array()


def _same_bytes(_: _Reader, text: object = None, *__: object) -> Blob:
    """How Python 3 writes bytes for Python 2: as a call that encodes a text as Latin-1."""
    if text is None:
        return Blob(0, 0, "raw")
    if not isinstance(text, Blob):
        raise TypeError
    return text


_DTYPES = frozenset(("b1", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8"))
_NAMES = frozenset(("numpy.ndarray",))
_CALLS: dict[str, Callable[..., Any]] = {
    "_codecs.encode": _same_bytes,
    "builtins.bytes": _same_bytes,
    "__builtin__.bytes": _same_bytes,
    "builtins.bytearray": _same_bytes,
    "__builtin__.bytearray": _same_bytes,
    "numpy.dtype": _Reader._dtype,
}
for _core in ("numpy.core", "numpy._core"):
    _CALLS[f"{_core}.multiarray._reconstruct"] = _empty_array
    _CALLS[f"{_core}.multiarray.scalar"] = _Reader._scalar
    _CALLS[f"{_core}.numeric._frombuffer"] = _Reader._from_buffer

# How the length before a string is written, and the string itself.
_STRINGS = {
    b"U": ("<B", "raw"),
    b"T": ("<i", "raw"),
    b"C": ("<B", "raw"),
    b"B": ("<I", "raw"),
    b"\x8e": ("<Q", "raw"),
    b"\x96": ("<Q", "raw"),
    b"\x8c": ("<B", "utf-8"),
    b"X": ("<I", "utf-8"),
    b"\x8d": ("<Q", "utf-8"),
}
_INSTRUCTIONS: dict[bytes, Callable[[_Reader], Any]] = {
    b"\x80": lambda r: r._read(1),  # protocol
    b"\x95": lambda r: r._read(8),  # length of a frame
    b"N": lambda r: r._stack.append(None),
    b"\x88": lambda r: r._stack.append(True),
    b"\x89": lambda r: r._stack.append(False),
    b"J": lambda r: r._stack.append(r._number("<i")),
    b"K": lambda r: r._stack.append(r._number("<B")),
    b"M": lambda r: r._stack.append(r._number("<H")),
    b"\x8a": _Reader._long,
    b"I": _Reader._line_number,
    b"L": _Reader._line_number,
    b"S": lambda r: r._push_line("escape", 1),
    b"V": lambda r: r._push_line("raw-unicode-escape", 0),
    b"(": lambda r: r._marks.append(len(r._stack)),
    b"]": lambda r: r._stack.append([]),
    b")": lambda r: r._stack.append(()),
    b"l": lambda r: r._stack.append(r._pop_to_mark()),
    b"t": lambda r: r._stack.append(tuple(r._pop_to_mark())),
    b"\x85": lambda r: r._push_tuple(1),
    b"\x86": lambda r: r._push_tuple(2),
    b"\x87": lambda r: r._push_tuple(3),
    b"a": lambda r: r._extend([r._pop()]),
    b"e": lambda r: r._extend(r._pop_to_mark()),
    b"p": lambda r: r._put(int(r._line(32))),
    b"q": lambda r: r._put(r._number("<B")),
    b"r": lambda r: r._put(r._number("<I")),
    b"\x94": lambda r: r._put(len(r._memo)),
    b"g": lambda r: r._get(int(r._line(32))),
    b"h": lambda r: r._get(r._number("<B")),
    b"j": lambda r: r._get(r._number("<I")),
    b"c": lambda r: r._global(r._line().decode("latin-1"), r._line().decode("latin-1")),
    b"\x93": _Reader._stack_global,
    b"R": _Reader._reduce,
    b"b": _Reader._build,
}
_REFUSED = {
    b"}": "a dictionary",
    b"d": "a dictionary",
    b"\x8f": "a set",
    b"\x91": "a set",
    b"i": "an object of a class",
    b"o": "an object of a class",
    b"\x81": "an object of a class",
    b"\x92": "an object of a class",
    b"P": "a reference to elsewhere",
    b"Q": "a reference to elsewhere",
    b"\x97": "a buffer outside the file",
    b"F": "a fraction",
    b"G": "a fraction",
}
