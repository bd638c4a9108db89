# SPDX-License-Identifier: Apache-2.0
"""Folders that Hugging Face's ``save_to_disk`` wrote: Arrow streams, and JSON that names them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

from fiqa_fast.errors import ImageError
from fiqa_fast.gallery.errors import InputError
from fiqa_fast.gallery.sources.columns import TableSource, open_table
from fiqa_fast.gallery.sources.container import Container, DamagedError, Entry, RandomFile, fails
from fiqa_fast.gallery.sources.item import Opening
from fiqa_fast.gallery.sources.keys import member_key
from fiqa_fast.gallery.text import brief, printable
from fiqa_fast.images import describe

__all__ = ["SavedSource", "open_saved"]

_MAX_JSON = 2**24


class SavedSource(Container):
    """Keys are the images' own paths or the column of paths, else a file's name and the row in it.

    Those of a dictionary of data sets begin with its split. A file that is damaged costs what
    comes after the damage in it, and no other file.
    """

    def _entries(self) -> Iterator[Entry]:
        for split, path in _files(self.path):
            file = os.path.basename(path)
            try:
                for number, (name, opener) in enumerate(TableSource(path).rows()):
                    key = f"{printable(file)}/{number}" if name is None else member_key(name)
                    yield split + key, opener
            except (ImageError, InputError, OSError) as error:
                self.damage.append(f"{printable(path)}: {describe(error)}")
                yield f"{split}(rest of {printable(file)})", fails(describe(error))


def _files(folder: str) -> Iterator[tuple[str, str]]:
    """Yield the start of the keys and the path of each Arrow file."""
    if not os.path.isfile(os.path.join(folder, "dataset_dict.json")):
        yield from (("", path) for path in _arrows(folder))
        return
    for split in _names(folder, "dataset_dict.json", lambda content: content["splits"]):
        key = member_key(split) + "/"
        yield from ((key, path) for path in _arrows(os.path.join(folder, split)))


def _arrows(folder: str) -> list[str]:
    def listed(content: Any) -> Any:
        return [file["filename"] for file in content["_data_files"]]

    return [os.path.join(folder, name) for name in _names(folder, "state.json", listed)]


def _names(folder: str, name: str, find: Any) -> list[str]:
    """Return the names in a JSON file, which lead nowhere but into the folder."""
    file = RandomFile(os.path.join(folder, name))
    if file.size > _MAX_JSON:
        raise DamagedError(f"{name}: wanted at most {_MAX_JSON} bytes, got {file.size}")
    try:
        names = list(find(json.loads(file.read(0, file.size))))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedError(f"{name}: wanted what save_to_disk writes, got others") from error
    for each in names:
        if not isinstance(each, str) or os.path.basename(each) != each or each in ("", ".", ".."):
            raise DamagedError(f"{name}: wanted names in this folder, got {brief(each)}")
    return names


def open_saved(path: str, opening: Opening) -> SavedSource:
    """Open a folder, whose first file has to have a column of images."""
    try:
        files = list(_files(path))
        for _, file in files[:1]:
            open_table(file, Opening())
    except ImageError as error:
        raise InputError(f"{printable(path)}: {error}") from error
    return SavedSource(path, opening)
