# SPDX-License-Identifier: Apache-2.0
"""Which column of a dataset holds images, and the images in its cells."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from fiqa_fast.errors import ImageError
from fiqa_fast.gallery.errors import InputError
from fiqa_fast.gallery.sources.container import check_size
from fiqa_fast.gallery.sources.table_rows import IMAGE_NAMES
from fiqa_fast.gallery.text import brief
from fiqa_fast.images import Fitted, check_array
from fiqa_fast.reading import Reading

__all__ = ["ERROR", "Reader", "find_column", "readers"]

Reader = Callable[[], Fitted]

_PATH_NAMES = ("path", "image_path", "file_path", "file", "file_name", "filename")
_WANTED = (
    "encoded images (binary), structs of 'bytes' and 'path', paths (string) or RGB arrays "
    "uint8 [H, W, 3]"
)
# In a struct beside 'bytes': why there are none.
ERROR = "error"


def find_column(schema: pa.Schema, column: str | None = None) -> str:
    """Return the column of images: the one named, or the one to be found by name and type.

    Images come before paths, and known names before others. Raises
    :class:`fiqa_fast.gallery.InputError` where the column is missing, of another type, or where
    there is no telling which one is meant.
    """
    kinds = {field.name: _kind(field.type) for field in schema}
    if column is not None:
        if column not in kinds:
            raise InputError(f"wanted the column {column!r}, got only {_listed(kinds)}")
        if not kinds[column] and not pa.types.is_null(schema.field(column).type):
            kind = brief(schema.field(column).type)
            raise InputError(f"column {column!r}: wanted {_WANTED}, got {kind}")
        return column
    images = [name for name, kind in kinds.items() if kind == "image"]
    paths = [name for name, kind in kinds.items() if kind == "path"]
    # In one block of many, nothing may tell the type of a column that others fill.
    empty = [field.name for field in schema if pa.types.is_null(field.type)]
    named = [name for name in IMAGE_NAMES if name in images or name in empty]
    named = named or (images if len(images) == 1 else [])
    if not named and not images:
        named = [name for name in (*IMAGE_NAMES, *_PATH_NAMES) if name in paths]
    if not named:
        raise InputError(
            f"wanted a column of {_WANTED}; got {_listed(kinds)}: name one with column="
        )
    return named[0]


def _listed(names: Any) -> str:
    return brief(", ".join(names), 200) or "no column"


def _kind(kind: pa.DataType) -> str:
    """Return image, path or nothing."""
    types = pa.types
    if types.is_struct(kind):
        fields = {kind.field(i).name: kind.field(i).type for i in range(kind.num_fields)}
        data = fields.get("bytes")
        return "image" if data and (_is_bytes(data) or pa.types.is_null(data)) else ""
    if types.is_string(kind) or types.is_large_string(kind):
        return "path"
    return "image" if _is_bytes(kind) or _is_tensor(kind) else ""


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_tensor(kind: pa.DataType) -> bool:
    """Ray has several types for arrays of one shape and of several, and pyarrow has one."""
    return isinstance(kind, pa.BaseExtensionType) and "tensor" in kind.extension_name


def readers(column: pa.ChunkedArray, reading: Reading, root: str) -> Iterator[Reader]:
    """Yield, for each cell, what returns its planes as ``reading`` has them.

    Relative paths start at ``root``. The returned functions raise
    :class:`fiqa_fast.ImageError`, and may be called from any thread.
    """
    kind = column.type
    if pa.types.is_struct(kind):
        read: Callable[[Any, Reading, str], Fitted] = _from_struct
    elif _is_bytes(kind) or pa.types.is_null(kind):
        read = _from_bytes
    elif _is_tensor(kind):
        read = _from_array
    else:
        read = _from_path
    for cell in column:
        yield partial(read, cell, reading, root)


def _from_bytes(cell: Any, reading: Reading, _: str) -> Fitted:
    if not cell.is_valid:
        raise ImageError("wanted an encoded image, got nothing")
    buffer = cell.as_buffer()
    check_size(len(buffer))
    return reading(buffer.to_pybytes())


def _from_struct(cell: Any, reading: Reading, root: str) -> Fitted:
    """The layout of Hugging Face's datasets: bytes, or where there are none, a path to them."""
    if not cell.is_valid:
        return _from_bytes(cell, reading, root)
    names = [field.name for field in cell.type]
    if ERROR in names and cell[ERROR].is_valid:
        raise ImageError(cell[ERROR].as_py())
    if not cell["bytes"].is_valid and "path" in names and cell["path"].is_valid:
        return _from_path(cell["path"], reading, root)
    return _from_bytes(cell["bytes"], reading, root)


def _from_path(cell: Any, reading: Reading, root: str) -> Fitted:
    if not cell.is_valid:
        raise ImageError("wanted the path of an image, got nothing")
    return reading(os.path.join(root, os.fsdecode(cell.as_py())))


def _from_array(cell: Any, reading: Reading, _: str) -> Fitted:
    if not cell.is_valid:
        raise ImageError("wanted an array, got nothing")
    value = cell.as_py()
    return reading.fit(check_array(value if isinstance(value, np.ndarray) else cell.to_numpy()))
