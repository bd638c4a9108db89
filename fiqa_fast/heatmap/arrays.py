# SPDX-License-Identifier: Apache-2.0
"""Maps as numbers: .npz and .npy, for whoever draws by other means."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fiqa_fast.gallery.atomic import AtomicFile
from fiqa_fast.heatmap.maps import MapTable

__all__ = ["write_arrays"]


def write_arrays(
    path: str, table: MapTable, numbers: Sequence[int], description: Mapping[str, Any]
) -> None:
    """Write the maps of the images ``numbers``, in that order, with their keys.

    .npz: ``keys`` [n] text, ``score`` [n] and ``maps`` [n, gh, gw] or [n, T, gh, gw] float32, and
    ``description``, a JSON text that says how they came about. .npy: one record per image with the
    fields ``key``, ``score`` and ``map``. Neither needs pickle.
    """
    chosen = np.asarray(numbers, np.intp)
    maps = table.maps
    if not np.array_equal(chosen, table.good):  # else as it stands, without a copy
        maps = maps[np.searchsorted(table.good, chosen)]
    keys = np.array([table.keys[number] for number in chosen], dtype=np.str_)
    score = table.score[chosen]
    atomic = AtomicFile(path)
    try:
        if path.lower().endswith(".npz"):
            text = np.array(json.dumps(description))
            np.savez(atomic.file, keys=keys, score=score, maps=maps, description=text)
        else:
            fields = [("key", keys.dtype), ("score", "<f4"), ("map", "<f4", maps.shape[1:])]
            records = np.empty(len(chosen), fields)
            records["key"], records["score"], records["map"] = keys, score, maps
            np.save(atomic.file, records, allow_pickle=False)
        atomic.commit()
    except BaseException:
        atomic.abort()
        raise
