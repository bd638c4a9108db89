# SPDX-License-Identifier: Apache-2.0
"""A contact sheet: tiles with captions under one title and one colour bar.

All tiles of a section are one array and one ``imshow``; matplotlib draws the letters. Everything
is laid out in pixels, and a tile's pixels are the sheet's, or whole multiples of them.
"""

from __future__ import annotations

import dataclasses
import math
import textwrap
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fiqa_fast.figures import need_matplotlib, rendered
from fiqa_fast.gallery.atomic import write_atomically
from fiqa_fast.heatmap.colours import Limits

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "Bar",
    "Section",
    "Tile",
    "balanced_columns",
    "draw_bar",
    "draw_sheet",
    "picture",
    "save",
]

Pixels = npt.NDArray[np.uint8]

_DPI = 100
_MARGIN, _GAP, _LINE = 18, 6, 12  # the last two divisible by every zoom
_BAR_WIDTH, _BAR_HEIGHT = 300, 10
_WIDEST_TEXT = 420  # the least width, so that titles and labels have room
_SMALL, _NORMAL = 7.0, 9.0  # font sizes, in points
# A letter of a caption, all being as wide in DejaVu Sans Mono, and one of a title on average.
_LETTER = math.ceil(0.602 * _SMALL * _DPI / 72)
_TITLE_LETTER = 0.55 * _NORMAL * _DPI / 72
# Sheets of few tiles show them larger.
_ENLARGED = 8


@dataclasses.dataclass(frozen=True)
class Tile:
    """A picture [S, S, 3] and the lines below it; without pixels, an empty place."""

    pixels: Pixels | None
    captions: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Section:
    """Rows of tiles under a heading, with a name above each column where those mean something."""

    rows: list[list[Tile]]
    heading: str = ""
    columns: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Bar:
    """The colour bar: ``table`` uint8 [n, 3] from ``limits[0]`` to ``limits[1]``, in ``unit``.

    Without limits every picture has its own scale, and the bar says so.
    """

    table: Pixels
    limits: Limits | None
    unit: str


def balanced_columns(count: int) -> int:
    """Columns for ``count`` tiles: a sheet somewhat wider than tall, with few empty places."""
    least = math.ceil(math.sqrt(count))
    return min(range(least, least + least // 2 + 1), key=lambda c: (-count % c, c))


def draw_sheet(sections: list[Section], side: int, title: str, bar: Bar) -> Figure:
    """The sheet as a matplotlib figure; ``side`` is that of the tiles in pixels."""
    need_matplotlib()
    from matplotlib.figure import Figure

    tiles = sum(len(row) for section in sections for row in section.rows)
    zoom = 2 if tiles <= _ENLARGED and side <= 224 else 1
    pitch = side * zoom + _GAP
    columns = max(len(row) for section in sections for row in section.rows)
    width = max(columns * pitch - _GAP, _WIDEST_TEXT) + 2 * _MARGIN
    title_lines = textwrap.wrap(title, int((width - 2 * _MARGIN) / _TITLE_LETTER))
    bar_top = _MARGIN + len(title_lines) * (_LINE + 4) + _GAP
    tops, top = [], bar_top + _BAR_HEIGHT + 4 * _LINE
    for section in sections:
        tops.append(top)
        top += _height(section, pitch) + 2 * _LINE
    height = top - 2 * _LINE + _MARGIN
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor="white")
    page = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0), autoscale_on=False)
    page.set_axis_off()
    for number, line in enumerate(title_lines):
        _text(page, _MARGIN, _MARGIN + number * (_LINE + 4), line, _NORMAL)
    for section, place in zip(sections, tops, strict=True):
        _draw_section(page, section, place, side, zoom)
    # imshow sets the limits anew.
    page.set(xlim=(0, width), ylim=(height, 0), aspect="auto")
    _draw_bar(figure, bar, _MARGIN, bar_top)
    return figure


def draw_bar(title: str, bar: Bar) -> Figure:
    """The colour bar alone, with a title."""
    return draw_sheet([Section([[]])], 0, title, bar)


def save(figure: Figure, path: str) -> None:
    """Write the figure as what the suffix says, whole or not at all."""
    write_atomically(path, picture(figure, path.lower().rpartition(".")[2]))


def picture(figure: Figure, kind: str) -> bytes:
    """The figure as a file of this kind."""
    options = {"pil_kwargs": {"quality": 92}} if kind in ("jpg", "jpeg") else {}
    with warnings.catch_warnings():
        # A name may have letters that the font lacks: they become boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        return rendered(figure, kind, _DPI, **options)


def _captions(row: list[Tile]) -> int:
    return max((len(tile.captions) for tile in row), default=0)


def _row_height(row: list[Tile], pitch: int) -> int:
    return pitch + _captions(row) * _LINE + _GAP


def _height(section: Section, pitch: int) -> int:
    above = 2 * _LINE * bool(section.heading) + _LINE * bool(section.columns)
    return above + sum(_row_height(row, pitch) for row in section.rows)


def _draw_section(page: Any, section: Section, top: int, side: int, zoom: int) -> None:
    pitch = side * zoom + _GAP
    if section.heading:
        _text(page, _MARGIN, top, section.heading, _NORMAL)
        top += 2 * _LINE
    letters = max(1, (pitch - _GAP) // _LETTER)
    for column, name in enumerate(section.columns):
        _text(page, _MARGIN + column * pitch, top, _shortened(name, letters), _SMALL)
    top += _LINE * bool(section.columns)
    columns = max(len(row) for row in section.rows)
    height = sum(_row_height(row, pitch) for row in section.rows)
    mosaic = np.full((height // zoom, columns * pitch // zoom, 3), 255, np.uint8)
    y = 0
    for row in section.rows:
        for column, tile in enumerate(row):
            x = column * pitch
            if tile.pixels is not None:
                at_y, at_x = y // zoom, x // zoom
                mosaic[at_y : at_y + side, at_x : at_x + side] = tile.pixels
            for line, caption in enumerate(tile.captions):
                below = top + y + pitch - _GAP + 2 + line * _LINE
                _text(page, _MARGIN + x, below, _shortened(caption, letters), _SMALL)
        y += _row_height(row, pitch)
    if mosaic.size:
        extent = (_MARGIN, _MARGIN + columns * pitch, top + height, top)
        page.imshow(mosaic, extent=extent, interpolation="nearest", zorder=0)


def _text(page: Any, x: float, y: float, text: str, size: float) -> None:
    plain = "".join(c if c.isprintable() else "?" for c in text)
    family = "DejaVu Sans Mono" if size == _SMALL else "DejaVu Sans"
    # File names hold dollar signs, which would start a formula.
    page.text(x, y, plain, fontsize=size, va="top", family=family, parse_math=False)


def _shortened(text: str, letters: int) -> str:
    """At most so many letters: the end of a name tells images apart."""
    return text if len(text) <= letters else "…" + text[len(text) - letters + 1 :]


def _draw_bar(figure: Figure, bar: Bar, left: int, top: int) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    width, height = (round(inches * _DPI) for inches in figure.get_size_inches())
    box = (left / width, 1 - (top + _BAR_HEIGHT) / height, _BAR_WIDTH / width, _BAR_HEIGHT / height)
    axes = figure.add_axes(box)
    low, high = bar.limits or (0, 1)
    colours = ScalarMappable(Normalize(low, high), ListedColormap(bar.table / 255))
    drawn = figure.colorbar(colours, cax=axes, orientation="horizontal")
    drawn.outline.set_linewidth(0.5)
    axes.tick_params(labelsize=_SMALL, width=0.5, length=3)
    unit = bar.unit
    if bar.limits is None:
        drawn.set_ticks([0, 1], labels=["lowest", "highest"])
        unit += ", each map on its own scale"
    drawn.set_label(unit, size=_SMALL + 0.5, labelpad=2)
