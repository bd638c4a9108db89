# SPDX-License-Identifier: Apache-2.0
"""A table and the arrays beside it, written together."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import numpy as np

from fiqa_fast.gallery.sinks.arrays import ArrayFile, read_array
from fiqa_fast.gallery.sinks.layout import Layout
from fiqa_fast.gallery.sinks.rows import Rows

__all__ = ["Family"]


class Family:
    """The files of a layout, each written through what ``open`` returns for its path."""

    def __init__(
        self,
        layout: Layout,
        open: Callable[[str], BinaryIO],
        description: Mapping[str, Any],
        recorded: bool = False,
    ) -> None:
        """Open all files; ``description`` says what the scores mean, as JSON-able facts.

        ``recorded``: it is kept beside tables without metadata too.
        """
        self._layout = layout
        if layout.record_path is not None and recorded:
            text = json.dumps(dict(description), indent=1, sort_keys=True) + "\n"
            open(layout.record_path).write(text.encode())
        self._arrays = {name: ArrayFile(open(layout.array_path(name))) for name in layout.arrays}
        self._table = layout.format.open(open(layout.path), description)
        # A table without rows has its columns too: a reader of many parts believes the first one.
        columns = {name: np.empty((0, 0), layout.dtype) for name in layout.columns}
        self._table.write(Rows([], [], np.empty(0, np.float32), columns))

    def write(self, rows: Rows) -> None:
        """Append rows."""
        rows = rows.narrowed(self._layout.dtype)
        for name, array in self._arrays.items():
            array.write(rows.columns[name], rows.failed)
        columns = {name: rows.columns[name] for name in self._layout.columns}
        self._table.write(Rows(rows.keys, rows.errors, rows.score, columns))

    def copy(self, failed_too: bool = True) -> None:
        """Append the rows of the output that is in place now; failed ones only on demand."""
        path = self._layout.path
        self._table.copy(path, failed_too)
        if not self._arrays:
            return
        failed = np.array([failed for _, failed in self._table.entries(path)], dtype=bool)
        for name, array in self._arrays.items():
            first = 0
            for values in read_array(self._layout.array_path(name), len(failed)):
                here = failed[first : first + len(values)]
                first += len(values)
                if failed_too:
                    array.write(values, here)
                else:
                    array.write(values[~here], here[~here])

    def finish(self) -> None:
        """Write what is left; the files stay open."""
        for array in self._arrays.values():
            array.finish()
        self._table.finish()
