# SPDX-License-Identifier: Apache-2.0
"""The files that hold embeddings, each read into rows in the order of the images; nan: none."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from fiqa_fast.errors import ImageError
from fiqa_fast.evaluate.readers.files import StrPath, brief
from fiqa_fast.evaluate.readers.keys import MISSING, distinct, match_each
from fiqa_fast.gallery.errors import InputError
from fiqa_fast.gallery.sources import open_sources, printable

__all__ = ["READERS", "Embeddings", "read_folder"]

Embeddings = npt.NDArray[np.float32] | npt.NDArray[np.float64]

_ROWS = 8192  # read and converted at a time
_MAX_VECTOR_BYTES = 2**24  # one image's file; what is larger is no vector


def read_folder(path: StrPath, paths: Sequence[str]) -> Embeddings:
    """Read one ``<name>.npy`` per image."""
    where = printable(os.fspath(path))
    items = [item for source in open_sources([path], ext=["npy"]) for item in source]
    found = match_each(paths, [item.key for item in items], where)
    values: Embeddings | None = None
    for i in np.flatnonzero(found != MISSING):
        item = items[found[i]]
        name = f"{where}/{item.key}"
        with _readable(name), item.open() as file:
            vector = _read_vector(file, name)
        if values is None:
            values = _empty(len(paths), len(vector), vector.dtype, name)
        if len(vector) != values.shape[1]:
            wanted = f"{values.shape[1]} features as in the files before"
            raise InputError(f"{name}: wanted {wanted}, got {len(vector)}")
        if vector.dtype.itemsize > values.dtype.itemsize:
            values = values.astype(np.float64)
        values[i] = vector
    if values is None:
        raise InputError(
            f"{where}: none of the {len(paths)} images has an embedding here, "
            f"{brief(paths[0])!r} for one"
        )
    return values


def _read_vector(file: BinaryIO, name: str) -> npt.NDArray[Any]:
    if file.seek(0, 2) > _MAX_VECTOR_BYTES:
        raise InputError(f"{name}: wanted one vector, got more than {_MAX_VECTOR_BYTES} bytes")
    file.seek(0)
    shape, dtype = _header(file)
    _result_dtype(dtype, name)
    length = math.prod(shape)
    if not shape or not 0 < length == max(shape) <= _MAX_VECTOR_BYTES // dtype.itemsize:
        raise InputError(f"{name}: wanted one vector, got {list(shape)}")
    file.seek(0)
    return np.asarray(np.load(file, allow_pickle=False)).reshape(-1)


def _read_npz(file: BinaryIO, where: str, paths: Sequence[str]) -> Embeddings:
    with _readable(where), np.load(file, allow_pickle=False) as archive:
        name = next((name for name in ("emb", "embeddings") if name in archive), None)
        if name is None or "paths" not in archive:
            got = brief(", ".join(archive.files))
            raise InputError(f"{where}: wanted the arrays paths and emb, got {got or 'none'}")
        texts, kind = _declared(archive, "paths", where)
        shape, _ = _declared(archive, name, where)
        _check_matrix(shape, where)
        if kind.kind != "U" or texts != shape[:1]:
            raise InputError(
                f"{where}: wanted a text in paths for each of {shape[0]} embeddings, got "
                f"{kind} {list(texts)}"
            )
        keys = [printable(key) for key in archive["paths"].tolist()]
        records = distinct(keys)
        found = match_each(paths, records.keys, where)
        stored = archive[name]
    again = np.flatnonzero(records.first[records.number] != np.arange(len(keys)))
    for row in again:
        if not np.array_equal(stored[row], stored[records.first[records.number[row]]]):
            raise InputError(f"{where}: {brief(keys[row])!r} has two embeddings")
    return _take(stored, np.where(found == MISSING, MISSING, records.first[found]), where)


def _declared(archive: Any, name: str, where: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return shape and dtype of an array in an archive before room is made for it."""
    info = archive.zip.getinfo(f"{name}.npy")
    with archive.zip.open(info) as file:
        shape, dtype = _header(file)
    if dtype.hasobject:
        raise InputError(f"{where}: {name} holds Python objects, which are not read")
    if math.prod(shape) * dtype.itemsize > info.file_size:
        raise InputError(f"{where}: {name} is damaged or cut off")
    return shape, dtype


def _read_npy(file: BinaryIO, where: str, paths: Sequence[str]) -> Embeddings:
    with _readable(where):
        stored = np.load(file.name, mmap_mode="r", allow_pickle=False)
    _check_matrix(stored.shape, where)
    if len(stored) != len(paths):
        raise InputError(
            f"{where}: wanted a row for each of {len(paths)} images, in their order, got "
            f"{len(stored)} rows"
        )
    return _take(stored, np.arange(len(paths)), where)


def _read_parquet(file: BinaryIO, where: str, paths: Sequence[str]) -> Embeddings:
    import pyarrow
    import pyarrow.compute as pc
    import pyarrow.parquet

    with _readable(where):
        parquet = pyarrow.parquet.ParquetFile(file)
        schema = parquet.schema_arrow
        if "path" not in schema.names or "embedding" not in schema.names:
            raise InputError(
                f"{where}: wanted the columns path and embedding, got "
                f"{brief(', '.join(schema.names))}"
            )
        kind = schema.field("embedding").type
        if not hasattr(kind, "value_type") or not pyarrow.types.is_floating(kind.value_type):
            raise InputError(f"{where}: wanted lists of floats as embedding, got {brief(kind)}")
        cells = parquet.read(columns=["path"]).column(0).to_pylist()
        keys = ["" if cell is None else printable(str(cell)) for cell in cells]
        records = distinct(keys)
        found = match_each(paths, records.keys, where)
        owner = np.full(len(records.keys), MISSING, np.int64)
        owner[found[found != MISSING]] = np.flatnonzero(found != MISSING)
        targets = owner[records.number]
        values: Embeddings | None = None
        row = 0
        for batch in parquet.iter_batches(_ROWS, columns=["embedding"]):
            column = batch.column(0)
            rows = np.arange(row, row + len(column))
            row += len(column)
            wanted = (targets[rows] != MISSING) & np.asarray(column.is_valid())
            column, rows = column.filter(pyarrow.array(wanted)), rows[wanted]
            if not len(column):
                continue
            lengths = np.asarray(pc.list_value_length(column))
            width = int(lengths[0]) if values is None else values.shape[1]
            if (lengths != width).any() or not width:
                other = np.flatnonzero((lengths != width) | (lengths == 0))[0]
                raise InputError(
                    f"{where}, row {rows[other] + 1}: wanted {width or 'some'} features as in "
                    f"the rows before, got {lengths[other]}"
                )
            vectors = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
            if values is None:
                values = _empty(len(paths), width, vectors.dtype, where)
            _place(values, vectors, rows, targets, records.first[records.number], keys, where)
    if values is None:
        raise InputError(
            f"{where}: none of the {len(paths)} images has an embedding here, "
            f"{brief(paths[0])!r} for one"
        )
    return values


def _place(
    values: Embeddings,
    vectors: npt.NDArray[Any],
    rows: npt.NDArray[np.int64],
    targets: npt.NDArray[np.int64],
    first: npt.NDArray[np.int64],
    keys: Sequence[str],
    where: str,
) -> None:
    """Put the vectors of ``rows`` where they belong; what a repeated row says must be the same."""
    once = first[rows] == rows
    values[targets[rows[once]]] = vectors[once]
    for i in np.flatnonzero(~once):
        if not np.array_equal(values[targets[rows[i]]], vectors[i]):
            raise InputError(f"{where}: {brief(keys[rows[i]])!r} has two embeddings")


@contextmanager
def _readable(where: str) -> Iterator[None]:
    """Turn what numpy, zipfile and pyarrow raise about a damaged file into one line."""
    import zlib

    import pyarrow

    try:
        yield
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{where}: {error.strerror or brief(error, 200)}") from error
    except (
        *(ValueError, TypeError, KeyError, EOFError, OverflowError, MemoryError),
        *(SyntaxError, RuntimeError, zipfile.BadZipFile, zlib.error, pyarrow.ArrowException),
    ) as error:
        reason = str(error) if isinstance(error, ImageError) else f"damaged: {error}"
        raise InputError(f"{where}: {brief(reason, 200)}") from error


def _header(file: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    read = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, _, dtype = read(file)
    return shape, dtype


def _result_dtype(stored: np.dtype[Any], where: str) -> np.dtype[Any]:
    if stored.kind != "f" or stored.itemsize > 8:
        raise InputError(f"{where}: wanted embeddings in float16, 32 or 64, got {stored}")
    return np.dtype(np.float64 if stored.itemsize == 8 else np.float32)


def _check_matrix(shape: Sequence[int], where: str) -> None:
    if len(shape) != 2 or 0 in shape:
        raise InputError(f"{where}: wanted embeddings [images, features], got {list(shape)}")


def _empty(n: int, width: int, stored: np.dtype[Any], where: str) -> Embeddings:
    values: Embeddings = np.full((n, width), np.nan, _result_dtype(stored, where))
    return values


def _take(stored: npt.NDArray[Any], found: npt.NDArray[np.int64], where: str) -> Embeddings:
    """Return the rows found, in the precision to compute in."""
    values = _empty(len(found), stored.shape[1], stored.dtype, where)
    for start in range(0, len(found), _ROWS):
        rows = found[start : start + _ROWS]
        there = rows != MISSING
        values[start : start + len(rows)][there] = stored[rows[there]]
    return values


READERS: dict[str, Callable[[BinaryIO, str, Sequence[str]], Embeddings]] = {
    ".npz": _read_npz,
    ".npy": _read_npy,
    ".parquet": _read_parquet,
}
