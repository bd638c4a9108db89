# SPDX-License-Identifier: Apache-2.0
"""What readers of containers have in common.

No length that a file claims is believed: it is compared with the file and with a limit before
anything is read. Files are read at offsets and not memory-mapped, because a mapped file that
shrinks ends the process.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from fiqa_fast.errors import ImageError
from fiqa_fast.gallery.sources.item import MAX_IMAGE_BYTES, Item, Opening, Source, failing_item
from fiqa_fast.gallery.sources.keys import Distinct
from fiqa_fast.gallery.text import printable
from fiqa_fast.images import describe, open_regular

__all__ = [
    "Container",
    "DamagedError",
    "Entry",
    "RandomFile",
    "check_size",
    "fails",
    "is_sidecar",
]

Entry = tuple[str, Callable[[], BinaryIO]]  # a name and how to open what it names

_SUFFIXES = frozenset(
    (
        *("jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "dib", "tif", "tiff", "gif"),
        *("ppm", "pgm", "pbm", "pnm", "jp2", "j2k", "jpx"),
    )
)
# The formats that images.decode knows, by their first bytes.
_SIGNATURES = (
    *(b"\xff\xd8\xff", b"\x89PNG", b"BM", b"II*\0", b"MM\0*", b"GIF8"),
    *(b"\0\0\0\x0cjP", b"\xff\x4f\xff\x51"),
    *(b"P%d" % n for n in range(1, 7)),
)


class DamagedError(ImageError):
    """A container is damaged from here on; one line."""


class RandomFile:
    """A regular file read at offsets, from any thread; open for as long as somebody holds it."""

    def __init__(self, path: str) -> None:
        with open_regular(path) as file:
            self._fd = os.dup(file.fileno())
        self.path = path
        self.size = os.fstat(self._fd).st_size

    def __reduce__(self) -> tuple[type[RandomFile], tuple[str]]:
        """Another process opens the file again."""
        return RandomFile, (self.path,)

    def __del__(self) -> None:
        fd = getattr(self, "_fd", None)
        if fd is not None:
            os.close(fd)

    def read(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes. Raises :class:`DamagedError` where the file has fewer."""
        if not 0 <= length <= self.size - offset or offset < 0:
            raise DamagedError("the file ends before this image does")
        data = os.pread(self._fd, length, offset)
        while len(data) < length:  # a signal, or more than one call reads
            more = os.pread(self._fd, length - len(data), offset + len(data))
            if not more:
                raise DamagedError("the file has shrunk while it was read")
            data += more
        return data

    def image(self, offset: int, length: int) -> BinaryIO:
        """Return an encoded image. Raises :class:`fiqa_fast.ImageError`."""
        check_size(length)
        return io.BytesIO(self.read(offset, length))


def check_size(length: int) -> None:
    """Refuse an encoded image that is too long to be one."""
    if length > MAX_IMAGE_BYTES:
        raise ImageError(
            f"wanted an image of at most {MAX_IMAGE_BYTES // 2**20} MiB, got {length} bytes"
        )


def fails(text: str) -> Callable[[], BinaryIO]:
    """Return what refuses to open."""
    return failing_item("", ImageError(text)).open


def is_sidecar(name: str, head: Callable[[], bytes], ext: frozenset[str] | None) -> bool:
    """Whether a member is no image by its suffix nor by its first bytes, or hidden, or unwanted.

    A member with an image's suffix counts whatever is in it; a label or a caption does not.
    """
    base = name.rpartition("/")[2]
    suffix = os.path.splitext(base)[1][1:].lower()
    if any(part.startswith(".") and part not in (".", "..") for part in name.split("/")):
        return True
    if ext is not None:
        return suffix not in ext
    if suffix in _SUFFIXES:
        return False
    start = head()
    return not (start.startswith(_SIGNATURES) or start[:4] + start[8:12] == b"RIFFWEBP")


@dataclass
class Container:
    """A file with many images, or a folder of one.

    A reader has ``_entries``. What is wrong with one image is raised when it is opened; a
    :class:`DamagedError` from ``_entries`` ends the container: what was yielded stays, the rest
    becomes one item that fails, and ``damage`` says why, in a line with the path.
    """

    path: str
    opening: Opening = field(default_factory=Opening)
    skipped: int = field(default=0, init=False)  # of the last iteration: no images
    damage: list[str] = field(default_factory=list, init=False)  # of the last iteration

    def __iter__(self) -> Iterator[Item]:
        """Yield the images in the order of the container."""
        self.skipped, self.damage = 0, []
        distinct = self._distinct()
        try:
            for name, opener in self._entries():
                yield Item(self.opening.prefix + distinct(name), opener)
        except (ImageError, OSError) as error:
            self.damage.append(f"{printable(self.path)}: {describe(error)}")
            rest = f"{self.opening.prefix}(rest of {printable(os.path.basename(self.path))})"
            yield failing_item(rest, ImageError(describe(error)))

    def pieces(self) -> Iterator[Item | Source]:
        """Yield the container itself."""
        yield self

    @property
    def prefix(self) -> str:
        """What the keys begin with."""
        return self.opening.prefix

    def count(self) -> int | None:
        """Return how many images the container says it has, if it does."""
        return None

    def _distinct(self) -> Callable[[str], str]:
        return Distinct()

    def _entries(self) -> Iterator[Entry]:
        raise NotImplementedError
