# SPDX-License-Identifier: Apache-2.0
"""What a worker process has of an output that its parent holds: the parts that it adds."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial

from fiqa_fast.gallery.errors import OutputError
from fiqa_fast.gallery.sinks import Layout, Rows
from fiqa_fast.gallery.sources import Item
from fiqa_fast.gallery.store.done import Done
from fiqa_fast.gallery.store.parts import PartFiles
from fiqa_fast.gallery.store.record import RECORD_NAME, Record
from fiqa_fast.gallery.store.store import known_keys, state_folder
from fiqa_fast.gallery.store.writer import SAVE_SECONDS, PartWriter

__all__ = ["WorkerStore"]


class WorkerStore:
    """A sink like :class:`Store` that stores parts and leaves the rest to the parent.

    ``tell(rows)`` hears of all rows taken in; ``guard`` as for :class:`Store`.
    """

    def __init__(
        self,
        layout: Layout,
        start: int,
        worker: int,
        *,
        save_seconds: float = SAVE_SECONDS,
        guard: Callable[[], None] | None = None,
        tell: Callable[[Rows], None] | None = None,
    ) -> None:
        folder = state_folder(layout.path)
        record = Record.load(os.path.join(folder, RECORD_NAME))
        if record is None:
            raise OutputError(f"{folder}: wanted an unfinished output, got none")
        files = PartFiles(folder)
        self._guard, self._tell = guard, tell
        self._queue: deque[int] = deque()
        self._writer = PartWriter(files, start, worker, layout.dtype, save_seconds)
        known = partial(known_keys, layout, record, files, start)
        self._done = Done(known, layout.format.table.key)

    def pending(self, items: Iterable[tuple[int, Item]]) -> Iterator[Item]:
        """Yield the items without a row."""
        for place, item in self._done.leave_out(items):
            self._queue.append(place)
            yield item

    def write(self, rows: Rows) -> None:
        """Take in the rows of pending items, in order."""
        places = [self._queue.popleft() for _ in range(len(rows))]
        if self._guard is not None and rows.failed.any():
            self._guard()
        self._writer.add(rows, places)
        if self._tell is not None:
            self._tell(rows)

    def commit(self) -> None:
        """Store what is left."""
        self._writer.flush()

    def abort(self) -> None:
        """Store what is finished."""
        with suppress(OutputError):
            self._writer.flush()
