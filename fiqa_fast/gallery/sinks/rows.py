# SPDX-License-Identifier: Apache-2.0
"""Rows of a table, between the scorer and whatever writes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fiqa_fast.gallery.errors import OutputError

__all__ = ["Floats", "Rows"]

Floats = npt.NDArray[np.floating[Any]]  # float32; embeddings and maps may be float16


@dataclass
class Rows:
    """Consecutive rows of the table. Where ``errors[i]`` is a text, row i has no values."""

    keys: list[str]
    errors: list[str | None]
    score: Floats  # [n] float32; ignored where there is an error
    columns: dict[str, Floats] = field(default_factory=dict)  # name -> [n, ...]

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.keys)

    @property
    def failed(self) -> npt.NDArray[np.bool_]:
        """Which rows have an error instead of values."""
        return np.array([error is not None for error in self.errors], dtype=bool)

    @property
    def nbytes(self) -> int:
        """Return about how much memory the rows take."""
        values = self.score.nbytes + sum(column.nbytes for column in self.columns.values())
        return values + 100 * len(self) + sum(map(len, self.keys))

    def take(self, indices: slice | npt.NDArray[np.integer[Any]]) -> Rows:
        """Return some of the rows."""
        chosen = range(len(self))[indices] if isinstance(indices, slice) else indices.tolist()
        return Rows(
            [self.keys[i] for i in chosen],
            [self.errors[i] for i in chosen],
            self.score[indices],
            {name: column[indices] for name, column in self.columns.items()},
        )

    @staticmethod
    def concatenate(parts: Sequence[Rows]) -> Rows:
        """Return the rows of all parts, which have the same columns of the same shapes.

        The shapes of a part without rows may be others.
        """
        parts = [part for part in parts if len(part)] or parts[:1]
        return Rows(
            [key for part in parts for key in part.keys],
            [error for part in parts for error in part.errors],
            np.concatenate([part.score for part in parts] or [np.zeros(0, np.float32)]),
            {
                name: np.concatenate([part.columns[name] for part in parts])
                for name in (parts[0].columns if parts else ())
            },
        )

    def narrowed(self, dtype: npt.DTypeLike) -> Rows:
        """Return the rows with columns of ``dtype``.

        Raises :class:`OutputError` for a value too large for it: infinity would be a wrong one.
        """
        columns = {}
        for name, column in self.columns.items():
            with np.errstate(over="ignore"):
                columns[name] = column.astype(dtype, copy=False)
            if not np.array_equal(np.isfinite(columns[name]), np.isfinite(column)):
                raise OutputError(
                    f"{name} holds values beyond float16's; write them as float32 "
                    "(--vectors-dtype float32)"
                )
        return Rows(self.keys, self.errors, self.score, columns)
