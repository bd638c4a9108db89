# SPDX-License-Identifier: Apache-2.0
"""Outputs that survive: a run that is killed at any moment goes on, and ends with the same table.

    rows -> writer -> parts (in .NAME.unfinished) -> ready -> the output in its place
                        |
    items -> done ------+  leaves out what has its row

One run has the folder at a time (:mod:`.lock`). Its record (:mod:`.record`) says what decides the
values, so that rows of different settings never meet in one table. A part is whole or not there
(:mod:`.parts`); the output is put in place at once from all parts (:mod:`.finishing`).
"""

from fiqa_fast.gallery.store.done import Done
from fiqa_fast.gallery.store.parts import PartFiles
from fiqa_fast.gallery.store.record import Record, this_build
from fiqa_fast.gallery.store.store import Store, state_folder
from fiqa_fast.gallery.store.worker import WorkerStore
from fiqa_fast.gallery.store.writer import SAVE_SECONDS, PartWriter

__all__ = [
    "SAVE_SECONDS",
    "Done",
    "PartFiles",
    "PartWriter",
    "Record",
    "Store",
    "WorkerStore",
    "state_folder",
    "this_build",
]
