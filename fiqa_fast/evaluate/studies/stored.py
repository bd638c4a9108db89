# SPDX-License-Identifier: Apache-2.0
"""Values of many images computed part by part, each part a file, so that a run can go on.

A folder holds ``settings.json``, which says what the values are, and parts ``<first>.npy`` of
``PART`` images each. A part that is there is not computed again; a folder with other settings is
refused.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fiqa_fast.gallery.atomic import write_atomically
from fiqa_fast.gallery.errors import OutputError

__all__ = ["PART", "StoredValues"]

PART = 4096  # images per file: minutes of work at most, few files


class StoredValues:
    """A folder of parts for ``count`` images.

    Raises:
        OutputError: the folder holds values of other settings, or cannot be written.
    """

    def __init__(self, folder: Path, count: int, settings: Mapping[str, Any]) -> None:
        self._folder, self._count = folder, count
        text = json.dumps({"images": count, **settings}, indent=1, sort_keys=True, default=str)
        there = folder / "settings.json"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if there.exists():
                if there.read_bytes() != text.encode():
                    raise OutputError(
                        f"{folder}: holds values of other images or settings, wanted a new folder "
                        "or the same command; remove it, or write elsewhere with -o"
                    )
            elif any(folder.glob("*.npy")):
                raise OutputError(f"{folder}: holds values without settings.json; remove it")
            else:
                write_atomically(there, text.encode())
        except OSError as error:
            raise OutputError(f"{folder}: {error.strerror}") from error

    def missing(self) -> Iterator[tuple[int, int]]:
        """The parts still to be computed, as (first, behind the last)."""
        for first in range(0, self._count, PART):
            if not os.path.exists(self._path(first)):
                yield first, min(first + PART, self._count)

    def fill(self, compute: Callable[[int, int], npt.NDArray[np.float32]]) -> None:
        """Compute and store what is missing, with values [last - first, columns] of each part."""
        for first, last in self.missing():
            values = compute(first, last)
            assert len(values) == last - first
            content = io.BytesIO()
            np.save(content, values.astype(np.float32))
            write_atomically(self._path(first), content.getvalue())

    def load(self) -> npt.NDArray[np.float64]:
        """All values [count, columns]; raises :class:`OutputError` for a damaged part."""
        parts: list[npt.NDArray[np.float32]] = []
        for first in range(0, self._count, PART):
            path = self._path(first)
            try:
                with open(path, "rb") as file:
                    part = np.lib.format.read_array(file, allow_pickle=False)
            except (OSError, ValueError, MemoryError) as error:
                reason = " ".join(str(error).split())
                raise OutputError(f"{path}: damaged ({reason}); remove it and go on") from error
            width = part.shape[1:] if not parts else parts[0].shape[1:]
            wanted = (min(PART, self._count - first), *width)
            if part.dtype != np.float32 or part.ndim != 2 or part.shape != wanted:
                raise OutputError(f"{path}: not a part of these values; remove it and go on")
            parts.append(part)
        return np.concatenate(parts).astype(np.float64)

    def _path(self, first: int) -> Path:
        return self._folder / f"{first:09d}.npy"
