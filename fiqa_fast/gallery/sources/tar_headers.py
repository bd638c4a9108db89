# SPDX-License-Identifier: Apache-2.0
"""Headers of tar members: ustar, GNU's long names and PAX records."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from fiqa_fast.gallery.sources.container import DamagedError

__all__ = ["BLOCK", "Member", "is_header", "read_members"]

BLOCK = 512
_MAX_END = 2**14  # blocks of zeros; writers fill up to some twenty
_MAX_METADATA = 2**16  # of names and PAX records; a path has 4096 bytes at most


@dataclass(frozen=True, slots=True)
class Member:
    """One member; its bytes follow its headers."""

    name: bytes
    size: int
    kind: bytes
    sparse: bool

    @property
    def regular(self) -> bool:
        """Whether this is a file, not a link, a folder, a pipe or a device."""
        return self.kind in b"\x000S7" and not self.name.endswith(b"/")


def is_header(block: bytes) -> bool:
    """Whether a block is a member's header, by its checksum."""
    try:
        wanted = _number(block[148:156]) if len(block) == BLOCK else -1
    except DamagedError:
        return False
    data = block[:148] + b" " * 8 + block[156:]
    # Old writers summed signed bytes.
    return sum(data) == wanted or (wanted >= 0 and sum(struct.unpack("512b", data)) == wanted)


def _number(field: bytes) -> int:
    if field[0] in (0x80, 0xFF):  # GNU's binary numbers, the latter negative
        value = int.from_bytes(field[1:], "big", signed=False)
        if field[0] == 0xFF or value >= 2**62:
            raise DamagedError("damaged: a member's size is no size")
        return value
    digits = field.split(b"\0")[0].strip()
    if digits.strip(b"01234567"):
        raise DamagedError("damaged: a member's header holds no number where one belongs")
    return int(digits or b"0", 8)


def read_members(read: Callable[[int], bytes], skip: Callable[[int], None]) -> Iterator[Member]:
    """Yield the members; whoever takes one has to read or skip its bytes, padded to blocks.

    Raises :class:`DamagedError` for headers that are none, and where the archive ends early.
    """
    everywhere: dict[bytes, bytes] = {}  # PAX records of all members to come
    here: dict[bytes, bytes] = {}  # and of the next
    ended = 0
    while True:
        block = read(BLOCK)
        if not block.strip(b"\0"):
            if ended > _MAX_END or (ended and len(block) < BLOCK):
                return
            if len(block) < BLOCK:
                raise DamagedError("the archive is cut off")
            ended += 1  # blocks of zeros are the end, or another archive was appended
            continue
        if not is_header(block):
            if ended:
                return
            cut = len(block) < BLOCK
            raise DamagedError("the archive is cut off" if cut else "damaged: no header here")
        ended = 0
        kind, size = block[156:157], _number(block[124:136])
        if kind in b"xXgLK":
            if size > _MAX_METADATA:
                raise DamagedError(f"damaged: a member's name or notes of {size} bytes")
            data = read(size)
            skip(-size % BLOCK)
            if len(data) < size:
                raise DamagedError("the archive is cut off")
            if kind == b"L":
                here[b"path"] = data.split(b"\0")[0]
            elif kind != b"K":
                (everywhere if kind == b"g" else here).update(_records(data))
            continue
        notes, here = {**everywhere, **here}, {}
        if size_note := notes.get(b"size"):
            if not size_note.isdigit() or len(size_note) > 18:
                raise DamagedError("damaged: a member's size is no size")
            size = int(size_note)
        sparse = kind == b"S" or b"sparse" in notes
        name = notes.get(b"GNU.sparse.name") or notes.get(b"path") or _name(block)
        if kind == b"S":
            _skip_sparse(block, read)
        # Links, devices, pipes and folders have no bytes, whatever size they claim.
        yield Member(name, 0 if kind in b"123456" else size, kind, sparse)


def _name(block: bytes) -> bytes:
    name, prefix = block[:100].split(b"\0")[0], block[345:500].split(b"\0")[0]
    return prefix + b"/" + name if prefix and block[257:263] == b"ustar\0" else name


def _records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield what matters of PAX records: ``length key=value`` and a line end, length of it all."""
    while data.strip(b"\0"):
        digits, _, _ = data.partition(b" ")
        length = int(digits) if digits.isdigit() and len(digits) < 6 else 0
        key, equals, value = data[len(digits) + 1 : length - 1].partition(b"=")
        if not equals or data[length - 1 : length] != b"\n":
            raise DamagedError("damaged: a member's notes are no PAX records")
        if key in (b"path", b"size", b"GNU.sparse.name"):
            yield key, value
        if key.startswith(b"GNU.sparse."):
            yield b"sparse", b"1"
        data = data[length:]


def _skip_sparse(block: bytes, read: Callable[[int], bytes]) -> None:
    """Pass over the blocks in which old GNU archives continue the map of a sparse member."""
    extended = block[482]
    while extended:
        more = read(BLOCK)
        if len(more) < BLOCK:
            raise DamagedError("the archive is cut off")
        extended = more[504]
