# SPDX-License-Identifier: Apache-2.0
"""Values of many images computed part by part, each part a file, so that a run can go on.

A folder holds ``settings.json``, which says what the values are, and parts ``<first>.npy`` of
``PART`` images each. A part that is there is not computed again; a folder with other settings is
refused.
"""

from __future__ import annotations

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
        try:
            folder.mkdir(parents=True, exist_ok=True)
            there = folder / "settings.json"
            if there.exists():
                if there.read_text() != text:
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

    def fill(
        self, compute: Callable[[int, int], npt.NDArray[np.float32]]
    ) -> npt.NDArray[np.float64]:
        """Compute what is missing, and return all values [count, columns]."""
        for first, last in self.missing():
            values = compute(first, last)
            assert len(values) == last - first
            temporary = self._folder / "part.tmp.npy"
            np.save(temporary, values.astype(np.float32))
            os.replace(temporary, self._path(first))
        return self.load()

    def load(self) -> npt.NDArray[np.float64]:
        """All values [count, columns]; raises :class:`OutputError` for a damaged part."""
        parts = []
        for first in range(0, self._count, PART):
            path = self._path(first)
            try:
                part = np.load(path, allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:
                raise OutputError(f"{path}: not readable ({error}); remove it and go on") from None
            if part.ndim != 2 or len(part) != min(PART, self._count - first):
                raise OutputError(f"{path}: not a part of these values; remove it and go on")
            parts.append(part.astype(np.float64))
        return np.concatenate(parts)

    def _path(self, first: int) -> Path:
        return self._folder / f"{first:09d}.npy"
