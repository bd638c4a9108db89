# SPDX-License-Identifier: Apache-2.0
"""Tables of lines: CSV, JSON lines, and the papers' ``path score``.

Each is written in order, row by row, and read back only for what is in it: which keys, which of
them failed, and the text of each row, so that a table that grows keeps its rows byte for byte.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np

from fiqa_fast.gallery.errors import OutputError
from fiqa_fast.gallery.sinks.rows import Rows

__all__ = ["CsvTable", "JsonLinesTable", "TextTable", "shortest", "text_key"]


def shortest(value: Any) -> str:
    """Return the shortest decimal text that reads back as the same float."""
    return str(value)


def text_key(key: str) -> str:
    """Return a key that fits in a line of text, different ones for different keys."""
    if any(sign in key for sign in ("\n", "\r", "\\n", "\\r", "\\\\")):
        return key.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    return key


class _LineTable:
    """What the text formats share: UTF-8 with \\n line ends, in a file that stays open."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)

    def finish(self) -> None:
        """Write what is left; the file stays open."""
        self._file.flush()
        self._file.detach()

    def copy(self, path: str, failed_too: bool = True) -> None:
        """Append the rows of another table of this kind, its failed ones only on demand."""
        for _, failed, text in self._records(path):
            if failed_too or not failed:
                self._file.write(text)

    @classmethod
    def entries(cls, path: str) -> Iterator[tuple[str, bool]]:
        """Yield the key of every row of a table as it stands there, and whether it failed."""
        return ((key, failed) for key, failed, _ in cls._records(path))

    @staticmethod
    def check(path: str, columns: Sequence[str]) -> None:
        """Do nothing: every line is checked when it is read."""

    @classmethod
    def _records(cls, path: str) -> Iterator[tuple[str, bool, str]]:
        try:
            with open(path, encoding="utf-8", newline="") as file:
                yield from cls._read(file)
        except (ValueError, TypeError, KeyError, csv.Error) as error:
            text = " ".join(str(error).split())
            raise OutputError(f"{path}: not a table that can go on ({text})") from None

    @staticmethod
    def _read(file: Any) -> Iterator[tuple[str, bool, str]]:
        raise NotImplementedError

    @staticmethod
    def key(key: str) -> str:
        """Return a key as it stands in a table of this kind."""
        return key


class CsvTable(_LineTable):
    """``path,score,error`` with a header; an error row has no score."""

    def __init__(self, file: BinaryIO) -> None:
        """Write the header."""
        super().__init__(file)
        self._file.write(_csv_line("path", "score", "error"))

    def write(self, rows: Rows) -> None:
        """Append rows."""
        for key, error, score in zip(rows.keys, rows.errors, rows.score, strict=True):
            good = error is None
            self._file.write(_csv_line(key, shortest(score) if good else "", error or ""))

    @staticmethod
    def _read(file: Any) -> Iterator[tuple[str, bool, str]]:
        lines = csv.reader(file, strict=True)
        if next(lines, None) != ["path", "score", "error"]:
            raise ValueError("wanted the header path,score,error")
        for row in lines:
            if len(row) != 3:
                raise ValueError(f"line {lines.line_num}: wanted three values")
            yield row[0], not row[1], _csv_line(*row)


def _csv_line(*values: str) -> str:
    # The library's writer leaves a lone carriage return without quotes, where readers end a row.
    quoted = (
        '"' + value.replace('"', '""') + '"' if any(c in value for c in ',"\r\n') else value
        for value in values
    )
    return ",".join(quoted) + "\n"


class TextTable(_LineTable):
    """Lines ``path score``, the papers' score files; error rows have the score ``nan``.

    A path with line breaks, which would break the format, has them (and its backslashes) escaped.
    """

    def write(self, rows: Rows) -> None:
        """Append rows."""
        for key, error, score in zip(rows.keys, rows.errors, rows.score, strict=True):
            text = shortest(score) if error is None else "nan"
            self._file.write(f"{text_key(key)} {text}\n")

    @staticmethod
    def _read(file: Any) -> Iterator[tuple[str, bool, str]]:
        for line in file:
            key, space, score = line.rstrip("\n").rpartition(" ")
            if not space or not line.endswith("\n"):
                raise ValueError(f"wanted lines 'path score', got {line[:60]!r}")
            yield key, bool(np.isnan(float(score))), line

    @staticmethod
    def key(key: str) -> str:
        """Return a key as it stands in a line."""
        return text_key(key)


class JsonLinesTable(_LineTable):
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

    @staticmethod
    def _read(file: Any) -> Iterator[tuple[str, bool, str]]:
        for line in file:
            record = json.loads(line)
            if not isinstance(record["path"], str) or not line.endswith("\n"):
                raise ValueError(f"wanted objects with a path, got {line[:60]!r}")
            yield record["path"], record["error"] is not None, line


def _json_value(value: Any) -> Any:
    """Return floats as Python floats that print as briefly as they themselves would."""
    if isinstance(value, np.ndarray) and value.ndim:
        return [_json_value(v) for v in value]
    return float(shortest(value)) if np.isfinite(value) else None  # JSON has no nan
