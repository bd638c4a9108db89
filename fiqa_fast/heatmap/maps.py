# SPDX-License-Identifier: Apache-2.0
"""The first pass: every image's score and maps, for the second to draw from."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from fiqa_fast.gallery.errors import OutputError
from fiqa_fast.gallery.sinks import Rows
from fiqa_fast.images import describe

__all__ = ["MapTable"]

Floats = npt.NDArray[np.float32]


class MapTable:
    """A sink that keeps the maps of one output, and scores, in the order of the gallery.

    Maps go to a temporary file without a name: the system keeps it in memory while there is room,
    and galleries of millions do not fill it. Images with an error have a row without values.

    Attributes:
        keys: of all images.
        errors: of all images, None where there is none.
        score: [n], NaN where there is an error.
        tiles: [n, T], the score of each map, where there are several per image; else None.
    """

    def __init__(
        self,
        output: str,
        tile_scores: str | None = None,
        on_error: Callable[[str, str], None] | None = None,
    ) -> None:
        """Keep the maps ``output`` and the scores ``tile_scores`` of each; ``on_error(key, text)``
        hears of every image that is left out."""
        self._on_error = on_error
        self.keys: list[str] = []
        self.errors: list[str | None] = []
        self.score: Floats = np.empty(0, np.float32)
        self.tiles: Floats | None = None
        self._output, self._tile_scores = output, tile_scores
        self._file = tempfile.TemporaryFile(prefix="fiqa-fast-")  # noqa: SIM115
        self._shape: tuple[int, ...] = ()
        self._scores: list[Floats] = []
        self._parts: list[Floats] = []
        self._good: npt.NDArray[np.intp] = np.empty(0, np.intp)
        self._rows: npt.NDArray[np.intp] = np.empty(0, np.intp)
        self._maps: Any = None

    def write(self, rows: Rows) -> None:
        """Append rows."""
        maps = rows.columns[self._output]
        errors = list(rows.errors)
        for i, error in enumerate(errors):
            if error is None and not np.isfinite(maps[i]).all():
                errors[i] = "wanted a finite map; try --dtype float32"
        for key, error in zip(rows.keys, errors, strict=True):
            if error is not None:
                self._tell(key, error)
        good = np.array([error is None for error in errors], dtype=bool)
        self._shape = maps.shape[1:]
        self._keep(np.ascontiguousarray(maps[good], np.float32).tobytes())
        self.keys += rows.keys
        self.errors += errors
        self._scores.append(np.where(good, rows.score, np.float32(np.nan)))
        if self._tile_scores is not None:
            self._parts.append(rows.columns[self._tile_scores])

    def _keep(self, data: bytes) -> None:
        try:
            self._file.write(data)
            self._file.flush()
        except OSError as error:
            raise OutputError(
                f"{tempfile.gettempdir()}: maps cannot be kept here until they are drawn "
                f"({describe(error)}); name a folder with room in TMPDIR"
            ) from error

    def commit(self) -> None:
        """Open the maps for reading."""
        self.score = np.concatenate([self.score, *self._scores])
        if self._parts:
            self.tiles = np.concatenate(self._parts)
        self._good = np.flatnonzero([error is None for error in self.errors])
        self._rows = np.full(len(self.keys), -1, np.intp)
        self._rows[self._good] = np.arange(len(self._good))
        if len(self._good):
            shape = (len(self._good), *self._shape)
            self._maps = np.memmap(self._file, np.float32, "r", shape=shape)
        self._file.close()  # the mapping keeps what it needs

    def abort(self) -> None:
        """Let the maps go."""
        with suppress(OSError):  # closing flushes, which fails again on a full disk
            self._file.close()

    def fail(self, number: int, error: str) -> None:
        """Note that an image that has maps could not be read again."""
        self.errors[number] = error
        self._tell(self.keys[number], error)

    def _tell(self, key: str, error: str) -> None:
        if self._on_error is not None:
            self._on_error(key, error)

    @property
    def failed(self) -> int:
        """Images that were left out."""
        return sum(error is not None for error in self.errors)

    @property
    def good(self) -> npt.NDArray[np.intp]:
        """Numbers of the images that have maps, in order."""
        return self._good

    @property
    def maps(self) -> Floats:
        """Maps of the good images: [n, gh, gw], or [n, T, gh, gw]."""
        maps: Floats = self._maps
        return maps

    def of(self, number: int) -> Floats:
        """Maps of image ``number``, [T, gh, gw], T being 1 where there is one."""
        maps: Floats = np.array(self._maps[self._rows[number]])
        return maps.reshape(-1, *maps.shape[-2:])

    def best_first(self) -> npt.NDArray[np.intp]:
        """Numbers of the good images by falling score; equal scores in the gallery's order."""
        return self._good[np.argsort(-self.score[self._good], kind="stable")]
