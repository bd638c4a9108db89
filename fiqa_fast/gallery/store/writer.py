# SPDX-License-Identifier: Apache-2.0
"""Gathers rows until they are worth a part, by size or by time."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from fiqa_fast.gallery.errors import OutputError
from fiqa_fast.gallery.sinks import Rows
from fiqa_fast.gallery.store.parts import PartFiles

__all__ = ["SAVE_SECONDS", "PartWriter"]

SAVE_SECONDS = 30.0  # what a kill costs at most
_PART_ROWS, _PART_BYTES = 65536, 32 * 2**20


class PartWriter:
    """One process's rows of one start of a run."""

    def __init__(
        self,
        files: PartFiles,
        start: int,
        worker: int = 0,
        dtype: str = "float32",
        save_seconds: float = SAVE_SECONDS,
    ) -> None:
        self._files, self.start, self._worker = files, start, worker
        self._dtype = dtype
        self._save_seconds = save_seconds
        self._rows: list[Rows] = []
        self._places: list[int] = []
        self._bytes = 0
        self._saved = time.monotonic()
        self.stored = 0  # rows on disk

    def add(self, rows: Rows, places: Sequence[int]) -> None:
        """Take in rows and their places; raises :class:`OutputError` as :meth:`flush` does."""
        rows = rows.narrowed(self._dtype)
        self._rows.append(rows)
        self._places += places
        self._bytes += rows.nbytes
        full = len(self._places) >= _PART_ROWS or self._bytes >= _PART_BYTES
        if full or time.monotonic() - self._saved >= self._save_seconds:
            self.flush()

    def flush(self) -> None:
        """Put what was gathered on disk; raises :class:`OutputError` where that is impossible."""
        if self._places:
            try:
                self._files.write(
                    Rows.concatenate(self._rows),
                    np.array(self._places, np.int64),
                    self.start,
                    self._worker,
                )
            except OSError as error:
                raise OutputError(
                    f"{self._files.folder}: {error.strerror or error}; all rows stored so far are "
                    "kept: mend that and run the same command again"
                ) from error
            self.stored += len(self._places)
        self._rows, self._places, self._bytes = [], [], 0
        self._saved = time.monotonic()
