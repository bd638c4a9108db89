# SPDX-License-Identifier: Apache-2.0
"""Containers as the libraries of their own field write them, where those are installed."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fiqa_fast.gallery import InputError, open_sources
from fiqa_fast.gallery.sources import damages

JPEG = b"\xff\xd8\xff"

# datasets leaves files open that it has read.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


@pytest.fixture(autouse=True)
def _collected() -> Iterator[None]:
    yield
    gc.collect()


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


def saved(given: dict[str, bytes], paths: bool = True) -> Any:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    rows = {"image": [{"bytes": d, "path": key if paths else None} for key, d in given.items()]}
    rows["label"] = list(range(len(given)))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    return datasets.Dataset.from_dict(rows, features=features)


def test_datasets(tmp_path: Path) -> None:
    given = images(50)
    dataset = saved(given)
    dataset.to_parquet(str(tmp_path / "x.parquet"))
    assert contents(tmp_path / "x.parquet") == given
    dataset.save_to_disk(str(tmp_path / "stored"), num_shards=3)
    assert len(list((tmp_path / "stored").glob("*.arrow"))) == 3
    assert contents(tmp_path / "stored") == given
    (path, *_) = sorted((tmp_path / "stored").glob("*.arrow"))
    assert contents(path) == dict(list(given.items())[:17])
    braced = f"{tmp_path}/{{stored,x.parquet}}"
    expected = [f"{name}/{key}" for name in ("stored", "x.parquet") for key in given]
    assert list(contents(braced)) == expected
    dataset.select([7, 3]).save_to_disk(str(tmp_path / "two"))
    assert list(contents(tmp_path / "two").values()) == [list(given.values())[i] for i in (7, 3)]


def test_a_dictionary_of_datasets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    splits = {"train": images(6), "test": images(3)}
    stored = datasets.DatasetDict({k: saved(v, paths=False) for k, v in splits.items()})
    stored.save_to_disk(str(tmp_path / "stored"))
    assert contents(tmp_path / "stored") == {
        f"{split}/data-00000-of-00001.arrow/{i}": data
        for split, given in splits.items()
        for i, data in enumerate(given.values())
    }


def test_saved_datasets_that_are_damaged(tmp_path: Path) -> None:
    path = tmp_path / "stored"
    saved(images(40)).save_to_disk(str(path), num_shards=2)
    first, second = sorted(path.glob("*.arrow"))
    os.truncate(first, first.stat().st_size // 2)
    (source,) = open_sources([path])
    keys = [item.key for item in source]
    assert keys[0] == f"(rest of {first.name})"
    assert keys[1:] == list(images(40))[20:]  # the other is read
    assert damages([source])[0].startswith(f"{first}: damaged")
    state = (path / "state.json").read_text()
    for text in ("", "[]", "{}", "[" * 100_000, '{"_data_files": [{"filename": "../x"}]}', "7"):
        (path / "state.json").write_text(text)
        with pytest.raises(InputError, match=r"stored: state.json: wanted .*, got"):
            open_sources([path])
    (path / "state.json").write_text(state.replace(second.name, "gone.arrow"))
    (source,) = open_sources([path])
    assert [item.key for item in source][1] == "(rest of gone.arrow)"
