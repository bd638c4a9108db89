# SPDX-License-Identifier: Apache-2.0
"""The actor: one scorer, and tables with images in, tables with scores out."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from fiqa_fast.errors import ImageError
from fiqa_fast.gallery.errors import InputError
from fiqa_fast.images import Fitted, describe
from fiqa_fast.ray.columns import Reader, find_column, readers
from fiqa_fast.ray.installed import import_ray
from fiqa_fast.reading import Reading

if TYPE_CHECKING:
    from fiqa_fast.scorer import Scorer

__all__ = ["RESIZED", "Recipe", "ScoreActor", "check_names"]

RESIZED = "resized"  # a column for the summary of a run


@dataclass(frozen=True)
class Recipe:
    """How to make a scorer on any machine of the cluster: a scorer itself cannot be sent."""

    model: Any  # reference to a FaceViT in the object store, which every machine can read
    options: Mapping[str, Any]  # of Scorer
    reading: Reading
    threads: int  # for the model
    decoders: int  # threads that decode
    expected: Mapping[str, Any] | None = None  # what describe() must not contradict

    def scorer(self) -> Scorer:
        """Make the scorer, and give torch its threads.

        Raises :class:`fiqa_fast.gallery.InputError` where it is not the scorer expected: another
        device or arithmetic would give other values in some rows of one table.
        """
        from fiqa_fast.scorer import Scorer

        torch.set_num_threads(self.threads)
        scorer = Scorer(import_ray().get(self.model), **self.options)
        facts = json.loads(json.dumps(scorer.describe()))  # as a record has them
        for name, wanted in (self.expected or {}).items():
            if facts.get(name, wanted) != wanted:
                raise InputError(
                    f"the machines of this cluster differ: wanted {name} {wanted}, got "
                    f"{facts[name]} on this one; name it (dtype=, device=; --dtype, --device)"
                )
        return scorer


class ScoreActor:
    """Called by Ray Data with pyarrow tables of a batch each, from one thread or several."""

    def __init__(
        self,
        recipe: Recipe,
        column: str | None,
        root: str,
        keep_image: bool = True,
        batch_size: int | None = None,
        tell_resized: bool = False,
    ) -> None:
        self._scorer = recipe.scorer()
        self._reading = recipe.reading
        self._batch_size, self._tell_resized = batch_size, tell_resized
        self._outputs = [name for name in self._scorer.outputs if name != "score"]
        self._column, self._root, self._keep_image = column, root, keep_image
        self._decoders = ThreadPoolExecutor(recipe.decoders, "fiqa_fast-decode")
        # One call scores while another decodes; two at once would share the same cores.
        self._turn = threading.Lock()
        # Of each output of one image, for batches in which no image can be read.
        size = self._reading.size
        blank = self._score(np.zeros((1, 3, size, size), np.uint8))
        self._shapes = {name: blank[name].shape[1:] for name in self._outputs}

    def __call__(self, table: pa.Table) -> pa.Table:
        """Add the columns of results to a table of images."""
        check_names(table.schema, self._outputs)
        column = find_column(table.schema, self._column)
        cells = readers(table.column(column), self._reading, self._root)
        images = list(self._decoders.map(_load, cells))
        score, error, vectors = self._results(images)
        missing = np.array([text is not None for text in error], dtype=bool)
        if not self._keep_image:
            table = table.drop_columns([column])
        table = table.append_column("score", pa.array(score, pa.float32(), mask=missing))
        table = table.append_column("error", pa.array(error, pa.string()))
        if self._tell_resized:
            table = table.append_column(RESIZED, pa.array(map(_resized, images), pa.uint8()))
        from ray.data.extensions import ArrowTensorArray

        for name, values in vectors.items():
            table = table.append_column(name, ArrowTensorArray.from_numpy(values))
        return table

    def _score(self, planes: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.float32]]:
        with self._turn:
            result = self._scorer(torch.from_numpy(planes))
        return {name: getattr(result, name).numpy() for name in ("score", *self._outputs)}

    def _results(
        self, images: list[Fitted | str]
    ) -> tuple[npt.NDArray[np.float32], list[str | None], dict[str, npt.NDArray[np.float32]]]:
        """Return scores, errors and the other outputs of all rows; NaN where there is an error."""
        n = len(images)
        error = [image if isinstance(image, str) else None for image in images]
        score = np.full(n, np.nan, np.float32)
        vectors = {name: np.full((n, *s), np.nan, np.float32) for name, s in self._shapes.items()}
        good = [i for i, text in enumerate(error) if text is None]
        step = self._batch_size or n
        for start in range(0, len(good), step or 1):
            batch = good[start : start + step]
            fitted = [image for i in batch if not isinstance(image := images[i], str)]
            values = self._score(np.stack([image.planes for image in fitted]))
            score[batch] = values["score"]
            for name, column in vectors.items():
                column[batch] = values[name]
        for i in good:
            if not np.isfinite(score[i]):
                error[i] = f"wanted a finite score, got {score[i]}; try --dtype float32"
        return score, error, vectors


def _load(read: Reader) -> Fitted | str:
    """Return the image, or why there is none."""
    try:
        return read()
    except ImageError as error:
        return str(error)
    except Exception as error:  # what a storage raises concerns this image alone
        return describe(error)


def _resized(image: Fitted | str) -> int:
    """Return 1 for a resized image, 2 for one that was reduced more than twofold."""
    return 0 if isinstance(image, str) else int(image.resized) + int(image.reduction > 2)


def check_names(schema: pa.Schema, outputs: list[str]) -> None:
    """Refuse a table that has a column of the name of a result already."""
    for name in ("score", "error", *outputs):
        if name in schema.names:
            raise InputError(
                f"the dataset has a column {name!r} already: rename it (ds.rename_columns) or "
                "drop it (ds.drop_columns)"
            )
