# SPDX-License-Identifier: Apache-2.0
"""Galleries without a model: items whose score follows from their key, and stores of them."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fiqa_fast.gallery import Item, Rows
from fiqa_fast.gallery.shares import Share, numbered
from fiqa_fast.gallery.sinks import plan_output
from fiqa_fast.gallery.store import Store

SETTINGS = {"exit": 8, "dtype": "float32", "model_sha256": "0" * 64}
BUILD = {"fiqa_fast": "0", "torch": "0", "processor": "none"}


@dataclass
class KeySource:
    """Items that hold nothing but their keys; those named bad cannot be read."""

    keys: Sequence[str]
    prefix: str = ""
    bad: frozenset[str] = field(default=frozenset())

    def __iter__(self) -> Iterator[Item]:
        return (Item(self.prefix + key, io.BytesIO) for key in self.keys)

    def pieces(self) -> Iterator[Any]:
        return iter(self)

    def count(self) -> int:
        return len(self.keys)


class KeyContainer(KeySource):
    """The same as a container."""

    def pieces(self) -> Iterator[Any]:
        yield self


def value(key: str) -> float:
    """A score that only this key has."""
    digest = hashlib.blake2b(key.encode(), digest_size=4).digest()
    return float(np.float32(int.from_bytes(digest, "little") / 2**32))


def rows_of(keys: Sequence[str], vectors: bool = False) -> Rows:
    """The rows of keys; every seventh or so has an error."""
    errors = [f"bad {key}" if hash_of(key) % 7 == 0 else None for key in keys]
    score = np.array([value(key) for key in keys], np.float32)
    columns = {}
    if vectors:
        columns["embedding"] = score[:, None] * np.arange(4, dtype=np.float32)
    return Rows(list(keys), errors, score, columns)


def hash_of(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=2).digest(), "little")


def open_store(path: Path | str, **options: Any) -> Store:
    """A store with settings, every batch a part unless told otherwise."""
    outputs = options.pop("outputs", ("score",))
    vectors = options.pop("vectors", "auto")
    settings = {**SETTINGS, **options.pop("settings", {})}
    layout = plan_output(str(path), outputs, vectors, options.pop("dtype", "float32"))
    return Store(layout, settings, **{"build": BUILD, "save_seconds": 0, **options})


def score_all(store: Store, sources: Sequence[Any], share: Share | None = None, batch: int = 5):
    """Score what is pending, a batch at a time, as the runner does."""
    vectors = bool(store.layout.columns or store.layout.arrays)
    keys: list[str] = []
    for item in store.pending(numbered(sources, share)):
        keys.append(item.key)
        if len(keys) == batch:
            store.write(rows_of(keys, vectors))
            keys = []
    if keys:
        store.write(rows_of(keys, vectors))
    store.commit()
