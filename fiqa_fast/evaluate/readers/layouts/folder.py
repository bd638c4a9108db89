# SPDX-License-Identifier: Apache-2.0
"""A folder with one subfolder per identity."""

from __future__ import annotations

import os

from fiqa_fast.evaluate.readers.files import StrPath, brief
from fiqa_fast.evaluate.readers.keys import IMAGE_SUFFIXES
from fiqa_fast.evaluate.readers.layouts.dataset import Dataset, code_identities
from fiqa_fast.gallery.errors import InputError
from fiqa_fast.gallery.sources import open_sources, printable

__all__ = ["open_folder"]

_SUFFIXES = sorted(suffix[1:] for suffix in IMAGE_SUFFIXES)


def open_folder(path: StrPath) -> Dataset:
    """Open a folder of images, where the folder that an image stands in is its identity.

    Refused: images that stand in the folder itself; a subfolder with images that has subfolders
    with images; and two subfolders of one name in different places, of which nobody knows
    whether they show one person.
    """
    where = printable(os.fspath(path))
    items = [item for source in open_sources([path], ext=_SUFFIXES) for item in source]
    homes = [item.key.rpartition("/")[0] for item in items]
    if "" in homes:
        loose = items[homes.index("")].key
        raise InputError(
            f"{where}: wanted one subfolder per identity, got {brief(loose)!r} in the folder "
            "itself; where file names tell identities, write them into a table with the columns "
            "path and identity"
        )
    _check(set(homes), where)
    identity = code_identities([home.rpartition("/")[2] for home in homes], where)
    name = printable(os.path.basename(os.path.abspath(path)))
    return Dataset(name, [item.key for item in items], identity=identity, items=items)


def _check(homes: set[str], where: str) -> None:
    places: dict[str, str] = {}
    for home in sorted(homes):
        name = home.rpartition("/")[2]
        if places.setdefault(name, home) != home:
            raise InputError(
                f"{where}: both {brief(places[name])!r} and {brief(home)!r} hold images, and may "
                "or may not be one identity; evaluate one of the folders above them, or write a "
                "table with the columns path and identity"
            )
        above = home.rpartition("/")[0]
        while above:
            if above in homes:
                raise InputError(
                    f"{where}: wanted one subfolder per identity, got images in {brief(above)!r} "
                    f"and below it in {brief(home)!r}"
                )
            above = above.rpartition("/")[0]
