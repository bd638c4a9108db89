# SPDX-License-Identifier: Apache-2.0
"""Reads quality scores: tables, and the papers' lines ``path score``."""

from __future__ import annotations

import math
import os
from array import array
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from fiqa_fast.evaluate.readers.files import StrPath, brief, open_text, stem_of
from fiqa_fast.evaluate.readers.keys import MISSING, Records, distinct, match_each
from fiqa_fast.evaluate.readers.tables import TABLES, Table, read_table
from fiqa_fast.gallery.errors import InputError
from fiqa_fast.gallery.sinks import text_key
from fiqa_fast.gallery.sources import printable

__all__ = ["WORST", "read_scores"]

WORST = -math.inf

Floats = npt.NDArray[np.float64]


def read_scores(
    path: StrPath,
    paths: Sequence[str],
    *,
    columns: Sequence[str] | None = None,
    missing: str = "refuse",
) -> dict[str, Floats]:
    """Read the scores of the images ``paths``, whatever else the file scores.

    Args:
        path: a CSV, Parquet or JSON lines table with a column ``path``, as ``fiqa-fast score``
            writes it, or, with any other suffix, lines ``path score`` (a path may hold spaces).
        paths: [n], keys of the images, matched as :func:`.keys.match` says.
        columns: which columns of a table; by default ``score``, if there is one, and every other
            column with a number that is not whole.
        missing: an image has no score where the file has no row for it, an error in its row, an
            empty cell or nan. ``"refuse"`` raises; ``"worst"`` gives it the score -inf, so that
            it is discarded first, as an operator would discard what cannot be assessed.

    Returns:
        float64 [n] by name: the column's, but the file's (without suffix) for ``score`` and for
        lines.

    Raises:
        InputError: one line, for whatever is wrong in the file; for missing scores under
            ``"refuse"``; and where none of the images has a score.
    """
    if missing not in ("refuse", "worst"):
        raise ValueError(f'missing must be "refuse" or "worst", got {missing!r}')
    where = printable(os.fspath(path))
    if os.path.splitext(where)[1].lower() in TABLES:
        table = read_table(path)
        keys = table.texts("path")
        at: Callable[[int], str] = table.at
        named = _columns(table, columns, printable(stem_of(path)))
    else:
        if columns is not None:
            raise InputError(f"{where}: --columns names a table's scores, and this is no table")
        keys, values, at = _read_lines(path, where)
        named = {printable(stem_of(path)): values}
        paths = [text_key(key) for key in paths]
    records = distinct(keys)
    found = match_each(paths, records.keys, where)
    scores = {}
    for name, values in named.items():
        chosen = _agreeing(records, values, keys, at)
        scores[name] = _aligned(chosen, found, paths, f"{where}, {name}", missing)
    return scores


def _columns(table: Table, columns: Sequence[str] | None, stem: str) -> dict[str, Floats]:
    if columns is None:
        columns = table.score_columns()
        if "score" in table.columns:
            columns = ["score", *(name for name in columns if name != "score")]
    if not columns:
        raise InputError(f"{table.file}: wanted a column of scores, got none with fractions")
    failed = np.zeros(len(table), bool)
    if "error" in table.columns:
        failed[:] = [cell is not None for cell in table.columns["error"]]
    scores = {}
    for column in columns:
        values = table.numbers(column, gaps=True)
        values[failed] = np.nan
        name = stem if column == "score" else column
        if name in scores:
            raise InputError(f"{table.file}: both the file and a column are called {brief(name)!r}")
        scores[name] = values
    return scores


def _read_lines(path: StrPath, where: str) -> tuple[list[str], Floats, Callable[[int], str]]:
    keys: list[str] = []
    values = array("d")
    lines = array("q")
    with open_text(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            key, *texts = line.rstrip().rsplit(None, 1)
            value = _number(texts[0]) if texts else None
            if value is None:
                raise InputError(
                    f"{where}, line {number}: wanted 'path score', got {brief(line)!r}; "
                    f"tables end in {', '.join(TABLES)}"
                )
            keys.append(key)
            values.append(value)
            lines.append(number)
    if not keys:
        raise InputError(f"{where}: wanted lines 'path score', got none")
    return keys, np.frombuffer(values, np.float64), lambda row: f"{where}, line {lines[row]}"


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return None if math.isinf(value) or "_" in text else value


def _agreeing(
    records: Records, values: Floats, keys: Sequence[str], at: Callable[[int], str]
) -> Floats:
    """Return one value per record; lists that name an image once per pair score it as often."""
    chosen = values[records.first]
    again = chosen[records.number]
    for row in np.flatnonzero((again != values) & ~(np.isnan(again) & np.isnan(values)))[:1]:
        raise InputError(
            f"{at(row)}: {brief(keys[row])!r} has two scores, {again[row]} and {values[row]}"
        )
    return chosen


def _aligned(
    values: Floats, found: npt.NDArray[np.int64], paths: Sequence[str], where: str, missing: str
) -> Floats:
    scores = np.where(found == MISSING, np.nan, values[found])
    gaps = np.flatnonzero(np.isnan(scores))
    if len(gaps) == len(scores):
        raise InputError(
            f"{where}: none of the {len(scores)} images has a score here, {brief(paths[0])!r} "
            "for one; do the paths name the same images?"
        )
    if len(gaps) and missing == "refuse":
        raise InputError(
            f"{where}: {len(gaps)} of {len(scores)} images have no score, "
            f"{brief(paths[gaps[0]])!r} for one; score them, or use --missing worst to "
            "discard them first"
        )
    scores[gaps] = WORST
    return scores
