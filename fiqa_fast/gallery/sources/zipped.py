# SPDX-License-Identifier: Apache-2.0
"""ZIP archives: the central directory is read piece by piece, members when they are opened."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
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
from fiqa_fast.gallery.sources.zip_directory import Member, find_directory, read_members
from fiqa_fast.gallery.text import printable

__all__ = ["ZipSource", "open_zip"]

_STORED, _DEFLATED = 0, 8
_ENCRYPTED = 1


class ZipSource(Container):
    """Keys are the members' names; members that are no images are left out."""

    def count(self) -> int | None:
        """Return how many members the directory says it has."""
        return find_directory(RandomFile(self.path)).count

    def _entries(self) -> Iterator[Entry]:
        file = RandomFile(self.path)
        for member in read_members(file, find_directory(file)):
            key = member_key(member.name)
            if key.endswith("/"):
                continue
            head = partial(_head, file, member)
            if member.link or is_sidecar(key, head, self.opening.ext):
                self.skipped += 1
            else:
                yield key, partial(_open, file, member)


def _open(file: RandomFile, member: Member) -> BinaryIO:
    """Return a member's bytes, unpacked to the length that the directory promises at most."""
    check_size(member.size)
    data = _unpacked(file, member, member.packed, member.size)
    if len(data) != member.size or zlib.crc32(data) != member.checksum:
        raise ImageError("damaged: the member's bytes are not those that its checksum is of")
    return io.BytesIO(data)


def _head(file: RandomFile, member: Member) -> bytes:
    try:
        return _unpacked(file, member, min(member.packed, 4096), 16)
    except ImageError:
        return b""


def _unpacked(file: RandomFile, member: Member, packed: int, size: int) -> bytes:
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
        find_directory(RandomFile(path))
    except DamagedError as error:
        raise InputError(f"{printable(path)}: {error}") from error
    return ZipSource(path, opening)
