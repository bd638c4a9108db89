# SPDX-License-Identifier: Apache-2.0
"""LMDB environments, read page by page without the library.

The library maps the file into memory and believes it: a damaged or shrinking file ends the
process. Format 1 (that of LMDB 0.9) is a tree of pages; this reader follows it with reads that
are checked, takes the newer of the two meta pages, and never locks or writes. An environment
that somebody writes to meanwhile is to be read when they are done.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial

from fiqa_fast.gallery.errors import InputError
from fiqa_fast.gallery.sources.container import Container, DamagedError, Entry, RandomFile
from fiqa_fast.gallery.sources.item import Opening
from fiqa_fast.gallery.sources.keys import Distinct, member_key
from fiqa_fast.gallery.sources.lmdb_pages import DUPLICATES, SUBTABLE, find_tree, leaves
from fiqa_fast.gallery.text import printable

__all__ = ["LmdbSource", "open_lmdb"]

_NOTES = frozenset((b"length", b"num-samples", b"num_samples", b"meta"))  # beside __len__ and such


class LmdbSource(Container):
    """Keys are the environment's, in its order; entries such as ``__len__`` are left out."""

    def count(self) -> int | None:
        """Return how many entries the environment says it has."""
        return find_tree(RandomFile(_data(self.path))).entries

    def _distinct(self) -> Callable[[str], str]:
        distinct = Distinct()
        if not find_tree(RandomFile(_data(self.path))).sorted:
            return distinct
        # Sorted keys are distinct; only two that had to be escaped may look alike.
        return lambda key: distinct(key) if "\\" in key else key

    def _entries(self) -> Iterator[Entry]:
        file = RandomFile(_data(self.path))
        tree = find_tree(file)
        found = 0
        last = b""
        for key, flags, offset, length in leaves(file, tree):
            if tree.sorted and key <= last:
                raise DamagedError("damaged: wanted sorted entries, got others")
            last = key
            found += 1
            if key in _NOTES or (key.startswith(b"__") and key.endswith(b"__")):
                self.skipped += 1
            elif flags & (SUBTABLE | DUPLICATES):
                raise DamagedError("wanted one table of images, got tables within or duplicates")
            else:
                name = member_key(os.fsdecode(key))
                yield name, partial(file.image, offset, length)
        if found != tree.entries:
            raise DamagedError(f"damaged: wanted {tree.entries} entries, got {found}")


def _data(path: str) -> str:
    return os.path.join(path, "data.mdb") if os.path.isdir(path) else path


def open_lmdb(path: str, opening: Opening) -> LmdbSource:
    """Open an environment: its folder, or its file."""
    try:
        find_tree(RandomFile(_data(path)))
    except DamagedError as error:
        raise InputError(f"{printable(path)}: {error}") from error
    return LmdbSource(path, opening)
