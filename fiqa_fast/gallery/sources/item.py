# SPDX-License-Identifier: Apache-2.0
"""What a source yields, and what every source is."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO, NoReturn, Protocol

from fiqa_fast.images import MAX_BYTES, open_regular

__all__ = [
    "MAX_IMAGE_BYTES",
    "InMemory",
    "Item",
    "Opening",
    "Source",
    "failing_item",
    "file_item",
    "path_of",
]

MAX_IMAGE_BYTES = MAX_BYTES  # of one encoded image inside a container, too


@dataclass(frozen=True, slots=True)
class Item:
    """One image to be: its key in the table, and a way to open its encoded bytes.

    ``open`` may raise ``ImageError`` or ``OSError``; the image then becomes a row with that text.
    """

    key: str
    open: Callable[[], BinaryIO]

    @property
    def held(self) -> int:
        """Bytes that the item keeps in memory until it is opened and let go."""
        return len(self.open.data) if isinstance(self.open, InMemory) else 0


@dataclass(frozen=True, slots=True)
class InMemory:
    """Opens bytes that had to be read already, as those of a stream."""

    data: bytes

    def __call__(self) -> BinaryIO:
        """Return the bytes as a file."""
        return io.BytesIO(self.data)


class Source(Protocol):
    """Items in a fixed order, each key once; may be iterated more than once.

    Only standard input cannot be iterated again: it raises ``InputError`` the second time.
    """

    def __iter__(self) -> Iterator[Item]:
        """Yield the items in order."""
        ...

    def pieces(self) -> Iterator[Item | Source]:
        """Yield the same items with containers whole, each with the prefix of its keys.

        A container can be left out unread; one that is read has to be read before the next piece.
        """
        ...

    @property
    def prefix(self) -> str:
        """What the keys begin with."""
        ...

    def count(self) -> int | None:
        """Return how many items there are now, or None where only reading it all would tell.

        For progress: files may come and go, and what a container says of itself is not checked.
        """
        ...


@dataclass(frozen=True, slots=True)
class Opening:
    """What sources are opened with, beside their path."""

    prefix: str = ""  # of the keys
    root: str | None = None  # where the relative paths of list files start
    ext: frozenset[str] | None = None  # suffixes wanted: lower case, without the dot
    exclude: frozenset[str] = frozenset()  # the output files, as real paths
    every: int = 1  # of a video's frames, the first of so many


def _fail(error: Exception) -> NoReturn:
    raise error


def failing_item(key: str, error: Exception) -> Item:
    """Return an item that raises ``error`` when opened, so that nothing is lost silently."""
    return Item(key, partial(_fail, error))


def file_item(key: str, path: str) -> Item:
    """Return the item of an image file."""
    return Item(key, partial(open_regular, path))


def path_of(item: Item) -> str | None:
    """Return the path of an image file's item; None for what is no file of its own."""
    if isinstance(item.open, partial) and item.open.func is open_regular:
        return str(item.open.args[0])
    return None
