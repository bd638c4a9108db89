# SPDX-License-Identifier: Apache-2.0
"""Embeddings and maps beside a table: NumPy arrays whose row i belongs to row i of the table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from fiqa_fast.gallery.errors import OutputError
from fiqa_fast.gallery.sinks.rows import Floats

__all__ = ["ArrayFile", "read_array"]

_HEADER = 128  # bytes: room for the header of any array here, as numpy pads it
_READ_BYTES = 2**23


class ArrayFile:
    """A ``.npy`` file written row by row; rows without values hold nan."""

    def __init__(self, file: BinaryIO) -> None:
        """Write into ``file``, which can seek and stays open."""
        self._file = file
        self._rows = 0
        self._shape: tuple[int, ...] = ()
        self._dtype: np.dtype[Any] = np.dtype(np.float32)
        file.write(bytes(_HEADER))

    def write(self, values: Floats, failed: npt.NDArray[np.bool_]) -> None:
        """Append the values [n, ...] of n rows."""
        self._shape, self._dtype = values.shape[1:], values.dtype
        self._rows += len(values)
        if failed.any():
            values = np.where(
                failed.reshape(-1, *[1] * (values.ndim - 1)), values.dtype.type(np.nan), values
            )
        self._file.write(np.ascontiguousarray(values).tobytes())

    def finish(self) -> None:
        """Write the header, now that the number of rows is known."""
        shape = (self._rows, *self._shape)
        text = f"{{'descr': '{self._dtype.str}', 'fortran_order': False, 'shape': {shape}, }}"
        self._file.seek(0)
        self._file.write(b"\x93NUMPY\x01\x00" + (_HEADER - 10).to_bytes(2, "little"))
        self._file.write(text.encode().ljust(_HEADER - 11) + b"\n")
        self._file.seek(0, 2)


def read_array(path: str, rows: int) -> Iterator[Floats]:
    """Yield the rows of an array, in order, some at a time.

    Raises :class:`OutputError` where it is missing, no array, or has not ``rows`` rows: then the
    table beside it was edited, and nothing says which row belongs to which.
    """
    try:
        with open(path, "rb") as file:
            if np.lib.format.read_magic(file) != (1, 0):
                raise ValueError("another version")
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
            if fortran or dtype not in (np.float32, np.float16) or not shape or shape[0] != rows:
                raise ValueError(f"wanted floats of {rows} rows, got {dtype} {list(shape)}")
            width = int(np.prod(shape[1:], dtype=np.int64))
            step = max(1, _READ_BYTES // max(1, width * dtype.itemsize))
            for first in range(0, rows, step):
                count = min(step, rows - first)
                values = np.fromfile(file, dtype, count * width)
                if len(values) != count * width:
                    raise ValueError("it ends early")
                yield values.reshape(count, *shape[1:])
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise OutputError(f"{path}: not the array that stood beside the table ({reason})") from None
