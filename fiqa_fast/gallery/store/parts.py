# SPDX-License-Identifier: Apache-2.0
"""Finished rows in many small files, each on disk before it has its name.

A part's name says which start of the run and which worker wrote it, and the place of its first
row in the gallery. Its rows are in the gallery's order; parts of several workers interleave.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fiqa_fast.gallery.atomic import AtomicFile
from fiqa_fast.gallery.errors import OutputError
from fiqa_fast.gallery.sinks.arrow_rows import from_arrow, to_arrow
from fiqa_fast.gallery.sinks.rows import Rows

__all__ = ["Part", "PartFiles", "in_order", "keys_in_order", "rows_in_order"]

_NAME = re.compile(r"part-(\d{6})-(\d{6})-([0-9a-f]{16})\.parquet\Z")


@dataclass(frozen=True, order=True)
class Part:
    """A file of finished rows."""

    first: int  # place of its first row
    start: int  # which start of the run wrote it
    worker: int
    path: str

    def count(self) -> int:
        """Return how many rows it has; raises :class:`OutputError` where damaged."""
        return self._with(lambda parquet: parquet.read_metadata(self.path).num_rows)  # type: ignore[no-any-return]

    def failed(self) -> int:
        """Return how many of its rows have an error."""
        errors = self.read(["error"]).column("error")
        return len(errors) - int(errors.null_count)

    def read(self, columns: Sequence[str] | None = None) -> Any:
        """Return its rows as a ``pyarrow.Table``; raises :class:`OutputError` where damaged."""

        def read(parquet: Any) -> Any:
            table = parquet.read_table(
                self.path,
                columns=columns,
                partitioning=None,
                use_threads=False,
                page_checksum_verification=True,
            )
            if not set(columns or ("path", "error", "position")) <= set(table.column_names):
                raise ValueError("columns are missing")
            return table

        return self._with(read)

    def _with(self, read: Callable[[Any], Any]) -> Any:
        import pyarrow as pa
        import pyarrow.parquet

        try:
            return read(pyarrow.parquet)
        except (pa.ArrowException, ValueError, OSError) as error:
            reason = " ".join(str(error).split())[:120]
            raise OutputError(
                f"{self.path}: damaged finished rows ({reason}); remove this file and run the "
                "same command again"
            ) from None


class PartFiles:
    """The parts of one unfinished output."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def list(self) -> list[Part]:
        """Return all parts in the order of their first rows."""
        return sorted(
            Part(int(found[3], 16), int(found[1]), int(found[2]), os.path.join(self.folder, name))
            for name in os.listdir(self.folder)
            if (found := _NAME.match(name))
        )

    def write(self, rows: Rows, places: npt.NDArray[np.int64], start: int, worker: int) -> None:
        """Store rows for good. Raises ``OSError``."""
        import pyarrow as pa

        order = np.argsort(places, kind="stable")
        table = to_arrow(rows.take(order))
        table = table.append_column("position", pa.array(places[order], pa.int64()))
        name = f"part-{start:06d}-{worker:06d}-{int(places[order[0]]):016x}.parquet"
        _write(table, os.path.join(self.folder, name))

    def drop_failed(self) -> int:
        """Drop the rows without a score from all parts, and return how many there were."""
        dropped = 0
        for part in self.list():
            table = part.read()
            good = table.filter(table.column("error").is_null())
            if len(good) == len(table):
                continue
            dropped += len(table) - len(good)
            if len(good):
                _write(good, part.path)
            else:
                os.unlink(part.path)
        return dropped


def _write(table: Any, path: str) -> None:
    import pyarrow.parquet

    file = AtomicFile(path)
    try:
        pyarrow.parquet.write_table(table, file.file, compression="zstd", write_page_checksum=True)
        file.commit()
    except BaseException:
        file.abort()
        raise


def in_order(parts: Sequence[Part], columns: Sequence[str] | None = None) -> Iterator[Any]:
    """Yield the rows of all parts as tables in the order of their places.

    Parts are open only while their rows interleave.
    """
    import pyarrow as pa

    parts = sorted(parts)
    wanted = None if columns is None else [*columns, "position"]
    open_tables: list[Any] = []
    for i, part in enumerate(parts):
        open_tables.append(part.read(wanted))
        end = parts[i + 1].first if i + 1 < len(parts) else None
        ready, waiting = [], []
        for table in open_tables:
            count = _before(table, end)
            ready.append(table.slice(0, count))
            if count < len(table):
                waiting.append(table.slice(count))
        open_tables = waiting
        merged = pa.concat_tables(ready)
        if len(ready) > 1:
            merged = merged.take(np.argsort(_places(merged), kind="stable"))
        if len(merged):
            yield merged


def _places(table: Any) -> npt.NDArray[np.int64]:
    places: npt.NDArray[np.int64] = table.column("position").to_numpy()
    return places


def _before(table: Any, end: int | None) -> int:
    """Return how many rows have a place up to ``end``."""
    return len(table) if end is None else int(np.searchsorted(_places(table), end, "right"))


def keys_in_order(parts: Sequence[Part]) -> Iterator[str]:
    """Yield the keys of all parts in the order of their places."""
    for table in in_order(parts, ["path"]):
        yield from table.column("path").to_pylist()


def rows_in_order(parts: Sequence[Part]) -> Iterator[Rows]:
    """Yield the rows of all parts in the order of their places."""
    for table in in_order(parts):
        yield from_arrow(table)
