# SPDX-License-Identifier: Apache-2.0
"""Rows into files that appear whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, BinaryIO

from fiqa_fast.gallery.atomic import AtomicFile
from fiqa_fast.gallery.sinks.family import Family
from fiqa_fast.gallery.sinks.layout import Layout
from fiqa_fast.gallery.sinks.rows import Rows

__all__ = ["FileSink"]


class FileSink:
    """The files of a layout, under temporary names until :meth:`commit`."""

    def __init__(self, layout: Layout, description: Mapping[str, Any]) -> None:
        """Create the files; raises :class:`OutputError` where that is impossible."""
        self._files: list[AtomicFile] = []
        try:
            self._family = Family(layout, self._open, description)
        except BaseException:
            self.abort()
            raise

    def _open(self, path: str) -> BinaryIO:
        self._files.append(AtomicFile(path))
        return self._files[-1].file

    def write(self, rows: Rows) -> None:
        """Append rows."""
        self._family.write(rows)

    def commit(self) -> None:
        """Finish the files and put them in place, the table last."""
        self._family.finish()
        for file in self._files:
            file.commit()

    def abort(self) -> None:
        """Remove what was written."""
        for file in self._files:
            file.abort()
