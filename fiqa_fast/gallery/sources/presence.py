# SPDX-License-Identifier: Apache-2.0
"""Whether what is being read is still there, so that a lost disk is no list of bad images."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable

from fiqa_fast.gallery.errors import InputError
from fiqa_fast.gallery.sources.globbed import base_of, is_pattern
from fiqa_fast.gallery.text import printable
from fiqa_fast.images import describe

__all__ = ["Presence"]


class Presence:
    """Remembers what the inputs were, and says whether they still are."""

    def __init__(self, inputs: Iterable[str], root: str | None = None) -> None:
        """Take note of the inputs, of the folders where patterns start, and of ``root``."""
        paths = [base_of(path) if is_pattern(path) else path for path in inputs if path != "-"]
        paths += [] if root is None else [root]
        self._were = {path: _identity(path) for path in paths}

    def check(self) -> None:
        """Raise :class:`InputError` where an input has vanished or is another one now."""
        for path, was in self._were.items():
            try:
                now = _identity(path)
            except OSError as error:
                raise InputError(
                    f"{printable(path)}: has vanished while it was read ({describe(error)}); run "
                    "the same command again once it is back"
                ) from error
            if now[:2] != was[:2] or now[2] < was[2]:
                raise InputError(
                    f"{printable(path)}: was cut off, replaced or emptied while it was read; run "
                    "the same command again once it is back"
                )


def _identity(path: str) -> tuple[int, int, int]:
    """Return what tells an input from another one of its name, and about how much is in it."""
    status = os.stat(path)
    size = status.st_size
    if stat.S_ISDIR(status.st_mode):
        with os.scandir(path) as entries:  # of a disk that was unmounted, its folder remains
            size = int(next(entries, None) is not None)
    return status.st_dev, status.st_ino, size
