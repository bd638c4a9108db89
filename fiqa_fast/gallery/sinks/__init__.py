# SPDX-License-Identifier: Apache-2.0
"""Where rows go: Parquet, CSV, JSON lines, the papers' text format, the terminal, or a pipe.

    Rows -> Family (a table, and arrays beside it) -> files | standard output

To add a table, write a class with the members of :class:`TextTable` and name its suffix in
``FORMATS``. How a table goes on after its process was killed is :mod:`fiqa_fast.gallery.store`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from fiqa_fast.gallery.errors import OutputError
from fiqa_fast.gallery.sinks.family import Family
from fiqa_fast.gallery.sinks.layout import FORMATS, Layout, format_of, plan_output
from fiqa_fast.gallery.sinks.rows import Floats, Rows
from fiqa_fast.gallery.sinks.text_tables import shortest, text_key
from fiqa_fast.gallery.sinks.to_files import FileSink
from fiqa_fast.gallery.sinks.to_stdout import PipeSink, TerminalSink

__all__ = [
    "FORMATS",
    "Family",
    "FileSink",
    "Floats",
    "Layout",
    "PipeSink",
    "Rows",
    "Sink",
    "TerminalSink",
    "format_of",
    "open_pipe",
    "open_sink",
    "plan_output",
    "shortest",
    "text_key",
]


class Sink(Protocol):
    """One table being written, in order."""

    def write(self, rows: Rows) -> None:
        """Append rows; every call has the same columns."""
        ...

    def commit(self) -> None:
        """Finish the table and make it visible."""
        ...

    def abort(self) -> None:
        """Give up: leave what was there before as it was."""
        ...


def open_sink(path: str | None, outputs: Sequence[str], description: Mapping[str, Any]) -> Sink:
    """Open a table of ``outputs`` that appears whole or not at all, its format by its suffix.

    ``path`` None is the terminal, which shows scores alone. ``description`` says what the scores
    mean; tables with metadata keep it.
    Raises :class:`OutputError` as :func:`plan_output` does.
    """
    if path is None:
        return TerminalSink()
    return FileSink(plan_output(path, outputs), description)


def open_pipe(name: str, outputs: Sequence[str]) -> PipeSink:
    """Open a table on standard output in the format called ``name``.

    Raises :class:`OutputError` where that format cannot be streamed or cannot hold ``outputs``.
    """
    kind = FORMATS[name]
    if kind.metadata:
        raise OutputError(f"{name} cannot be written to a pipe: use csv, jsonl or txt")
    vectors = [output for output in outputs if output != "score"]
    if vectors and not kind.vectors:
        raise OutputError(f"{name} cannot hold {', '.join(vectors)}: use --format jsonl")
    return PipeSink(lambda file: kind.open(file, {}))
