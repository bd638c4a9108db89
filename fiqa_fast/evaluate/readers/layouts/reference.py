# SPDX-License-Identifier: Apache-2.0
"""The layout of the papers' evaluation code: ``image_path_list.txt`` and ``pair_list.txt``."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from fiqa_fast.evaluate.readers.files import StrPath, brief, open_input
from fiqa_fast.evaluate.readers.keys import MISSING, match
from fiqa_fast.evaluate.readers.layouts.dataset import Dataset, Pairs
from fiqa_fast.evaluate.readers.layouts.images import find_images
from fiqa_fast.gallery.errors import InputError
from fiqa_fast.gallery.sources import printable

__all__ = ["IMAGES", "PAIRS", "open_reference"]

IMAGES, PAIRS = "image_path_list.txt", "pair_list.txt"


def open_reference(path: StrPath, root: StrPath | None = None) -> Dataset:
    """Open a folder with both lists.

    A path that the list repeats, as some extraction scripts write it once per pair, counts once.
    Names of pairs are matched to paths as :func:`fiqa_fast.evaluate.readers.keys.match` says.
    """
    folder = os.fspath(path)
    names = list(dict.fromkeys(line for _, line in _lines(os.path.join(folder, IMAGES))))
    if not names:
        raise InputError(f"{printable(folder)}/{IMAGES}: wanted paths of images, got none")
    paths = [printable(name) for name in names]
    pairs = _read_pairs(os.path.join(folder, PAIRS), paths)
    name = os.path.basename(os.path.abspath(folder))
    return Dataset(printable(name), paths, pairs=pairs, items=find_images(names, folder, root))


def _lines(path: str) -> Iterator[tuple[int, str]]:
    """Yield the lines that are not blank, with their numbers."""
    with open_input(path) as file:
        for number, line in enumerate(file, 1):
            if number == 1:
                if line[:2] in (b"\xff\xfe", b"\xfe\xff"):
                    raise InputError(f"{printable(path)}: wanted a list in UTF-8, got UTF-16")
                line = line.removeprefix(b"\xef\xbb\xbf")
            line = line.removesuffix(b"\n").removesuffix(b"\r")
            if line.strip():
                yield number, os.fsdecode(line)


def _read_pairs(path: str, paths: list[str]) -> Pairs:
    numbers: dict[str, int] = {}  # of the distinct names, in order of occurrence
    lines: list[int] = []  # where each stands first
    sides = array("q"), array("q")
    genuine = bytearray()
    where = printable(path)
    for number, line in _lines(path):
        cells = line.split()
        if len(cells) != 3 or not cells[2].isdecimal() or int(cells[2][:32]) > 1:
            raise InputError(
                f"{where}, line {number}: wanted '<name> <name> <0 or 1>', got {brief(line)!r}"
            )
        for side, cell in zip(sides, cells[:2], strict=True):
            if cell not in numbers:
                numbers[cell] = len(numbers)
                lines.append(number)
            side.append(numbers[cell])
        genuine.append(int(cells[2]))
    if not genuine:
        raise InputError(f"{where}: wanted pairs, got none")
    names = [printable(name) for name in numbers]
    found = match(names, paths, os.path.join(os.path.dirname(where), IMAGES))
    for i in np.flatnonzero(found == MISSING)[:1]:
        raise InputError(f"{where}, line {lines[i]}: {brief(names[i])!r} is not in {IMAGES}")

    def index(side: array[int]) -> npt.NDArray[np.int32]:
        return found[np.frombuffer(side, np.int64)].astype(np.int32)

    return index(sides[0]), index(sides[1]), np.frombuffer(genuine, np.uint8).astype(bool)
