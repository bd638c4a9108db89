# SPDX-License-Identifier: Apache-2.0
"""Which files an output consists of: a table, and what stands beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from fiqa_fast.gallery.atomic import check_target
from fiqa_fast.gallery.errors import OutputError
from fiqa_fast.gallery.sinks.parquet_table import ParquetTable
from fiqa_fast.gallery.sinks.text_tables import CsvTable, JsonLinesTable, TextTable

__all__ = ["FORMATS", "Format", "Layout", "Table", "format_of", "plan_output"]

Table = ParquetTable | CsvTable | JsonLinesTable | TextTable


@dataclass(frozen=True)
class Format:
    """One kind of table, and what it can hold."""

    table: type[Table]
    vectors: bool  # outputs with several values per image
    errors: bool  # the texts of error rows
    metadata: bool  # what the scores mean

    def open(self, file: BinaryIO, description: Mapping[str, Any]) -> Table:
        """Begin a table in an open file."""
        if self.table is ParquetTable:
            return ParquetTable(file, description)
        return self.table(file)  # type: ignore[call-arg]


# By the suffix of the file, without the dot.
FORMATS = {
    "parquet": Format(ParquetTable, vectors=True, errors=True, metadata=True),
    "csv": Format(CsvTable, vectors=False, errors=True, metadata=False),
    "jsonl": Format(JsonLinesTable, vectors=True, errors=True, metadata=False),
    "txt": Format(TextTable, vectors=False, errors=False, metadata=False),
}


def format_of(path: str) -> Format:
    """Return the format of a table by its suffix, or raise :class:`OutputError`."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix[1:] not in FORMATS:
        *most, last = (f".{name}" for name in FORMATS)
        raise OutputError(
            f"{path}: wanted a name ending in {', '.join(most)} or {last}, got {suffix or 'none'!r}"
        )
    return FORMATS[suffix[1:]]


@dataclass(frozen=True)
class Layout:
    """The files of one output. ``path`` is the table's real path."""

    path: str
    columns: tuple[str, ...]  # outputs with several values per image, in the table
    arrays: tuple[str, ...]  # those in arrays beside it
    dtype: str  # of both: float32 or float16

    @property
    def format(self) -> Format:
        """The table's format."""
        return format_of(self.path)

    @property
    def record_path(self) -> str | None:
        """Where it says what the scores mean, for a table that has no metadata."""
        return None if self.format.metadata else f"{self.path}.record.json"

    def array_path(self, name: str) -> str:
        """Where the array of an output is: ``scores.embedding.npy`` beside ``scores.csv``."""
        return f"{os.path.splitext(self.path)[0]}.{name}.npy"

    def files(self) -> list[str]:
        """All files, the table last: once it is in its place, so are the others."""
        record = [] if self.record_path is None else [self.record_path]
        return [*record, *map(self.array_path, self.arrays), self.path]

    def check(self) -> None:
        """Raise :class:`OutputError` where one of the files cannot be written."""
        for path in self.files():
            check_target(path)
            if len(os.fsencode(os.path.basename(path))) > 255:
                raise OutputError(f"{path}: this name is too long for a file; take a shorter one")

    def description(self) -> Any:
        """Return what the table that is there says of its scores; None where it says nothing."""
        if self.record_path is None:
            return ParquetTable.description(self.path)
        try:
            with open(self.record_path, "rb") as file:
                return json.load(file)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise OutputError(f"{self.record_path}: cannot be read ({error})") from None


def plan_output(
    path: str, outputs: Sequence[str] = ("score",), vectors: str = "auto", dtype: str = "float32"
) -> Layout:
    """Decide where each output goes; ``vectors`` is auto, columns or npy.

    Raises :class:`OutputError` for an unknown suffix, columns that the format has not, and
    targets that cannot be written.
    """
    kind = format_of(path)
    names = tuple(name for name in outputs if name != "score")
    if names and vectors == "columns" and not kind.vectors:
        raise OutputError(
            f"{path} cannot hold {', '.join(names)}: use -o with a .parquet or .jsonl file, or "
            "--vectors npy"
        )
    beside = vectors == "npy" or (vectors == "auto" and not kind.vectors)
    target = check_target(path)
    format_of(target)  # of a link, what is behind it
    layout = Layout(target, () if beside else names, names if beside else (), dtype)
    layout.check()
    return layout
