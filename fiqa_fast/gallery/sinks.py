# SPDX-License-Identifier: Apache-2.0
"""Where rows go: Parquet, CSV, JSON lines, the papers' text format, or the terminal.

To add a table, write a class with the members of :class:`Sink` and name its suffix in
``_BY_SUFFIX``. Files are written under a temporary name and put in place at the end.
"""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TextIO

import numpy as np
import numpy.typing as npt

from fiqa_fast.gallery.atomic import AtomicFile, check_target
from fiqa_fast.gallery.errors import OutputError

__all__ = [
    "CsvSink",
    "JsonLinesSink",
    "ParquetSink",
    "Rows",
    "Sink",
    "TerminalSink",
    "TextSink",
    "check_sink",
    "open_sink",
]

Floats = npt.NDArray[np.float32]
# About what a row group holds before it is written: large enough to compress and to scan well,
# small enough to leave memory alone.
_GROUP_ROWS, _GROUP_BYTES = 65536, 32 * 2**20


@dataclass
class Rows:
    """Consecutive rows of the table. Where ``errors[i]`` is a text, row i has no values."""

    keys: list[str]
    errors: list[str | None]
    score: Floats  # [n]; ignored where there is an error
    columns: dict[str, Floats] = field(default_factory=dict)  # name -> [n, ...]

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.keys)


class Sink(Protocol):
    """One table being written, in order."""

    def write(self, rows: Rows) -> None:
        """Append rows; every call has the same columns."""
        ...

    def commit(self) -> None:
        """Finish the table and make it visible."""
        ...

    def abort(self) -> None:
        """Give up: leave no trace, and what was there before as it was."""
        ...


def shortest(value: np.float32) -> str:
    """Return the shortest decimal text that reads back as the same float32."""
    return str(value)


def _one_line(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")


class _TextFileSink:
    """What the text formats share: a UTF-8 file with \\n line ends, put in place at the end."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._atomic = AtomicFile(path)
        self._file = io.TextIOWrapper(self._atomic.file, encoding="utf-8", newline="")

    def commit(self) -> None:
        """Finish the file and put it in place."""
        self._file.flush()
        self._atomic.commit()

    def abort(self) -> None:
        """Remove what was written."""
        self._atomic.abort()


class CsvSink(_TextFileSink):
    """``path,score,error`` with a header; an error row has no score."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Create the file and write the header."""
        super().__init__(path)
        self._writer = csv.writer(self._file, lineterminator="\n")
        self._writer.writerow(("path", "score", "error"))

    def write(self, rows: Rows) -> None:
        """Append rows."""
        for key, error, score in zip(rows.keys, rows.errors, rows.score, strict=True):
            if error is None:
                self._writer.writerow((key, shortest(score), ""))
            else:
                self._writer.writerow((key, "", error))


class TextSink(_TextFileSink):
    """Lines ``path score``, the papers' score files; error rows have the score ``nan``.

    A path with line breaks, which would break the format, has them (and its backslashes) escaped.
    """

    def write(self, rows: Rows) -> None:
        """Append rows."""
        for key, error, score in zip(rows.keys, rows.errors, rows.score, strict=True):
            text = shortest(score) if error is None else "nan"
            self._file.write(f"{text_key(key)} {text}\n")


def text_key(key: str) -> str:
    """Return a key that fits in a line of text."""
    return _one_line(key) if "\n" in key or "\r" in key else key


class JsonLinesSink(_TextFileSink):
    """One JSON object per line; outputs with several values are nested lists."""

    def write(self, rows: Rows) -> None:
        """Append rows."""
        for i, (key, error) in enumerate(zip(rows.keys, rows.errors, strict=True)):
            good = error is None
            record: dict[str, Any] = {
                "path": key,
                "score": _json_value(rows.score[i]) if good else None,
                "error": error,
            }
            for name, values in rows.columns.items():
                record[name] = _json_value(values[i]) if good else None
            self._file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")


def _json_value(value: Any) -> Any:
    """Return float32 values as Python floats that print as briefly as float32 would."""
    if isinstance(value, np.ndarray) and value.ndim:
        return [_json_value(v) for v in value]
    return float(shortest(value)) if np.isfinite(value) else None  # JSON has no nan


class ParquetSink:
    """A Parquet file: score float32, other outputs list<float32>, nulls in error rows.

    The shape of one image's values stands in the metadata of each list field (``shape``), and
    what the scores mean in the metadata of the schema (``fiqa_fast``).
    """

    def __init__(self, path: str | os.PathLike[str], description: Mapping[str, Any]) -> None:
        """Create the file; ``description`` is what is written into the schema as JSON."""
        import pyarrow  # a second to import: only where used

        self._pa = pyarrow
        self._metadata = {"fiqa_fast": json.dumps(dict(description), sort_keys=True)}
        self._writer: Any = None
        self._pending: list[Rows] = []
        self._pending_rows = 0
        self._atomic = AtomicFile(path)

    def write(self, rows: Rows) -> None:
        """Append rows; they are written a row group at a time."""
        self._pending.append(rows)
        self._pending_rows += len(rows)
        values = 1 + sum(int(np.prod(v.shape[1:])) for v in rows.columns.values())
        if self._pending_rows >= min(_GROUP_ROWS, _GROUP_BYTES // (4 * values)):
            self._write_group()

    def commit(self) -> None:
        """Write the last row group and the footer, and put the file in place."""
        if self._pending or self._writer is None:
            self._write_group()
        self._writer.close()
        self._atomic.commit()

    def abort(self) -> None:
        """Remove what was written."""
        self._atomic.abort()

    def _write_group(self) -> None:
        pending, self._pending, self._pending_rows = self._pending, [], 0
        errors = [error for rows in pending for error in rows.errors]
        missing = np.array([error is not None for error in errors], dtype=bool)
        pa = self._pa
        score = np.concatenate([rows.score for rows in pending] or [np.zeros(0, np.float32)])
        fields = [
            pa.field("path", pa.string(), nullable=False),
            pa.field("score", pa.float32()),
            pa.field("error", pa.string()),
        ]
        arrays = [
            pa.array([key for rows in pending for key in rows.keys], pa.string()),
            pa.array(score, pa.float32(), mask=missing),
            pa.array(errors, pa.string()),
        ]
        for name in pending[0].columns if pending else ():
            values = np.concatenate([rows.columns[name] for rows in pending])
            shape = json.dumps(list(values.shape[1:]))
            fields.append(pa.field(name, pa.list_(pa.float32()), metadata={"shape": shape}))
            arrays.append(self._lists(values, missing))
        schema = pa.schema(fields, metadata=self._metadata)
        if self._writer is None:
            import pyarrow.parquet

            self._writer = pyarrow.parquet.ParquetWriter(
                self._atomic.file, schema, compression="zstd"
            )
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=schema))

    def _lists(self, values: Floats, missing: npt.NDArray[np.bool_]) -> Any:
        """Return [n, ...] as n lists, null where missing."""
        pa = self._pa
        width = int(np.prod(values.shape[1:]))
        flat = pa.array(values[~missing].reshape(-1), pa.float32())
        ends = np.cumsum(np.where(missing, 0, width))
        offsets = pa.array(np.concatenate([[0], ends]).astype(np.int32))
        return pa.ListArray.from_arrays(offsets, flat, mask=pa.array(missing))


class TerminalSink:
    """Rows ``path score`` on standard output as they come; error rows are left to the runner.

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


@dataclass(frozen=True)
class _Kind:
    """One kind of table: how to open it (from path and description), and what it can hold."""

    open: Callable[[str, Mapping[str, Any]], Sink]
    vectors: bool  # outputs with several values per image
    errors: bool  # the texts of error rows


_BY_SUFFIX = {
    ".parquet": _Kind(ParquetSink, vectors=True, errors=True),
    ".csv": _Kind(lambda path, _: CsvSink(path), vectors=False, errors=True),
    ".jsonl": _Kind(lambda path, _: JsonLinesSink(path), vectors=True, errors=True),
    ".txt": _Kind(lambda path, _: TextSink(path), vectors=False, errors=False),
}


def _kind(path: str | None) -> _Kind:
    if path is None:
        return _Kind(lambda _, __: TerminalSink(), vectors=False, errors=False)
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in _BY_SUFFIX:
        raise OutputError(f"{path}: wanted a name ending in {_listed()}, got {suffix or 'none'!r}")
    return _BY_SUFFIX[suffix]


def _listed() -> str:
    *most, last = _BY_SUFFIX
    return f"{', '.join(most)} or {last}"


def check_sink(path: str | None, outputs: Sequence[str] = ("score",)) -> bool:
    """Check, before any work, that ``outputs`` can be written to ``path`` (None: the terminal).

    Returns whether the table holds error texts. Raises :class:`OutputError` for an unknown
    suffix, a missing folder, a target that cannot be written, or outputs it cannot hold.
    """
    kind = _kind(path)
    vectors = [name for name in outputs if name != "score"]
    if vectors and not kind.vectors:
        name = "the terminal" if path is None else path
        raise OutputError(
            f"{name} cannot hold {', '.join(vectors)}: use -o with a .parquet or .jsonl file"
        )
    if path is not None:
        check_target(path)
    return kind.errors


def open_sink(path: str | None, outputs: Sequence[str], description: Mapping[str, Any]) -> Sink:
    """Open the table for ``outputs``, its kind chosen by suffix (None: the terminal).

    ``description`` says what the scores mean; tables with metadata keep it. Raises
    :class:`OutputError` as :func:`check_sink` does.
    """
    check_sink(path, outputs)
    return _kind(path).open(path or "", description)
