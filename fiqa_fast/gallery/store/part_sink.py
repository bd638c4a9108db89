# SPDX-License-Identifier: Apache-2.0
"""A sink for the runner that leaves out what has its row and stores the others in parts."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

from fiqa_fast.gallery.sinks import Layout, Rows
from fiqa_fast.gallery.sources import Item
from fiqa_fast.gallery.store.done import Done
from fiqa_fast.gallery.store.parts import PartFiles, keys_in_order
from fiqa_fast.gallery.store.record import Record
from fiqa_fast.gallery.store.writer import PartWriter

__all__ = ["Guard", "PartSink", "entries"]

Guard = Callable[[], None] | None  # raises where failed rows are not their images' fault


class PartSink:
    """What one process adds to an output.

    ``guard`` is called before failed rows are taken in, ``tell`` with all that were.
    """

    def __init__(
        self,
        layout: Layout,
        record: Record,
        files: PartFiles,
        writer: PartWriter,
        guard: Guard = None,
        tell: Callable[[Rows], None] | None = None,
    ) -> None:
        known = partial(_known_keys, layout, record, files, writer.start)
        self.done = Done(known, layout.format.table.key)
        self.writer = writer
        self._guard, self._tell = guard, tell
        self._queue: deque[int] = deque()

    def pending(self, items: Iterable[tuple[int, Item]]) -> Iterator[Item]:
        """Yield the items without a row, whose rows :meth:`write` then expects in this order."""
        for place, item in self.done.leave_out(items):
            self._queue.append(place)
            yield item

    def write(self, rows: Rows) -> None:
        """Take in the rows of pending items, in order."""
        self.add(rows, [self._queue.popleft() for _ in range(len(rows))])

    def add(self, rows: Rows, places: Sequence[int]) -> None:
        """Take in rows in any order, each with its place in the gallery."""
        if self._guard is not None and rows.failed.any():
            self._guard()
        self.writer.add(rows, places)
        if self._tell is not None:
            self._tell(rows)


def entries(layout: Layout, failed_too: bool) -> Iterator[tuple[str, bool]]:
    """Yield the keys of the table that is in place, and whether each failed."""
    for key, failed in layout.format.table.entries(layout.path):
        if failed_too or not failed:
            yield key, failed


def _known_keys(layout: Layout, record: Record, files: PartFiles, start: int) -> Iterator[str]:
    """Yield the keys that had a row when the run was started for the ``start``-th time."""
    if record.extends:
        for key, _ in entries(layout, not record.retries):
            yield key
    yield from keys_in_order([part for part in files.list() if part.start < start])
