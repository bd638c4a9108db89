# SPDX-License-Identifier: Apache-2.0
"""LMDB's pages of format 1: the tree from its root to its leaves."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from fiqa_fast.gallery.sources.container import DamagedError, RandomFile

__all__ = ["DUPLICATES", "SUBTABLE", "find_tree", "leaves"]

_MAGIC, _VERSION = 0xBEEFC0DE, 1
_PAGE = struct.Struct("<QHHHH")  # number, padding, kind, end of the places, start of the nodes
_META = struct.Struct("<IIQQ")  # magic, version, address, size of the map
_TABLE = struct.Struct("<IHHQQQQQ")  # padding, flags, depth, pages of three kinds, entries, root
_BRANCH, _LEAF, _OVERFLOW = 0x01, 0x02, 0x04
_KINDS = _BRANCH | _LEAF | _OVERFLOW
_BIG, SUBTABLE, DUPLICATES = 0x01, 0x02, 0x04  # where a value stands; what it is
_REVERSED, _INTEGERS = 0x02, 0x08  # how keys are compared, else by their bytes
_NOWHERE = 2**64 - 1


@dataclass(frozen=True, slots=True)
class Tree:
    page: int  # bytes of a page
    depth: int
    entries: int
    root: int
    transaction: int
    sorted: bool  # by the keys' bytes


def find_tree(file: RandomFile) -> Tree:
    """Return the table of images by the newer of the two meta pages."""
    first = _meta(file, 0)
    if first is None:
        raise DamagedError("wanted an LMDB environment of format 1, got something else")
    second = _meta(file, first.page)
    return second if second is not None and second.transaction > first.transaction else first


def _meta(file: RandomFile, offset: int) -> Tree | None:
    start = offset + _PAGE.size
    if start + 136 > file.size:
        return None
    magic, version, _, _ = _META.unpack(file.read(start, _META.size))
    if (magic, version) != (_MAGIC, _VERSION):
        return None
    tables = start + _META.size  # that of free pages, then the main one
    page, *_ = _TABLE.unpack(file.read(tables, _TABLE.size))
    _, flags, depth, _, _, _, entries, root = _TABLE.unpack(file.read(tables + _TABLE.size, 48))
    _, transaction = struct.unpack("<QQ", file.read(tables + 96, 16))
    if page not in (2**n for n in range(8, 17)):
        return None
    ordered = not flags & (_REVERSED | _INTEGERS)
    return Tree(page, depth, entries, root, transaction, ordered)


def leaves(file: RandomFile, tree: Tree) -> Iterator[tuple[bytes, int, int, int]]:
    """Yield key, flags, offset and length of each value, in order."""
    left = file.size // tree.page  # a sound tree has each page once, a loop has no end
    stack = [iter([tree.root])] if tree.root != _NOWHERE else []
    while stack:
        number = next(stack[-1], None)
        if number is None:
            stack.pop()
            continue
        left -= 1
        if left < 0 or len(stack) > 32:
            raise DamagedError("damaged: the pages form a loop")
        kind, page = _page(file, tree, number)
        if kind == _BRANCH:
            stack.append(iter([_child(page, place) for place in _places(page)]))
            continue
        for place in _places(page):
            yield _leaf(file, tree, number, page, place)


def _page(file: RandomFile, tree: Tree, number: int) -> tuple[int, bytes]:
    if number >= file.size // tree.page:
        raise DamagedError("damaged or cut off: a page beyond the end of the file")
    page = file.read(number * tree.page, tree.page)
    own, _, kind, _, _ = _PAGE.unpack_from(page)
    if own != number or kind & _KINDS not in (_BRANCH, _LEAF):
        raise DamagedError("damaged: wanted a page of the tree, got another")
    return kind & _KINDS, page


def _places(page: bytes) -> list[int]:
    _, _, _, lower, _ = _PAGE.unpack_from(page)
    if not _PAGE.size <= lower <= len(page):
        raise DamagedError("damaged: a page with more entries than it has room for")
    places = struct.unpack_from(f"<{(lower - _PAGE.size) // 2}H", page, _PAGE.size)
    if any(place + 8 > len(page) for place in places):
        raise DamagedError("damaged: an entry beyond the end of its page")
    return list(places)


def _child(page: bytes, place: int) -> int:
    low, high, top, _ = struct.unpack_from("<HHHH", page, place)
    return int(low | high << 16 | top << 32)


def _leaf(
    file: RandomFile, tree: Tree, number: int, page: bytes, place: int
) -> tuple[bytes, int, int, int]:
    low, high, flags, key_length = struct.unpack_from("<HHHH", page, place)
    length, start = low | high << 16, place + 8 + key_length
    key = page[place + 8 : start]
    if start + (8 if flags & _BIG else length) > len(page):
        raise DamagedError("damaged: an entry beyond the end of its page")
    if not flags & _BIG:
        return key, flags, number * tree.page + start, length
    (other,) = struct.unpack_from("<Q", page, start)
    # What is wrong from here on concerns this image alone: reading it will say.
    return key, flags, other * tree.page + _PAGE.size, length
