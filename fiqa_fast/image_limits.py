# SPDX-License-Identifier: Apache-2.0
"""What an encoded image may ask for: bytes, pixels and time, checked before they are spent."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from fiqa_fast.errors import ImageError

__all__ = ["MAX_BYTES", "MAX_PIXELS", "check_file", "check_pixels", "check_scans", "room_for"]

MAX_PIXELS = 64 * 2**20
# Of one encoded image, in a file or in a container. An aligned crop takes ten kilobytes; whoever
# claims gigabytes wants memory, and headers of many megabytes take minutes.
MAX_BYTES = 32 * 2**20

_SMALL_FILE = 2**20
_MAX_SEGMENTS = 1024  # before a JPEG's pixels; a colour profile has 255 at most
_MAX_SCANNED = 2**32  # pixels, times the scans of a progressive JPEG; ten scans are usual
_SHORTEST_SCAN = 10  # bytes
_SMALL_IMAGE = 4 * 2**20  # pixels

_large = threading.Lock()


def check_file(file: BinaryIO) -> None:
    """Refuse what is too long to be an image, or a JPEG of notes without end."""
    size = file.seek(0, os.SEEK_END)
    if size > MAX_BYTES:
        raise ImageError(f"wanted an image of at most {MAX_BYTES // 2**20} MiB, got {size} bytes")
    file.seek(0)
    if size > _SMALL_FILE and file.read(2) == b"\xff\xd8":
        for _ in range(_MAX_SEGMENTS):
            mark = file.read(4)
            if mark[:1] != b"\xff" or mark[1:2] == b"\xda" or len(mark) < 4:
                break
            file.seek(int.from_bytes(mark[2:], "big") - 2, os.SEEK_CUR)
        else:
            raise ImageError(f"wanted at most {_MAX_SEGMENTS} segments before the pixels, got more")
    file.seek(0)


def check_pixels(width: int, height: int) -> None:
    """Refuse images of too many pixels, and of none."""
    if width * height > MAX_PIXELS:
        raise ImageError(f"wanted at most {MAX_PIXELS // 2**20} Mpixel, got {width} x {height}")
    if min(width, height) < 1:
        raise ImageError(f"wanted at least one pixel, got {width} x {height}")


def check_scans(data: bytes, pixels: int) -> None:
    """Refuse a JPEG that paints the same pixels over and over: some bytes each, hours in all."""
    if len(data) // _SHORTEST_SCAN * pixels > _MAX_SCANNED:
        scans = data.count(b"\xff\xda")  # never among the pixels, where 255 is escaped
        if scans * pixels > _MAX_SCANNED:
            most = _MAX_SCANNED // pixels
            raise ImageError(f"wanted at most {most} scans of that many pixels, got {scans}")


@contextmanager
def room_for(pixels: int) -> Iterator[None]:
    """Let large images be decoded one after the other: each thread may meet one of 700 MB."""
    if pixels <= _SMALL_IMAGE:
        yield
        return
    with _large:
        yield


def _forget() -> None:
    """The thread that held the lock is not in the child."""
    global _large
    _large = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
