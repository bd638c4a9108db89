# SPDX-License-Identifier: Apache-2.0
"""The actor: one scorer, and tables with images in, tables with scores out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from fiqa_fast.errors import ImageError
from fiqa_fast.gallery.errors import InputError
from fiqa_fast.images import Pixels, describe, fit
from fiqa_fast.ray.columns import find_column, readers
from fiqa_fast.ray.installed import import_ray

if TYPE_CHECKING:
    from fiqa_fast.scorer import Scorer

__all__ = ["Recipe", "ScoreActor"]

Planes = npt.NDArray[np.uint8]  # [3, size, size]


@dataclass(frozen=True)
class Recipe:
    """How to make a scorer on any machine of the cluster: a scorer itself cannot be sent."""

    model: Any  # reference to a FaceViT in the object store, which every machine can read
    options: Mapping[str, Any]  # of Scorer
    threads: int  # for decoding, and for the model
    expected: Mapping[str, Any] | None = None  # what describe() has to say, if that is known

    def scorer(self) -> Scorer:
        """Make the scorer, and give torch its threads.

        Raises :class:`fiqa_fast.gallery.InputError` where it is not the scorer expected: another
        device or arithmetic would give other values in some rows of one table.
        """
        from fiqa_fast.scorer import Scorer

        torch.set_num_threads(self.threads)
        scorer = Scorer(import_ray().get(self.model), **self.options)
        facts = scorer.describe()
        for name, wanted in (self.expected or facts).items():
            if facts[name] != wanted:
                raise InputError(
                    f"the machines of this cluster differ: wanted {name} {wanted}, got "
                    f"{facts[name]} on this one; name it (dtype=, device=; --dtype, --device)"
                )
        return scorer


class ScoreActor:
    """Called by Ray Data with pyarrow tables of a batch each, from one thread or several."""

    def __init__(self, recipe: Recipe, column: str | None, root: str, keep_image: bool) -> None:
        self._scorer = recipe.scorer()
        self._size = self._scorer.config.img_size
        self._outputs = [name for name in self._scorer.outputs if name != "score"]
        self._column, self._root, self._keep_image = column, root, keep_image
        self._decoders = ThreadPoolExecutor(recipe.threads, "fiqa_fast-decode")
        # One call scores while another decodes; two at once would share the same cores.
        self._turn = threading.Lock()
        # Of each output of one image, for batches in which no image can be read.
        blank = self._score(np.zeros((1, 3, self._size, self._size), np.uint8))
        self._shapes = {name: blank[name].shape[1:] for name in self._outputs}

    def __call__(self, table: pa.Table) -> pa.Table:
        """Add the columns of results to a table of images."""
        check_names(table.schema, self._outputs)
        column = find_column(table.schema, self._column)
        cells = readers(table.column(column), self._root)
        loaded = list(self._decoders.map(self._load, cells))
        score, error, vectors = self._results(loaded)
        missing = np.array([text is not None for text in error], dtype=bool)
        if not self._keep_image:
            table = table.drop_columns([column])
        table = table.append_column("score", pa.array(score, pa.float32(), mask=missing))
        table = table.append_column("error", pa.array(error, pa.string()))
        from ray.data.extensions import ArrowTensorArray

        for name, values in vectors.items():
            table = table.append_column(name, ArrowTensorArray.from_numpy(values))
        return table

    def _load(self, read: Callable[[], Pixels]) -> Planes | str:
        """Return the image at the model's size, or why there is none."""
        try:
            return fit(read(), self._size).planes
        except ImageError as error:
            return str(error)
        except Exception as error:  # what a storage raises concerns this image alone
            return describe(error)

    def _score(self, planes: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.float32]]:
        with self._turn:
            result = self._scorer(torch.from_numpy(planes))
        return {name: getattr(result, name).numpy() for name in ("score", *self._outputs)}

    def _results(
        self, loaded: list[Planes | str]
    ) -> tuple[npt.NDArray[np.float32], list[str | None], dict[str, npt.NDArray[np.float32]]]:
        """Return scores, errors and the other outputs of all rows; NaN where there is an error."""
        n = len(loaded)
        error = [item if isinstance(item, str) else None for item in loaded]
        score = np.full(n, np.nan, np.float32)
        vectors = {name: np.full((n, *s), np.nan, np.float32) for name, s in self._shapes.items()}
        planes = [item for item in loaded if not isinstance(item, str)]
        if planes:
            values = self._score(np.stack(planes))
            good = np.array([text is None for text in error])
            score[good] = values["score"]
            for name, column in vectors.items():
                column[good] = values[name]
            for i in np.flatnonzero(good & ~np.isfinite(score)):
                error[i] = f"wanted a finite score, got {score[i]}; try --dtype float32"
        return score, error, vectors


def check_names(schema: pa.Schema, outputs: list[str]) -> None:
    """Refuse a table that has a column of the name of a result already."""
    for name in ("score", "error", *outputs):
        if name in schema.names:
            raise InputError(
                f"the dataset has a column {name!r} already: rename it (ds.rename_columns) or "
                "drop it (ds.drop_columns)"
            )
