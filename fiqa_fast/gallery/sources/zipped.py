# SPDX-License-Identifier: Apache-2.0
"""ZIP archives: the central directory is read piece by piece, members when they are opened."""

from __future__ import annotations

import io
import stat
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO

from fiqa_fast.errors import ImageError
from fiqa_fast.gallery.errors import InputError
from fiqa_fast.gallery.sources.container import (
    Container,
    DamagedError,
    Entry,
    RandomFile,
    check_size,
    is_sidecar,
)
from fiqa_fast.gallery.sources.item import Opening
from fiqa_fast.gallery.sources.keys import member_key
from fiqa_fast.gallery.text import printable

__all__ = ["ZipSource", "open_zip"]

_END = struct.Struct("<4s4H2LH")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_MEMBER = struct.Struct("<4s6H3L5H2L")
_LONGEST = _MEMBER.size + 3 * 2**16  # name, extra field, comment
_WINDOW = 2**18
_STORED, _DEFLATED = 0, 8
_ENCRYPTED, _UTF8 = 1, 0x800


@dataclass(frozen=True, slots=True)
class _Directory:
    offset: int
    size: int
    count: int
    shift: int  # bytes that somebody put before the archive: offsets do not count them


@dataclass(frozen=True, slots=True)
class _Member:
    name: str
    flags: int
    method: int
    checksum: int
    packed: int
    size: int
    offset: int
    link: bool


class ZipSource(Container):
    """Keys are the members' names; members that are no images are left out."""

    def count(self) -> int | None:
        """Return how many members the directory says it has."""
        return _directory(RandomFile(self.path)).count

    def _entries(self) -> Iterator[Entry]:
        file = RandomFile(self.path)
        for member in _members(file, _directory(file)):
            key = member_key(member.name)
            if key.endswith("/"):
                continue
            head = partial(_head, file, member)
            if member.link or is_sidecar(key, head, self.opening.ext):
                self.skipped += 1
            else:
                yield key, partial(_open, file, member)


def _directory(file: RandomFile) -> _Directory:
    """Find the end of the directory, before a comment of at most 64 KiB."""
    start = max(0, file.size - 2**16 - _END.size)
    tail = file.read(start, file.size - start)
    place = tail.rfind(b"PK\5\6")
    if place < 0 or place + _END.size > len(tail):
        raise DamagedError("wanted a ZIP archive, got something else or one that is cut off")
    end = start + place
    _, disk, _, _, count, size, offset, _ = _END.unpack_from(tail, place)
    if 0xFFFF in (count, disk) or 0xFFFFFFFF in (size, offset):
        count, size, offset, end = _directory_64(file, end)
    shift = end - size - offset
    if shift < 0:
        raise DamagedError("damaged or cut off: the directory is longer than the archive")
    return _Directory(offset + shift, size, count, shift)


def _directory_64(file: RandomFile, end: int) -> tuple[int, int, int, int]:
    """Return entries, size and offset of a large archive's directory, and where it ends."""
    locator = file.read(end - 20, 20) if end >= 20 else b""
    told = int.from_bytes(locator[8:16], "little")
    # It stands right before its locator, unless somebody added to it.
    for start in (told, end - 20 - _END_64.size):
        if locator.startswith(b"PK\6\7") and 0 <= start <= file.size - _END_64.size:
            record = file.read(start, _END_64.size)
            if record.startswith(b"PK\6\6"):
                *_, count, size, offset = _END_64.unpack(record)
                return count, size, offset, start
    raise DamagedError("damaged: the archive's directory is not where it should be")


def _members(file: RandomFile, directory: _Directory) -> Iterator[_Member]:
    offset, end = directory.offset, directory.offset + directory.size
    window, start = b"", offset
    while offset < end:
        if offset + _LONGEST > start + len(window) < end:
            window, start = file.read(offset, min(_WINDOW, end - offset)), offset
        place = offset - start
        fields = window[place : place + _MEMBER.size]
        if len(fields) < _MEMBER.size or not fields.startswith(b"PK\1\2"):
            raise DamagedError("damaged: the archive's directory breaks off")
        (_, _, _, flags, method, _, _, checksum, packed, size, *lengths, _, _, mode, local) = (
            _MEMBER.unpack(fields)
        )
        name_length, extra_length, comment_length = lengths
        place += _MEMBER.size
        name = window[place : place + name_length]
        extra = window[place + name_length : place + name_length + extra_length]
        offset += _MEMBER.size + name_length + extra_length + comment_length
        if offset > end:
            raise DamagedError("damaged: the archive's directory breaks off")
        size, packed, local = _long(extra, (size, packed, local))
        codec = "utf-8" if flags & _UTF8 else "cp437"
        text = name.decode(codec, "backslashreplace")
        link = stat.S_ISLNK(mode >> 16)
        yield _Member(text, flags, method, checksum, packed, size, local + directory.shift, link)


def _long(extra: bytes, numbers: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return sizes and offset, with those of 64 bits from the extra field."""
    found = dict(enumerate(numbers))
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<HH", extra)
        if kind == 1:
            values = iter(struct.unpack_from(f"<{min(length, len(extra) - 4) // 8}Q", extra, 4))
            for i, number in enumerate(numbers):
                if number == 0xFFFFFFFF:
                    found[i] = next(values, number)
        extra = extra[4 + length :]
    return found[0], found[1], found[2]


def _open(file: RandomFile, member: _Member) -> BinaryIO:
    """Return a member's bytes, unpacked to the length that the directory promises at most."""
    check_size(member.size)
    data = _unpacked(file, member, member.packed, member.size)
    if len(data) != member.size or zlib.crc32(data) != member.checksum:
        raise ImageError("damaged: the member's bytes are not those that its checksum is of")
    return io.BytesIO(data)


def _head(file: RandomFile, member: _Member) -> bytes:
    try:
        return _unpacked(file, member, min(member.packed, 4096), 16)
    except ImageError:
        return b""


def _unpacked(file: RandomFile, member: _Member, packed: int, size: int) -> bytes:
    if member.flags & _ENCRYPTED:
        raise ImageError("wanted a plain member, got an encrypted one")
    if member.method not in (_STORED, _DEFLATED):
        raise ImageError(f"wanted a stored or deflated member, got method {member.method}")
    check_size(packed)
    local = file.read(member.offset, 30)
    if not local.startswith(b"PK\3\4"):
        raise ImageError("damaged: the member is not where the directory says")
    name_length, extra_length = struct.unpack_from("<HH", local, 26)
    data = file.read(member.offset + 30 + name_length + extra_length, packed)
    if member.method == _STORED:
        return data[:size]
    try:
        return zlib.decompressobj(-15).decompress(data, max(size, 1))
    except zlib.error as error:
        raise ImageError(f"damaged: {error}") from error


def open_zip(path: str, opening: Opening) -> ZipSource:
    """Open an archive, which has to have a directory."""
    try:
        _directory(RandomFile(path))
    except DamagedError as error:
        raise InputError(f"{printable(path)}: {error}") from error
    return ZipSource(path, opening)
