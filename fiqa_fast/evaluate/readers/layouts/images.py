# SPDX-License-Identifier: Apache-2.0
"""Finding the images that a list or a table names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial

from fiqa_fast.evaluate.readers.files import StrPath, brief
from fiqa_fast.gallery.errors import InputError
from fiqa_fast.gallery.sources import Item, printable
from fiqa_fast.images import open_regular

__all__ = ["find_images"]

_TRIES = 32  # single images may well be missing


def find_images(names: Sequence[str], folder: str, root: StrPath | None) -> list[Item] | None:
    """Return how to open each image, or None where none of the first ones is there.

    Names start at ``root``, by default the list's own folder. Leading folders of the names that
    are not there are passed over, the same number for all: lists name images as
    ``quality_data/lfw/images/0.jpg`` and stand in ``quality_data/lfw``, or were moved.

    Raises :class:`InputError` where ``root`` is given and the images are not below it.
    """
    base = folder if root is None else os.fspath(root)
    if root is not None and not os.path.isdir(base):
        raise InputError(f"--root: wanted a folder, got {printable(base)}")
    for name in names[:_TRIES]:
        for dropped in range(name.count("/") + 1):
            if os.path.isfile(_place(base, name, dropped)):
                return [
                    Item(printable(other), partial(open_regular, _place(base, other, dropped)))
                    for other in names
                ]
    if root is not None:
        raise InputError(f"--root: found no {brief(names[0])!r} below {printable(base)}")
    return None


def _place(base: str, name: str, dropped: int) -> str:
    return os.path.join(base, name if not dropped else "/".join(name.split("/")[dropped:]))
