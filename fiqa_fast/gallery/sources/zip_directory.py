# SPDX-License-Identifier: Apache-2.0
"""A ZIP archive's central directory, read piece by piece."""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from fiqa_fast.gallery.sources.container import DamagedError, RandomFile

__all__ = ["Directory", "Member", "find_directory", "read_members"]

_END = struct.Struct("<4s4H2LH")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_MEMBER = struct.Struct("<4s6H3L5H2L")
_LONGEST = _MEMBER.size + 3 * 2**16  # name, extra field, comment
_WINDOW = 2**18
_UTF8 = 0x800


@dataclass(frozen=True, slots=True)
class Directory:
    """Where the directory is, and of how many members."""

    offset: int
    size: int
    count: int
    shift: int  # bytes that somebody put before the archive: offsets do not count them


@dataclass(frozen=True, slots=True)
class Member:
    """What the directory says of a member."""

    name: str
    flags: int
    method: int
    checksum: int
    packed: int
    size: int
    offset: int  # in the file
    link: bool


def find_directory(file: RandomFile) -> Directory:
    """Find the end of the directory, before a comment of at most 64 KiB."""
    start = max(0, file.size - 2**16 - _END.size)
    tail = file.read(start, file.size - start)
    place = tail.rfind(b"PK\5\6")
    if place < 0 or place + _END.size > len(tail):
        raise DamagedError("wanted a ZIP archive, got something else or one that is cut off")
    end = start + place
    _, disk, _, _, count, size, offset, _ = _END.unpack_from(tail, place)
    full = 0xFFFF in (count, disk) or 0xFFFFFFFF in (size, offset)
    if full and end >= 20 and file.read(end - 20, 4) == b"PK\6\7":
        count, size, offset, end = _directory_64(file, end)
    shift = end - size - offset
    if shift < 0:
        raise DamagedError("damaged or cut off: the directory is longer than the archive")
    return Directory(offset + shift, size, count, shift)


def _directory_64(file: RandomFile, end: int) -> tuple[int, int, int, int]:
    """Return entries, size and offset of a large archive's directory, and where it ends."""
    told = int.from_bytes(file.read(end - 12, 8), "little")
    # It stands right before its locator, unless somebody added to it.
    for start in (told, end - 20 - _END_64.size):
        if 0 <= start <= file.size - _END_64.size:
            record = file.read(start, _END_64.size)
            if record.startswith(b"PK\6\6"):
                *_, count, size, offset = _END_64.unpack(record)
                return count, size, offset, start
    raise DamagedError("damaged: the archive's directory is not where it should be")


def read_members(file: RandomFile, directory: Directory) -> Iterator[Member]:
    """Yield the members. Raises :class:`DamagedError` where the directory breaks off."""
    found = 0
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
        found += 1
        size, packed, local = _long(extra, (size, packed, local))
        codec = "utf-8" if flags & _UTF8 else "cp437"
        text = name.decode(codec, "backslashreplace")
        link = stat.S_ISLNK(mode >> 16)
        yield Member(text, flags, method, checksum, packed, size, local + directory.shift, link)
    if (found - directory.count) % 2**16:
        raise DamagedError(f"damaged: wanted {directory.count} members, got {found}")


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
