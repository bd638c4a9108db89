# SPDX-License-Identifier: Apache-2.0
"""Rows on standard output: for a reader on a terminal, or for the next program of a pipe."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from typing import BinaryIO, TextIO

from fiqa_fast.gallery.sinks.layout import Table
from fiqa_fast.gallery.sinks.rows import Rows
from fiqa_fast.gallery.sinks.text_tables import text_key

__all__ = ["PipeSink", "TerminalSink"]


class TerminalSink:
    """Rows ``path score`` as they come; error rows are left to the runner.

    On a terminal the scores stand below each other; in a pipe, one space separates the two.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        """Write to ``stream`` (default: standard output)."""
        self._stream = sys.stdout if stream is None else stream
        self._aligned = self._stream.isatty()
        self._width = 0

    def write(self, rows: Rows) -> None:
        """Print rows."""
        keys = [text_key(key) for key in rows.keys]
        if self._aligned:
            self._width = max(self._width, min(max(map(len, keys), default=0), 100))
        for key, error, score in zip(keys, rows.errors, rows.score, strict=True):
            if error is None:
                self._stream.write(f"{key:<{self._width}} {score:.6f}\n")
        self._stream.flush()

    def commit(self) -> None:
        """Flush."""
        self._stream.flush()

    def abort(self) -> None:
        """Do nothing: what is printed is printed."""


class PipeSink:
    """A table as it comes, each batch in one write, so that the next program can begin."""

    def __init__(self, open: Callable[[BinaryIO], Table], stream: BinaryIO | None = None) -> None:
        """Write to ``stream`` (default: standard output)."""
        self._stream = sys.stdout.buffer if stream is None else stream
        self._buffer = io.BytesIO()
        self._table = open(self._buffer)

    def write(self, rows: Rows) -> None:
        """Write rows."""
        self._table.write(rows)
        self._pass_on()

    def commit(self) -> None:
        """Write what is left."""
        self._table.finish()
        self._pass_on()

    def abort(self) -> None:
        """Do nothing: what is written is written."""

    def _pass_on(self) -> None:
        self._stream.write(self._buffer.getvalue())
        self._stream.flush()
        self._buffer.seek(0)
        self._buffer.truncate()
