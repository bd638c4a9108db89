# SPDX-License-Identifier: Apache-2.0
"""Parquet tables, in row groups of a fixed size: the same rows are the same bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np

from fiqa_fast.gallery.errors import OutputError
from fiqa_fast.gallery.sinks.arrow_rows import from_arrow, to_arrow
from fiqa_fast.gallery.sinks.rows import Rows

__all__ = ["ParquetTable"]

# What a row group holds: enough to compress and to scan well, little enough to leave memory alone.
_GROUP_ROWS, _GROUP_BYTES = 65536, 32 * 2**20
_READ_ROWS = 8192


class ParquetTable:
    """A Parquet file whose schema says, in its metadata, what the scores mean (``fiqa_fast``)."""

    def __init__(self, file: BinaryIO, description: Mapping[str, Any]) -> None:
        """Write into ``file``, which stays open; ``description`` goes into the schema as JSON."""
        import pyarrow.parquet  # a second to import: only where used

        self._parquet = pyarrow.parquet
        self._metadata = {"fiqa_fast": json.dumps(dict(description), sort_keys=True)}
        self._file = file
        self._writer: Any = None
        self._pending: list[Rows] = []
        self._pending_rows = 0

    def write(self, rows: Rows) -> None:
        """Append rows; they are written a row group at a time."""
        self._pending.append(rows)
        self._pending_rows += len(rows)
        values = 1 + sum(int(np.prod(v.shape[1:])) for v in rows.columns.values())
        group = max(1, min(_GROUP_ROWS, _GROUP_BYTES // (4 * values)))
        if self._pending_rows < group:
            return
        gathered = Rows.concatenate(self._pending)
        whole = len(gathered) - len(gathered) % group
        for first in range(0, whole, group):
            self._write_group(gathered.take(slice(first, first + group)))
        rest = gathered.take(slice(whole, None))
        self._pending, self._pending_rows = [rest], len(rest)

    def finish(self) -> None:
        """Write the last row group and the footer; the file stays open."""
        if self._pending_rows or self._writer is None:
            self._write_group(Rows.concatenate(self._pending))
        self._writer.close()

    def copy(self, path: str, failed_too: bool = True) -> None:
        """Append the rows of another table, its failed ones only on demand."""
        for batch in self._batches(path, None):
            rows = from_arrow(batch)
            self.write(rows if failed_too else rows.take(np.flatnonzero(~rows.failed)))

    @classmethod
    def entries(cls, path: str) -> Iterator[tuple[str, bool]]:
        """Yield the key of every row of a table, and whether it failed."""
        for batch in cls._batches(path, ["path", "error"]):
            failed = batch.column("error").is_valid().to_pylist()
            yield from zip(batch.column("path").to_pylist(), failed, strict=True)

    @staticmethod
    def key(key: str) -> str:
        """Return a key as it stands in a table."""
        return key

    @staticmethod
    def description(path: str) -> Any:
        """Return what the schema of a table says of its scores; None where it says nothing.

        Raises :class:`OutputError` for a file that is no Parquet table.
        """
        import pyarrow.parquet

        try:
            text = (pyarrow.parquet.read_schema(path).metadata or {}).get(b"fiqa_fast")
            return None if text is None else json.loads(text)
        except (pyarrow.ArrowException, ValueError, OSError) as error:
            raise OutputError(f"{path}: no Parquet table ({_brief(error)})") from None

    @staticmethod
    def check(path: str, columns: Sequence[str]) -> None:
        """Raise :class:`OutputError` unless a table has these columns, as :meth:`write` does."""
        import pyarrow as pa
        import pyarrow.parquet

        schema = pyarrow.parquet.read_schema(path)
        wanted = ["path", "score", "error", *columns]
        types = [pa.string(), pa.float32(), pa.string()]
        shaped = all(b"shape" in (field.metadata or {}) for field in list(schema)[3:])
        if schema.names != wanted or schema.types[:3] != types or not shaped:
            raise OutputError(
                f"{path}: not a table that can go on: wanted the columns {', '.join(wanted)} as "
                f"they were written, got {', '.join(schema.names)}"
            )

    @staticmethod
    def _batches(path: str, columns: list[str] | None) -> Iterator[Any]:
        import pyarrow as pa
        import pyarrow.parquet

        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                for batch in file.iter_batches(_READ_ROWS, columns=columns):
                    yield pa.Table.from_batches([batch])
        except (pa.ArrowException, ValueError, KeyError, OSError) as error:
            raise OutputError(f"{path}: not a table that can go on ({_brief(error)})") from None

    def _write_group(self, rows: Rows) -> None:
        table = to_arrow(rows, self._metadata)
        if self._writer is None:
            self._writer = self._parquet.ParquetWriter(self._file, table.schema, compression="zstd")
        self._writer.write_table(table, row_group_size=len(rows) or None)


def _brief(error: BaseException) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
