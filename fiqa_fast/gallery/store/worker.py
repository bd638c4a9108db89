# SPDX-License-Identifier: Apache-2.0
"""What a worker process has of an output that its parent holds: the parts that it adds."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress

from fiqa_fast.gallery.errors import OutputError
from fiqa_fast.gallery.sinks import Layout, Rows
from fiqa_fast.gallery.store.part_sink import Guard, PartSink
from fiqa_fast.gallery.store.parts import PartFiles
from fiqa_fast.gallery.store.record import RECORD_NAME, Record
from fiqa_fast.gallery.store.store import state_folder
from fiqa_fast.gallery.store.writer import SAVE_SECONDS, PartWriter

__all__ = ["WorkerStore"]


class WorkerStore(PartSink):
    """A sink like :class:`Store` that leaves the end of the output to the parent.

    Args:
        layout: The files of the output.
        start: Which start of the run this is, see :attr:`Store.start`.
        worker: Which worker this is, from 0.
        save_seconds: After how long rows are stored at the latest.
        guard: Called before failed rows are taken in; raises where not they are at fault.
        tell: Called with all rows that were taken in.
    """

    def __init__(
        self,
        layout: Layout,
        start: int,
        worker: int,
        *,
        save_seconds: float = SAVE_SECONDS,
        guard: Guard = None,
        tell: Callable[[Rows], None] | None = None,
    ) -> None:
        folder = state_folder(layout.path)
        record = Record.load(os.path.join(folder, RECORD_NAME))
        if record is None:
            raise OutputError(f"{folder}: wanted an unfinished output, got none")
        files = PartFiles(folder)
        writer = PartWriter(files, start, worker, layout.dtype, save_seconds)
        super().__init__(layout, record, files, writer, guard, tell)

    def commit(self) -> None:
        """Store what is left."""
        self.writer.flush()

    def abort(self) -> None:
        """Store what is finished."""
        with suppress(OutputError):
            self.writer.flush()
