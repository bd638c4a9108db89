# SPDX-License-Identifier: Apache-2.0
"""List files: paths, one per line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from fiqa_fast.errors import ImageError
from fiqa_fast.gallery.errors import InputError
from fiqa_fast.gallery.sources.item import Item, Opening, Source, failing_item, file_item
from fiqa_fast.gallery.sources.keys import Distinct
from fiqa_fast.gallery.text import printable
from fiqa_fast.images import open_regular

__all__ = ["ListSource", "open_list"]

_MAX_LINE = 2**16  # bytes; a path has 4096 at most


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
        for number, line in self._lines():
            if len(line) > _MAX_LINE:
                error = ImageError(f"wanted a path, got a line of more than {_MAX_LINE} bytes")
                yield failing_item(self.prefix + distinct(f"(line {number})"), error)
                continue
            name = os.fsdecode(line)
            key = self.prefix + distinct(printable(name))
            yield file_item(key, os.path.join(self.root, name))

    def pieces(self) -> Iterator[Item | Source]:
        """Yield the images."""
        return iter(self)

    def count(self) -> int:
        """Count the lines that are not blank."""
        return sum(1 for _ in self._lines())

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        """Yield the lines that are not blank, with their numbers; of a long one the start."""
        with open_regular(self.path) as file:
            if file.read(3) != b"\xef\xbb\xbf":
                file.seek(0)
            read = partial(file.readline, _MAX_LINE + 2)  # with its end, CRLF perhaps
            for number, line in enumerate(iter(read, b""), 1):
                rest = line
                while len(rest) == _MAX_LINE + 2 and not rest.endswith(b"\n"):
                    rest = read()
                line = line.removesuffix(b"\n").removesuffix(b"\r")
                if line.strip():
                    yield number, line


def open_list(path: str, opening: Opening) -> ListSource:
    """Open a list file, which has to be readable."""
    with open_regular(path) as file:
        if file.read(2) in (b"\xff\xfe", b"\xfe\xff"):
            raise InputError(f"{printable(path)}: wanted a list in UTF-8, got UTF-16; convert it")
    root = opening.root if opening.root is not None else os.path.dirname(path)
    return ListSource(path, root, opening.prefix)
