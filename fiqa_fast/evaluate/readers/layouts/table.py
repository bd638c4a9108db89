# SPDX-License-Identifier: Apache-2.0
"""A table with the columns ``path`` and ``identity``, and scores in any others."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fiqa_fast.evaluate.readers.files import StrPath, stem_of
from fiqa_fast.evaluate.readers.layouts.dataset import Dataset, code_identities
from fiqa_fast.evaluate.readers.layouts.images import find_images
from fiqa_fast.evaluate.readers.tables import Table, read_table
from fiqa_fast.gallery.sources import printable

__all__ = ["open_table"]


def open_table(
    path: StrPath,
    root: StrPath | None = None,
    columns: Sequence[str] | None = None,
    missing: str = "refuse",
) -> Dataset:
    """Open a CSV, Parquet or JSON lines table.

    ``columns`` names the scores; by default every column with a number that is not whole. Where a
    cell is empty, ``missing`` says what becomes of it, as in ``read_scores``.
    """
    table = read_table(path)
    paths = table.paths()
    identity = code_identities(table.texts("identity"), table.file)
    names = table.score_columns() if columns is None else columns
    return Dataset(
        printable(stem_of(path)),
        paths,
        identity=identity,
        scores={name: _scores(table, name, missing) for name in names},
        items=find_images(paths, os.path.dirname(os.fspath(path)), root),
    )


def _scores(table: Table, name: str, missing: str) -> npt.NDArray[np.float64]:
    values = table.numbers(name, gaps=missing == "worst")
    values[np.isnan(values)] = -np.inf  # discarded first
    return values
