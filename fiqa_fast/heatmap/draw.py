# SPDX-License-Identifier: Apache-2.0
"""From the maps of a gallery to everything that ``-o`` named."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from fiqa_fast.gallery.sources import Item
from fiqa_fast.heatmap.arrays import write_arrays
from fiqa_fast.heatmap.choice import Choice
from fiqa_fast.heatmap.contact import sections
from fiqa_fast.heatmap.folder import write_folder
from fiqa_fast.heatmap.maps import MapTable
from fiqa_fast.heatmap.overlay import Painter
from fiqa_fast.heatmap.sheet import Bar, draw_bar, draw_sheet, picture, save
from fiqa_fast.heatmap.targets import Target

__all__ = ["Look", "draw"]


@dataclasses.dataclass(frozen=True)
class Look:
    """What pictures show beside their pixels. ``names`` are those of an image's several maps."""

    title: str
    unit: str
    names: Sequence[str] = ()
    show_keys: bool = True


def draw(
    targets: Iterable[Target],
    items: Callable[[], Iterable[Item]],
    table: MapTable,
    choices: Sequence[Choice],
    size: int,
    painter: Painter | None,
    look: Look,
    description: Mapping[str, Any],
    workers: int,
    done: Callable[[int], None],
) -> None:
    """Write ``targets`` for the chosen images. ``items`` opens the gallery anew; ``painter`` may be
    None where all targets are arrays; ``done`` is told how many more images are drawn."""
    numbers = list(dict.fromkeys(number for choice in choices for number in choice.numbers))
    for path, kind in targets:
        if kind == "arrays":
            write_arrays(path, table, numbers, description)
            continue
        assert painter is not None
        bar = Bar(painter.table, painter.limits, look.unit)
        if kind == "folder":
            beside = None
            if painter.limits is not None:
                beside = picture(draw_bar(look.title, bar), "svg")
            write_folder(path, items(), table, numbers, size, painter, beside, workers, done)
        else:
            found = sections(
                choices,
                items(),
                table,
                look.names,
                look.show_keys,
                size,
                painter,
                workers,
                done,
            )
            save(draw_sheet(found, size, look.title, bar), path)
