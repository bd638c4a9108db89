# SPDX-License-Identifier: Apache-2.0
"""Which tiles a contact sheet has: one per image, or a row of the crop and its maps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from fiqa_fast.gallery.errors import OutputError
from fiqa_fast.gallery.sources import Item
from fiqa_fast.heatmap.choice import Choice
from fiqa_fast.heatmap.crops import reread
from fiqa_fast.heatmap.maps import MapTable
from fiqa_fast.heatmap.overlay import Painter
from fiqa_fast.heatmap.sheet import Section, Tile, balanced_columns

__all__ = ["check_sheet", "sections"]

Pixels = npt.NDArray[np.uint8]

# More than an eye goes through, and a sheet that viewers still open.
_MOST_TILES, _MOST_PIXELS = 500, 2**26


def check_sheet(images: int, names: Sequence[str], size: int) -> None:
    """Refuse a sheet that is too large: of so many images, each with a tile for each of ``names``
    and the crop, or with one tile where there are none.

    Raises:
        OutputError: with a hint at what makes it smaller.
    """
    per_image = len(names) + 1 if names else 1
    most = max(1, min(_MOST_TILES, _MOST_PIXELS // size**2) // per_image)
    if images > most:
        raise OutputError(
            f"a sheet holds at most {most} such images, and there are {images}: choose some with "
            "--best, --worst or --limit, or write a folder"
        )


def sections(
    choices: Sequence[Choice],
    items: Iterable[Item],
    table: MapTable,
    names: Sequence[str],
    show_keys: bool,
    size: int,
    painter: Painter,
    workers: int,
    done: Callable[[int], None],
) -> list[Section]:
    """Read the chosen crops and paint their tiles; ``names`` are those of an image's several maps,
    empty where it has one. ``done`` is told how many more images are through.
    """

    def make(number: int, crop: Pixels) -> list[Pixels]:
        painted = [painter.paint(crop, values) for values in table.of(number)]
        return [crop, *painted] if names else painted

    numbers = {number for choice in choices for number in choice.numbers}
    tiles: dict[int, list[Pixels | None]] = {}
    for number, made in reread(items, table, numbers, size, make, workers):
        tiles[number] = [None] * (len(names) + 1) if made is None else [*made]
        done(1)

    def row(number: int, rank: int | None) -> list[Tile]:
        score = f"{table.score[number]:.3f}"
        captions = [score if rank is None else f"#{rank}  {score}"]
        if table.errors[number]:
            captions = ["could not be read again"]
        if show_keys:
            captions.append(table.keys[number])
        pixels = tiles[number]
        below = [] if table.tiles is None else [(f"{v:.3f}",) for v in table.tiles[number]]
        return [Tile(p, c) for p, c in zip(pixels, [tuple(captions), *below], strict=True)]

    rows = [
        [
            row(number, None if choice.ranks is None else choice.ranks[place])
            for place, number in enumerate(choice.numbers)
        ]
        for choice in choices
    ]
    if names:
        columns = ("crop", *names)
        return [Section(r, c.heading, columns) for r, c in zip(rows, choices, strict=True)]
    width = balanced_columns(max(len(section) for section in rows))
    found = []
    for section, choice in zip(rows, choices, strict=True):
        line = [tiles[0] for tiles in section]
        grid = [line[at : at + width] for at in range(0, len(line), width)]
        found.append(Section(grid, choice.heading))
    return found
