# SPDX-License-Identifier: Apache-2.0
"""Where images come from: folders, files, lists and the containers that data sets live in.

A source yields :class:`Item` in a fixed order, each key once, and never opens one itself; it
holds what it is reading and never the whole. To add a container, write a class with ``_entries``
(:mod:`.container`) and name its suffix in :mod:`.containers`.
"""

from fiqa_fast.gallery.sources.folder import FileSource, FolderSource
from fiqa_fast.gallery.sources.item import MAX_IMAGE_BYTES, Item, Source
from fiqa_fast.gallery.sources.listed import ListSource
from fiqa_fast.gallery.sources.opening import open_sources
from fiqa_fast.gallery.sources.totals import damages, exact_total, skipped, total
from fiqa_fast.gallery.text import printable

__all__ = [
    "MAX_IMAGE_BYTES",
    "FileSource",
    "FolderSource",
    "Item",
    "ListSource",
    "Source",
    "damages",
    "exact_total",
    "open_sources",
    "printable",
    "skipped",
    "total",
]
