# SPDX-License-Identifier: Apache-2.0
"""List files: paths, one per line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from fiqa_fast.gallery.errors import InputError
from fiqa_fast.gallery.sources.item import Item, Opening, Source, file_item
from fiqa_fast.gallery.sources.keys import Distinct
from fiqa_fast.gallery.text import printable
from fiqa_fast.images import open_regular

__all__ = ["ListSource", "open_list"]


@dataclass
class ListSource:
    """The paths of a text file, one per line as written, in its order; blank lines are skipped.

    Relative paths start at ``root``. CRLF line ends and a UTF-8 byte order mark are tolerated.
    A line that stands there twice is two items, the second with ``#2`` after its key.
    """

    path: str
    root: str
    prefix: str = ""

    def __iter__(self) -> Iterator[Item]:
        """Read the list line by line."""
        distinct = Distinct()
        for name in self._names():
            key = self.prefix + distinct(printable(name))
            yield file_item(key, os.path.join(self.root, name))

    def pieces(self) -> Iterator[Item | Source]:
        """Yield the images."""
        return iter(self)

    def count(self) -> int:
        """Count the lines that are not blank."""
        return sum(1 for _ in self._names())

    def _names(self) -> Iterator[str]:
        with open(self.path, "rb") as file:
            start = file.read(3)
            if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
                raise InputError(f"{self.path}: wanted a list in UTF-8, got UTF-16; convert it")
            if start != b"\xef\xbb\xbf":
                file.seek(0)
            for line in file:
                line = line.removesuffix(b"\n").removesuffix(b"\r")
                if line.strip():
                    yield os.fsdecode(line)


def open_list(path: str, opening: Opening) -> ListSource:
    """Open a list file, which has to be readable."""
    open_regular(path).close()
    root = opening.root if opening.root is not None else os.path.dirname(path)
    return ListSource(path, root, opening.prefix)
