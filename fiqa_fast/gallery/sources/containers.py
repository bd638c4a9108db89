# SPDX-License-Identifier: Apache-2.0
"""Which reader a container has, by its suffix, or by a file in its folder."""

from __future__ import annotations

import os
from collections.abc import Callable

from fiqa_fast.gallery.sources.columns import open_table
from fiqa_fast.gallery.sources.item import Opening, Source
from fiqa_fast.gallery.sources.listed import open_list
from fiqa_fast.gallery.sources.lmdb import open_lmdb
from fiqa_fast.gallery.sources.pair_set import open_pair_set
from fiqa_fast.gallery.sources.record import open_record
from fiqa_fast.gallery.sources.saved import open_saved
from fiqa_fast.gallery.sources.tar import open_tar
from fiqa_fast.gallery.sources.video import open_video
from fiqa_fast.gallery.sources.zipped import open_zip

__all__ = ["opener_of"]

Opener = Callable[[str, Opening], Source]

_BY_SUFFIX: dict[str, Opener] = {
    ".txt": open_list,
    ".bin": open_pair_set,
    ".rec": open_record,
    ".tar": open_tar,
    ".tar.gz": open_tar,
    ".tgz": open_tar,
    ".zip": open_zip,
    ".lmdb": open_lmdb,
    ".mdb": open_lmdb,
    ".parquet": open_table,
    ".arrow": open_table,
    ".feather": open_table,
    **dict.fromkeys((".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi"), open_video),
}
# Folders that are containers, by a file in them.
_BY_FILE: dict[str, Opener] = {
    "data.mdb": open_lmdb,
    "state.json": open_saved,
    "dataset_dict.json": open_saved,
}


def opener_of(path: str) -> Opener | None:
    """Return what opens a container, or None for what is no container by its name."""
    if os.path.isdir(path):
        found = (_BY_FILE[name] for name in _BY_FILE if os.path.isfile(os.path.join(path, name)))
        return next(found, None)
    name = os.path.basename(path).lower()
    return next((_BY_SUFFIX[suffix] for suffix in _BY_SUFFIX if name.endswith(suffix)), None)
