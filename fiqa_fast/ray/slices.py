# SPDX-License-Identifier: Apache-2.0
"""A gallery in slices, each read by one task: its loose files, and its containers.

Images travel as encoded bytes, in small tables with the place of each in the gallery.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from fiqa_fast.errors import ImageError
from fiqa_fast.gallery.errors import InputError
from fiqa_fast.gallery.shares import SLOT, Share, numbered
from fiqa_fast.gallery.sources import MAX_IMAGE_BYTES, Item, Source, damages, skipped
from fiqa_fast.gallery.sources.container import check_size
from fiqa_fast.gallery.sources.item import path_of
from fiqa_fast.gallery.sources.presence import Presence
from fiqa_fast.gallery.store.done import Digests
from fiqa_fast.gallery.text import printable
from fiqa_fast.images import describe
from fiqa_fast.ray.columns import ERROR

__all__ = ["NOTE", "TABLE_BYTES", "Gallery", "Slice", "note_of", "slices_of"]

NOTE = -1  # the place of a row that is no image but what a reader has to say
# Of one table: small enough that little is lost with an actor and that memory stays flat.
TABLE_BYTES = 2**19
_SCHEMA = pa.schema(
    [
        ("place", pa.int64()),
        ("key", pa.string()),
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.binary()), (ERROR, pa.string())])),
    ]
)


class _Loose(Share):
    """The same share without what is in containers."""

    def takes_container(self, number: int) -> bool:
        return False


@dataclass(frozen=True)
class Slice:
    """What one task reads."""

    sources: Sequence[Source]
    share: Share
    offset: int = 0  # from places within the sources to places in the gallery
    speaks: bool = False  # of how much was passed over, which all slices of a container see


def slices_of(sources: Sequence[Source], share: Share, wanted: int) -> list[Slice]:
    """Cut a share of a gallery into slices, in the gallery's order, about ``wanted`` at least.

    Where there are fewer containers, several tasks read each, and share its images by their keys;
    so do those that read the loose files.
    """
    containers, loose, number = [], False, 0
    for source in sources:
        for piece in source.pieces():
            if isinstance(piece, Item):
                loose = True
                continue
            if share.takes_container(number):
                containers.append((number, piece))
            number += 1
    parts = -(-wanted // max(1, len(containers) + loose))
    slices = []
    for i in range(parts if loose else 0):
        part = share.part(i, parts)
        slices.append(Slice(sources, _Loose(part.index, part.count, part.by)))
    whole = Share() if share.by == "containers" else share
    for number, container in containers:
        for i in range(parts):
            slices.append(Slice([container], whole.part(i, parts), 2 * number * SLOT, i == 0))
    return slices


@dataclass(frozen=True)
class Gallery:
    """What every task needs to know of a gallery."""

    slices: Sequence[Slice]
    inputs: Sequence[str]
    root: str | None
    folder: str  # where relative paths start
    done: Digests | None  # what has its row
    as_stored: Callable[[str], str]  # from a key to what ``done`` knows

    def enter(self) -> Presence:
        """Go to where the inputs' names hold, on whatever machine this is.

        Raises :class:`InputError` where they lead nowhere.
        """
        try:
            os.chdir(self.folder)
            return Presence(self.inputs, self.root)
        except OSError as error:
            raise InputError(
                f"{printable(str(error.filename))}: {describe(error)} on {socket.gethostname()}; "
                "every machine of the cluster has to see the gallery under the same name"
            ) from error

    def read(self, number: int) -> Iterator[pa.Table]:
        """Yield what slice ``number`` has that is not done, in tables for the actors."""
        presence = self.enter()
        part = self.slices[number]
        rows: list[dict[str, Any]] = []
        size = 0
        for place, item in numbered(part.sources, part.share):
            if self.done is not None and self.done.has(self.as_stored(item.key)):
                continue
            image = _image(item)
            if image[ERROR] is not None:
                presence.check()
            rows.append({"place": place + part.offset, "key": item.key, "image": image})
            size += 200 + len(image["bytes"] or b"")
            if size >= TABLE_BYTES:
                yield pa.Table.from_pylist(rows, _SCHEMA)
                rows, size = [], 0
        note = {
            "damaged": damages(part.sources),
            "passed": skipped(part.sources) if part.speaks else 0,
        }
        if any(note.values()):
            nothing = {"bytes": None, "path": None, ERROR: ""}
            rows.append({"place": NOTE, "key": json.dumps(note), "image": nothing})
        yield pa.Table.from_pylist(rows, _SCHEMA)


def note_of(key: str) -> dict[str, Any]:
    """Return what a row with the place :data:`NOTE` says: ``damaged`` lines, ``passed`` over."""
    note: dict[str, Any] = json.loads(key)
    return note


def _image(item: Item) -> dict[str, Any]:
    try:
        with item.open() as file:
            data = file.read(MAX_IMAGE_BYTES + 1)
        if len(data) <= MAX_IMAGE_BYTES:
            return {"bytes": data, "path": None, ERROR: None}
        path = path_of(item)  # a file may be larger: its actor opens it
        if path is not None:
            return {"bytes": None, "path": os.fsencode(path), ERROR: None}
        check_size(len(data))
    except ImageError as error:
        text = str(error)
    except Exception as error:  # what a storage raises concerns this image alone
        text = describe(error)
    return {"bytes": None, "path": None, ERROR: text}
