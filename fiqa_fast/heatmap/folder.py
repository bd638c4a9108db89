# SPDX-License-Identifier: Apache-2.0
"""A folder of overlays, one per image, under names that mirror the keys."""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt
from PIL import Image

from fiqa_fast.gallery.atomic import AtomicFolder
from fiqa_fast.gallery.sinks import shortest
from fiqa_fast.gallery.sources import Item
from fiqa_fast.heatmap.crops import reread
from fiqa_fast.heatmap.maps import MapTable
from fiqa_fast.heatmap.overlay import Painter

__all__ = ["COLOUR_BAR", "INDEX", "overlay_name", "write_folder"]

Pixels = npt.NDArray[np.uint8]

_SUFFIX = ".png"
# No overlay ends in these.
INDEX, COLOUR_BAR = "heatmap.csv", "colourbar.svg"
# Bytes of a name that are kept; most file systems take 255.
_LONGEST = 200
_GAP = 2  # white pixels between the tiles of a strip


def overlay_name(key: str) -> str:
    """Where the overlay of the image ``key`` stands in the folder: ``key`` with .png behind it.

    Different keys have different names, none leads out of the folder, and none is a folder of
    another. What would not be a plain name is written as %XX, an overlong one with a digest.
    """
    *folders, name = key.split("/")
    parts = [_plain(part) for part in folders]
    # A folder may not be called as an overlay is, nor as what stands beside them.
    taken = (_SUFFIX, ".csv", ".svg")
    parts = [f"{part}%" if part.lower().endswith(taken) else part for part in parts]
    return "/".join([*parts, _plain(name) + _SUFFIX])


def _plain(part: str) -> str:
    if not part:
        return "%"
    if not part.strip("."):
        return "%2E" * len(part)
    plain = "".join(_escaped(c) if c in '%\\:*?"<>|' or not c.isprintable() else c for c in part)
    if len(plain.encode()) <= _LONGEST:
        return plain
    digest = hashlib.sha256(part.encode()).hexdigest()[:32]
    start = plain.encode()[: _LONGEST - 40].decode(errors="ignore")
    return f"{start}%%{digest}"


def _escaped(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode())


def write_folder(
    path: str,
    items: Iterable[Item],
    table: MapTable,
    numbers: Iterable[int],
    size: int,
    painter: Painter,
    colour_bar: bytes | None,
    workers: int,
    done: Callable[[int], None],
) -> None:
    """Write an overlay of each image of ``numbers``, an index, and the colour bar beside them.

    Several maps of one image make a strip: the crop, then one tile per map. The index has the
    columns path, score, error, overlay, vmin and vmax (of a strip: the lowest and the highest),
    and a row for every image. ``done`` is told how many more images are through.
    """
    folder = AtomicFolder(path)
    limits: dict[int, tuple[float, float]] = {}

    def make(number: int, crop: Pixels) -> tuple[float, float]:
        maps = table.of(number)
        tiles = [painter.paint(crop, values) for values in maps]
        target = os.path.join(folder.path, *overlay_name(table.keys[number]).split("/"))
        os.makedirs(os.path.dirname(target), exist_ok=True)
        # Run lengths (3) are enough: what PNG's filters leave of a photograph repeats too little to
        # search for. Half the time of the default, a tenth fewer bytes.
        image = Image.fromarray(tiles[0] if len(tiles) == 1 else _strip([crop, *tiles]))
        image.save(target, "PNG", compress_type=3)
        found = [painter.limits_of(values) for values in maps]
        return min(low for low, _ in found), max(high for _, high in found)

    try:
        for number, found in reread(items, table, list(numbers), size, make, workers):
            if found is not None:
                limits[number] = found
            done(1)
        _write(folder, INDEX, _index(table, limits))
        if colour_bar is not None:
            _write(folder, COLOUR_BAR, colour_bar)
        folder.commit()
    except BaseException:
        folder.abort()
        raise


def _strip(tiles: list[Pixels]) -> Pixels:
    side = len(tiles[0])
    strip = np.full((side, len(tiles) * (side + _GAP) - _GAP, 3), 255, np.uint8)
    for column, tile in enumerate(tiles):
        left = column * (side + _GAP)
        strip[:, left : left + side] = tile
    return strip


def _index(table: MapTable, limits: dict[int, tuple[float, float]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("path", "score", "error", "overlay", "vmin", "vmax"))
    for number, (key, error) in enumerate(zip(table.keys, table.errors, strict=True)):
        score = "" if error else shortest(table.score[number])
        drawn = ("", "", "")
        if number in limits:
            low, high = limits[number]
            drawn = (overlay_name(key), f"{low:.7g}", f"{high:.7g}")
        writer.writerow((key, score, error or "", *drawn))
    return text.getvalue().encode()


def _write(folder: AtomicFolder, name: str, data: bytes) -> None:
    with open(os.path.join(folder.path, name), "wb") as file:
        file.write(data)
