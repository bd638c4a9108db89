# SPDX-License-Identifier: Apache-2.0
"""What ``-o`` names: a sheet, raw arrays, or a folder of overlays."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

from fiqa_fast.gallery.atomic import check_folder, check_target
from fiqa_fast.gallery.errors import OutputError
from fiqa_fast.gallery.sources import printable

__all__ = ["Target", "check_targets"]

_SHEETS = (".png", ".pdf", ".svg", ".jpg", ".jpeg")
_ARRAYS = (".npz", ".npy")


class Target(NamedTuple):
    """One thing to write; ``kind`` is sheet, arrays or folder."""

    path: str
    kind: str


def check_targets(outputs: Sequence[str], inputs: Sequence[str]) -> list[Target]:
    """Tell by its name what each output is: a known suffix, or else a folder.

    Raises:
        OutputError: one cannot be written, has a suffix of something else, is named twice, or is an
            input or lies in one, where the next run would take it for an image.
    """
    targets = [_target(path) for path in outputs]
    places = [os.path.realpath(target.path) for target in targets]
    for number, (target, place) in enumerate(zip(targets, places, strict=True)):
        name = printable(target.path)
        if place in places[:number]:
            raise OutputError(f"{name}: this output is named twice")
        for given in inputs:
            source = os.path.realpath(given)
            if place == source:
                raise OutputError(f"{name}: this is an input too; name another output")
            if os.path.isdir(source) and place.startswith(os.path.join(source, "")):
                raise OutputError(
                    f"{name}: it lies in the input {printable(given)}, where it would be taken for "
                    "an image the next time; name a place outside"
                )
    return targets


def _target(path: str) -> Target:
    suffix = os.path.splitext(path)[1].lower()
    if path.endswith(("/", os.sep)) or os.path.isdir(path) or not suffix:
        check_folder(path)
        return Target(path, "folder")
    if suffix not in (*_SHEETS, *_ARRAYS):
        raise OutputError(
            f"{printable(path)}: wanted {', '.join(_SHEETS)} for a sheet, {' or '.join(_ARRAYS)} "
            "for arrays, or a folder, with / at its end if its name has a dot"
        )
    check_target(path)
    return Target(path, "sheet" if suffix in _SHEETS else "arrays")
