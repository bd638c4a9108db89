# SPDX-License-Identifier: Apache-2.0
"""Tables as people have them: CSV, Parquet and JSON lines, cell by cell, with line numbers."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fiqa_fast.evaluate.readers.files import StrPath, brief, open_input, open_text
from fiqa_fast.gallery.errors import InputError
from fiqa_fast.gallery.sources import printable

__all__ = ["TABLES", "Table", "read_table"]

_NO_SCORES = ("path", "identity", "error")


@dataclass(frozen=True)
class Table:
    """Columns of equal length; a cell is a text, a number, or None where it is empty."""

    file: str
    columns: dict[str, list[Any]]
    lines: Sequence[int] | None  # of the file, where it has lines

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(next(iter(self.columns.values()), []))

    def at(self, row: int) -> str:
        """Say where a row stands."""
        place = f"row {row + 1}" if self.lines is None else f"line {self.lines[row]}"
        return f"{self.file}, {place}"

    def column(self, name: str) -> list[Any]:
        """Return a column's cells; raises :class:`InputError` if there is none of that name."""
        if name not in self.columns:
            raise InputError(
                f"{self.file}: wanted a column {name!r}, got {_listed(list(self.columns))}"
            )
        return self.columns[name]

    def texts(self, name: str) -> list[str]:
        """Return a column as texts; an empty cell is an :class:`InputError`."""
        cells = self.column(name)
        texts = ["" if cell is None else printable(str(cell)) for cell in cells]
        for row, (cell, text) in enumerate(zip(cells, texts, strict=True)):
            if not text.strip() or isinstance(cell, (bytes, float)):
                raise InputError(f"{self.at(row)}: wanted a text as {name}, got {_show(cell)}")
        return texts

    def paths(self) -> list[str]:
        """Return the column ``path``, whose cells are distinct."""
        paths = self.texts("path")
        rows: dict[str, int] = {}
        for row, path in enumerate(paths):
            if rows.setdefault(path, row) != row:
                raise InputError(
                    f"{self.at(row)}: {brief(path)!r} is named twice, "
                    f"first in {self.at(rows[path]).removeprefix(self.file + ', ')}"
                )
        return paths

    def numbers(self, name: str, gaps: bool = False) -> npt.NDArray[np.float64]:  # [n]
        """Return a column of finite numbers; with ``gaps``, empty cells and nan become nan."""
        values = np.empty(len(self), np.float64)
        for row, cell in enumerate(self.column(name)):
            value = math.nan if cell is None and gaps else _number(cell)
            if value is None or math.isinf(value) or (math.isnan(value) and not gaps):
                raise InputError(
                    f"{self.at(row)}: wanted a finite number as {name}, got {_show(cell)}"
                )
            values[row] = value
        return values

    def score_columns(self) -> list[str]:
        """Return the columns that look like scores: those with a number that is not whole.

        So flags, counts and texts are passed over. One such number is enough, so that a column
        of scores with a bad cell is noticed, not skipped.
        """
        return [
            name
            for name, cells in self.columns.items()
            if name not in _NO_SCORES and any(map(_is_fraction, cells))
        ]


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(brief(name, 40) for name in names[:12])
    return f"{shown}, ..." if len(names) > 12 else shown or "none"


def _show(cell: object) -> str:
    return "nothing" if cell is None else repr(brief(cell, 40))


def _number(cell: object) -> float | None:
    if isinstance(cell, bool) or cell is None or isinstance(cell, bytes):
        return None
    if isinstance(cell, str) and "_" in cell:  # Python reads 1_000 as a number
        return None
    try:
        return float(cell)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None


def _is_fraction(cell: object) -> bool:
    value = _number(cell)
    return value is not None and math.isfinite(value) and value != math.floor(value)


def read_table(path: StrPath) -> Table:
    """Read a table, its kind chosen by suffix; nested columns are left out.

    Raises :class:`InputError` for another suffix, a file that cannot be read, is damaged or has
    no rows, rows that do not fit the header, and names that occur twice.
    """
    name = printable(os.fspath(path))
    suffix = os.path.splitext(name)[1].lower()
    if suffix not in TABLES:
        raise InputError(f"{name}: wanted a table ({', '.join(TABLES)}), got {suffix or 'none'!r}")
    table = TABLES[suffix](path, name)
    if not len(table):
        raise InputError(f"{name}: wanted a table with rows, got none")
    return table


def _read_csv(path: StrPath, name: str) -> Table:
    with open_text(path) as file:
        reader = csv.reader(file, strict=True)
        try:
            header = [printable(cell.strip()) for cell in next(reader, [])]
            _check_header(header, name)
            columns: list[list[Any]] = [[] for _ in header]
            lines = []
            for row in reader:
                if not row:
                    continue
                if len(row) != len(header):
                    raise InputError(
                        f"{name}, line {reader.line_num}: wanted {len(header)} cells as in the "
                        f"header, got {len(row)}"
                    )
                lines.append(reader.line_num)
                for column, cell in zip(columns, row, strict=True):
                    column.append(cell if cell.strip() else None)
        except csv.Error as error:
            raise InputError(f"{name}, line {reader.line_num}: {error}") from error
    return Table(name, dict(zip(header, columns, strict=True)), lines)


def _check_header(header: Sequence[str], name: str) -> None:
    if len(header) == 1 and any(mark in header[0] for mark in ";\t"):
        raise InputError(f"{name}: wanted cells separated by commas, got {brief(header[0])!r}")
    twice = next((cell for i, cell in enumerate(header) if cell in header[:i]), None)
    if twice is not None:
        raise InputError(f"{name}: the column {brief(twice)!r} is there twice")


def _read_json_lines(path: StrPath, name: str) -> Table:
    columns: dict[str, list[Any]] = {}
    lines: list[int] = []
    with open_text(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{name}, line {number}: wanted a JSON object: {error}") from error
            if not isinstance(record, dict):
                raise InputError(
                    f"{name}, line {number}: wanted a JSON object, got {brief(record, 40)!r}"
                )
            for key, cell in record.items():
                if not isinstance(cell, (list, dict)):
                    column = columns.setdefault(key, [])
                    column.extend([None] * (len(lines) - len(column)))
                    column.append(None if cell == "" else cell)
            lines.append(number)
    for column in columns.values():
        column.extend([None] * (len(lines) - len(column)))
    return Table(name, columns, lines)


def _read_parquet(path: StrPath, name: str) -> Table:
    import pyarrow
    import pyarrow.parquet

    with open_input(path) as file:
        try:
            parquet = pyarrow.parquet.ParquetFile(file)
            flat = [f.name for f in parquet.schema_arrow if not pyarrow.types.is_nested(f.type)]
            _check_header(flat, name)
            data = parquet.read(columns=flat)
            columns = {column: data.column(column).to_pylist() for column in flat}
        except (pyarrow.ArrowException, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{name}: no readable Parquet file: {brief(error, 200)}") from error
    columns = {key: [None if c == "" else c for c in cells] for key, cells in columns.items()}
    return Table(name, columns, None)


TABLES: dict[str, Callable[[StrPath, str], Table]] = {
    ".csv": _read_csv,
    ".parquet": _read_parquet,
    ".jsonl": _read_json_lines,
}
