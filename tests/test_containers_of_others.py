# SPDX-License-Identifier: Apache-2.0
"""Containers as the libraries of their own field write them, where those are installed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from fiqa_fast.gallery import open_sources
from fiqa_fast.gallery.sources import damages

JPEG = b"\xff\xd8\xff"


def images(n: int) -> dict[str, bytes]:
    return {f"p{i // 7:03}-{i:05}.jpg": JPEG + os.urandom(i * 613 % 9000) for i in range(n)}


def contents(path: Any) -> dict[str, bytes]:
    (source,) = open_sources([path])
    found = {item.key: item.open().read() for item in source}
    assert damages([source]) == []
    return found


@pytest.mark.parametrize("n", [1, 5, 3000])
@pytest.mark.parametrize("as_folder", [True, False])
def test_lmdb(tmp_path: Path, n: int, as_folder: bool) -> None:
    lmdb = pytest.importorskip("lmdb")
    given = images(n)
    path = str(tmp_path / "faces.lmdb")
    with lmdb.open(path, map_size=2**28, subdir=as_folder) as environment:
        with environment.begin(write=True) as transaction:
            transaction.put(b"__len__", b"%d" % n)
            for key in given:
                transaction.put(key.encode(), b"first")
        with environment.begin(write=True) as transaction:  # the tree is written anew, in part
            for key, data in given.items():
                transaction.put(key.encode(), data)
            transaction.put(b"gone", JPEG)
            transaction.delete(b"gone")
    assert contents(path) == given
    assert list(contents(path)) == sorted(given)


def test_webdataset(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    given = images(50)
    for name in ("x.tar", "x.tar.gz"):
        with webdataset.TarWriter(str(tmp_path / name)) as sink:
            for i, data in enumerate(given.values()):
                sink.write({"__key__": f"{i:06}", "jpg": data, "cls": i, "json": {"i": i}})
        expected = {f"{i:06}.jpg": data for i, data in enumerate(given.values())}
        assert contents(tmp_path / name) == expected


def test_datasets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    given = images(50)
    rows = {"image": [{"bytes": data, "path": key} for key, data in given.items()]}
    features = datasets.Features({"image": datasets.Image()})
    dataset = datasets.Dataset.from_dict(rows, features=features)
    dataset.to_parquet(str(tmp_path / "x.parquet"))
    assert contents(tmp_path / "x.parquet") == given
    dataset.save_to_disk(str(tmp_path / "stored"))
    (path,) = (tmp_path / "stored").glob("*.arrow")
    assert contents(path) == given
