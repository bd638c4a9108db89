# SPDX-License-Identifier: Apache-2.0
"""Rows as Arrow tables and back: score float32, other outputs lists, nulls in error rows.

The shape of one image's values stands in the metadata of each list field (``shape``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fiqa_fast.gallery.sinks.rows import Floats, Rows

__all__ = ["from_arrow", "to_arrow"]


def to_arrow(rows: Rows, metadata: Mapping[str, str] | None = None) -> Any:
    """Return rows as a ``pyarrow.Table`` with the columns path, score, error and the others."""
    import pyarrow as pa  # a second to import: only where used

    failed = rows.failed
    fields = [
        pa.field("path", pa.string(), nullable=False),
        pa.field("score", pa.float32()),
        pa.field("error", pa.string()),
    ]
    arrays = [
        pa.array(rows.keys, pa.string()),
        pa.array(rows.score, pa.float32(), mask=failed),
        pa.array(rows.errors, pa.string()),
    ]
    for name, values in rows.columns.items():
        shape = json.dumps(list(values.shape[1:]))
        array = _lists(values, failed)
        fields.append(pa.field(name, array.type, metadata={"shape": shape}))
        arrays.append(array)
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields, metadata=metadata))


def _lists(values: Floats, missing: npt.NDArray[np.bool_]) -> Any:
    """Return [n, ...] as n lists, null where missing."""
    import pyarrow as pa

    width = int(np.prod(values.shape[1:]))
    flat = pa.array(values[~missing].reshape(-1))
    ends = np.cumsum(np.where(missing, 0, width))
    offsets = pa.array(np.concatenate([[0], ends]).astype(np.int32))
    return pa.ListArray.from_arrays(offsets, flat, mask=pa.array(missing))


def from_arrow(table: Any) -> Rows:
    """Return the rows of a table that :func:`to_arrow` made.

    Raises ``ValueError`` (or what pyarrow raises, mostly a subclass) for another one.
    """
    errors = table.column("error").to_pylist()
    missing = np.array([error is not None for error in errors], dtype=bool)
    score = table.column("score").to_numpy().astype(np.float32, copy=False)
    columns = {}
    for field in table.schema:
        if field.name in ("path", "score", "error", "position"):
            continue
        shape = json.loads((field.metadata or {})[b"shape"])
        flat = table.column(field.name).combine_chunks().flatten().to_numpy()
        values = np.full((len(missing), *shape), np.nan, flat.dtype)
        values[~missing] = flat.reshape(np.count_nonzero(~missing), *shape)
        columns[field.name] = values
    return Rows(table.column("path").to_pylist(), errors, score, columns)
