# SPDX-License-Identifier: Apache-2.0
"""Reads embeddings that a matcher made before."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from fiqa_fast.evaluate.readers.embedding_files import READERS, Embeddings, read_folder
from fiqa_fast.evaluate.readers.files import StrPath, brief, open_input
from fiqa_fast.gallery.errors import InputError
from fiqa_fast.gallery.sources import printable

__all__ = ["Embeddings", "check_embeddings", "check_missing", "read_embeddings"]

_ROWS = 8192  # checked at a time


def read_embeddings(path: StrPath, paths: Sequence[str], *, missing: str = "refuse") -> Embeddings:
    """Read the embeddings of the images ``paths``, whatever else the file holds.

    Args:
        path: an ``.npz`` with ``paths`` (texts, [m]) and ``emb`` or ``embeddings`` [m, E]; a
            folder with one ``<name>.npy`` [E] per image; an ``.npy`` [n, E] in the order of
            ``paths``; or a ``.parquet`` of ``fiqa-fast score --outputs embedding``.
        paths: [n], keys of the images, matched as :func:`.keys.match` says.
        missing: what to do about images without an embedding (no record, or one without a
            vector): ``"refuse"`` raises, ``"mark"`` gives them a row of nan.

    Returns:
        [n, E] as stored, not normalised: float32 or float64; float16 becomes float32.

    Raises:
        InputError: one line, for a damaged file, records that do not fit the images, vectors of
            different lengths, of zeros or with values that are not finite.
    """
    check_missing(missing)
    where = printable(os.fspath(path))
    suffix = os.path.splitext(where)[1].lower()
    if os.path.isdir(path):
        values = read_folder(path, paths)
    elif suffix in READERS:
        with open_input(path) as file:
            values = READERS[suffix](file, where, paths)
    else:
        raise InputError(
            f"{where}: wanted embeddings as {', '.join(READERS)} or as a folder of .npy files"
        )
    check_embeddings(values, paths, where, missing)
    return values


def check_missing(missing: str) -> None:
    """Raise ``ValueError`` for another word than refuse and mark."""
    if missing not in ("refuse", "mark"):
        raise ValueError(f'missing must be "refuse" or "mark", got {missing!r}')


def check_embeddings(values: Embeddings, paths: Sequence[str], where: str, missing: str) -> None:
    """Raise :class:`InputError` where a row of [n, E] has no direction; nan alone is missing."""
    gaps: list[int] = []
    for start in range(0, len(values), _ROWS):
        rows = values[start : start + _ROWS]
        absent = np.isnan(rows).all(1)
        gaps.extend((start + np.flatnonzero(absent)).tolist())
        for i in np.flatnonzero(~absent & (~np.isfinite(rows).all(1) | ~rows.any(1)))[:1]:
            kind = "values that are not finite" if rows[i].any() else "zeros alone"
            raise InputError(f"{where}: the embedding of {brief(paths[start + i])!r} has {kind}")
    if gaps and (missing == "refuse" or len(gaps) == len(values)):
        raise InputError(
            f"{where}: {len(gaps)} of {len(values)} images have no embedding, "
            f"{brief(paths[gaps[0]])!r} for one; do the paths name the same images?"
        )
