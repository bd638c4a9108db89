# SPDX-License-Identifier: Apache-2.0
"""Input files that are no images: opened as files alone, read as UTF-8, refused in one line."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from fiqa_fast.errors import ImageError
from fiqa_fast.gallery.errors import InputError
from fiqa_fast.gallery.text import brief, printable
from fiqa_fast.images import describe, open_regular

__all__ = ["StrPath", "brief", "open_input", "open_text", "stem_of"]

StrPath = str | os.PathLike[str]


def stem_of(path: StrPath) -> str:
    """Return the name of a file without its folder and suffix."""
    return os.path.splitext(os.path.basename(os.path.abspath(path)))[0]


@contextmanager
def open_input(path: StrPath) -> Iterator[BinaryIO]:
    """Open a regular file; what fails while it is read is an :class:`InputError` too."""
    name = printable(os.fspath(path))
    try:
        with open_regular(path) as file:
            yield file
    except (OSError, ImageError) as error:
        raise InputError(f"{name}: {describe(error)}") from error


@contextmanager
def open_text(path: StrPath) -> Iterator[io.TextIOWrapper]:
    """Open a UTF-8 file, byte order mark or not, with its line ends as they are."""
    name = printable(os.fspath(path))
    with open_input(path) as file, io.TextIOWrapper(file, "utf-8-sig", newline="") as text:
        try:
            yield text
        except UnicodeDecodeError as error:
            raise InputError(f"{name}: wanted text in UTF-8, got something else") from error
