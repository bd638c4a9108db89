# SPDX-License-Identifier: Apache-2.0
"""Parquet, Arrow and Feather tables with encoded images, as Hugging Face's datasets store them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from fiqa_fast.gallery.errors import InputError
from fiqa_fast.gallery.sources.arrow_messages import file_checks, stream_checks
from fiqa_fast.gallery.sources.container import Container, DamagedError, Entry, RandomFile
from fiqa_fast.gallery.sources.item import Opening
from fiqa_fast.gallery.sources.keys import member_key
from fiqa_fast.gallery.sources.parquet_pages import check_pages
from fiqa_fast.gallery.sources.table_rows import find_columns, named_images
from fiqa_fast.gallery.text import brief, printable
from fiqa_fast.images import open_regular

__all__ = ["TableSource", "open_table"]

_FILE = b"ARROW1"  # at the start and the end of a file
_END = b"\xff\xff\xff\xff\0\0\0\0"  # of a stream
_ROWS = 8  # read at once: each may have the greatest length


class TableSource(Container):
    """Keys are the image's own path, else the column of paths, else the number of the row."""

    def count(self) -> int | None:
        """Return the number of rows that a Parquet file says it has."""
        with open_regular(self.path) as file:
            if file.read(4) != b"PAR1":
                return None
        with _understood():
            return int(_parquet(self.path).metadata.num_rows)

    def _entries(self) -> Iterator[Entry]:
        for number, (name, opener) in enumerate(self.rows()):
            yield (str(number) if name is None else member_key(name)), opener

    def rows(self) -> Iterator[tuple[str | None, Any]]:
        """Yield the name of each row's image, if it has one, and what opens it.

        Raises :class:`DamagedError` where the table breaks off.
        """
        number = 0
        with _understood():
            schema, batches = self._open()
            image, key = find_columns(schema)
            for batch in batches([image] if key is None else [image, key]):
                for row in named_images(batch, image, key):
                    yield row
                    number += 1
        # pyarrow takes the end of the file for the end of the table.
        wanted = self.count()
        if (wanted is not None and number != wanted) or (wanted is None and not self._ends()):
            raise DamagedError(f"cut off after row {number}")

    def _ends(self) -> bool:
        """Whether an Arrow file or stream has its end."""
        file = RandomFile(self.path)
        return file.read(file.size - 8, 8) == _END or file.read(file.size - 6, 6) == _FILE

    def _open(self) -> Any:
        """Return the schema, and a function that yields record batches of two columns."""
        import pyarrow

        with open_regular(self.path) as file:
            start = file.read(6)
        if start.startswith(b"PAR1"):
            table = _parquet(self.path)
            return table.schema_arrow, partial(self._parquet_batches, table)
        is_file = start == _FILE  # or a stream, as Hugging Face's cache is
        open_it = pyarrow.ipc.open_file if is_file else pyarrow.ipc.open_stream
        content = RandomFile(self.path)
        checks = (file_checks if is_file else stream_checks)(content)
        next(checks, None)
        schema = open_it(pyarrow.OSFile(self.path)).schema

        def batches(columns: list[str]) -> Any:
            fields = [schema.get_field_index(name) for name in columns]
            options = pyarrow.ipc.IpcReadOptions(included_fields=fields, use_threads=False)
            stored = open_it(pyarrow.OSFile(self.path), options=options)
            numbers = range(stored.num_record_batches) if is_file else ()
            rows = map(stored.get_batch, numbers) if is_file else iter(stored)
            while True:
                next(checks, None)  # before the batch is read
                if (batch := next(rows, None)) is None:
                    return
                yield batch

        return schema, batches

    def _parquet_batches(self, table: Any, columns: list[str]) -> Any:
        file = RandomFile(self.path)
        for group in range(table.num_row_groups):
            check_pages(file, table.metadata.row_group(group), columns)
            yield from table.iter_batches(
                _ROWS, row_groups=[group], columns=columns, use_threads=False
            )


def _parquet(path: str) -> Any:
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(
        pyarrow.OSFile(path),
        pre_buffer=False,
        buffer_size=2**20,  # or whole columns of a row group are read at once
        thrift_string_size_limit=2**26,
        thrift_container_size_limit=2**22,
    )


@contextmanager
def _understood() -> Iterator[None]:
    """Turn what pyarrow raises about a file into :class:`DamagedError`."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, MemoryError, UnicodeDecodeError) as error:
        raise DamagedError(f"damaged: {brief(error, 160)}") from error


def open_table(path: str, opening: Opening) -> TableSource:
    """Open a table, which has to have a column of images."""
    source = TableSource(path, opening)
    try:
        with _understood():
            find_columns(source._open()[0])
    except (DamagedError, InputError) as error:
        raise InputError(f"{printable(path)}: {error}") from error
    return source
