# SPDX-License-Identifier: Apache-2.0
"""Embeddings from files: in the images' order, in their precision, or refused in one line."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fiqa_fast.evaluate.readers.embeddings import read_embeddings
from fiqa_fast.gallery import InputError, Rows, open_sink

PATHS = ["x/a.jpg", "x/b.jpg", "x/c.jpg"]
ORDER = [2, 0, 1]  # as the files have them


def vectors(dtype: str = "float32", n: int = 3) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, 4)).astype(dtype)


def refusal(path: Path, paths: Sequence[str] = PATHS, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        read_embeddings(path, paths, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 500
    return text


def write(path: Path, values: np.ndarray, keys: Sequence[str]) -> Path:
    """Embeddings of ``keys`` in the layout that the suffix says."""
    if path.suffix == ".npz":
        np.savez_compressed(path, paths=np.array(keys), emb=values)
    elif path.suffix == ".npy":
        np.save(path, values)
    elif path.suffix == ".parquet":
        sink = open_sink(str(path), ("score", "embedding"), {})
        score = np.zeros(len(keys), np.float32)
        columns = {"embedding": values}
        sink.write(Rows(list(keys), [None] * len(keys), score, columns))
        sink.commit()
    else:
        path.mkdir()
        for key, value in zip(keys, values, strict=True):
            np.save(path / key.replace("/", "_"), value)
    return path


@pytest.mark.parametrize("name", ["e.npz", "e.parquet", "folder"])
def test_records_find_their_images(tmp_path: Path, name: str) -> None:
    values = vectors()
    keys = [f"{letter}" if name == "folder" else f"/data/x/{letter}.png" for letter in "abcd"]
    stored = np.concatenate([values, vectors()[:1]])
    order = [*ORDER, 3]
    path = write(tmp_path / name, stored[order], [keys[i] for i in order])
    got = read_embeddings(path, PATHS)
    assert got.dtype == np.float32
    assert np.array_equal(got, values)
    assert "1 of 4 images have no embedding, 'gone.jpg' for one" in refusal(
        path, [*PATHS, "gone.jpg"]
    )
    marked = read_embeddings(path, ["gone.jpg", *PATHS], missing="mark")
    assert np.isnan(marked[0]).all()
    assert np.array_equal(marked[1:], values)
    assert "for one" in refusal(path, ["gone.jpg"], missing="mark")


def test_rows_in_the_images_order(tmp_path: Path) -> None:
    path = write(tmp_path / "e.npy", vectors(), [])
    assert np.array_equal(read_embeddings(path, PATHS), vectors())
    assert "wanted a row for each of 2 images, in their order, got 3" in refusal(path, PATHS[:2])


@pytest.mark.parametrize("name", ["e.npz", "e.npy", "folder"])
@pytest.mark.parametrize(
    ("stored", "got"),
    [("<f2", "float32"), ("<f4", "float32"), (">f4", "float32"), (">f8", "float64")],
)
def test_precision_is_kept(tmp_path: Path, name: str, stored: str, got: str) -> None:
    values = vectors(stored)
    read = read_embeddings(write(tmp_path / name, values, ["a", "b", "c"]), ["a", "b", "c"])
    assert read.dtype == np.dtype(got)
    assert np.array_equal(read, values)


def test_a_folder_of_mixed_precision(tmp_path: Path) -> None:
    values = vectors("float64")
    folder = write(tmp_path / "e", values.astype(np.float32)[:2], ["a", "b"])
    np.save(folder / "c.npy", values[2:])  # [1, E]
    read = read_embeddings(folder, PATHS)
    assert read.dtype == np.float64
    assert np.array_equal(read[2], values[2])


@pytest.mark.parametrize("kind", [pa.list_(pa.float64()), pa.list_(pa.float32(), 4)])
def test_lists_of_parquet(tmp_path: Path, kind: pa.DataType) -> None:
    values = vectors("float64").astype(kind.value_type.to_pandas_dtype())
    keys = [PATHS[i] for i in ORDER]
    columns = {"path": keys, "embedding": pa.array(values[ORDER].tolist(), kind)}
    pq.write_table(pa.table(columns), tmp_path / "e.parquet", row_group_size=2)
    read = read_embeddings(tmp_path / "e.parquet", PATHS)
    assert read.dtype == values.dtype
    assert np.array_equal(read, values)


def test_error_rows_have_no_embedding(tmp_path: Path) -> None:
    path = str(tmp_path / "e.parquet")
    sink = open_sink(path, ("score", "embedding"), {})
    errors = [None, "no such file", None]
    sink.write(Rows(PATHS, errors, np.zeros(3, np.float32), {"embedding": vectors()}))
    sink.commit()
    assert "1 of 3 images have no embedding, 'x/b.jpg' for one" in refusal(Path(path))
    marked = read_embeddings(path, PATHS, missing="mark")
    assert np.isnan(marked).all(1).tolist() == [False, True, False]
    assert np.array_equal(marked[[0, 2]], vectors()[[0, 2]])


@pytest.mark.parametrize("name", ["e.npz", "e.parquet"])
def test_records_that_are_there_twice(tmp_path: Path, name: str) -> None:
    values = vectors()[[0, 1, 0, 2]]
    keys = ["a", "b", "a", "c"]
    path = write(tmp_path / name, values, keys)
    assert np.array_equal(read_embeddings(path, PATHS), vectors())
    values[2, 1] += 1
    path.unlink()
    assert "'a' has two embeddings" in refusal(write(path, values, keys))


@pytest.mark.parametrize("name", ["e.npz", "e.npy", "e.parquet", "folder"])
@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([0, 0, 0, 0], "has zeros alone"),
        ([1, np.nan, 0, 0], "not finite"),
        ([np.inf, 0, 0, 0], "not finite"),
    ],
)
def test_vectors_without_direction(
    tmp_path: Path, name: str, value: list[float], text: str
) -> None:
    values = vectors()
    values[1] = value
    path = write(tmp_path / name, values, ["a", "b", "c"])
    for missing in ("refuse", "mark"):
        assert "the embedding of 'x/b.jpg' has" in refusal(path, missing=missing)
        assert text in refusal(path, missing=missing)


def test_vectors_of_different_lengths(tmp_path: Path) -> None:
    folder = write(tmp_path / "e", vectors(), ["a", "b", "c"])
    np.save(folder / "c.npy", np.ones(5))
    assert "c.npy: wanted 4 features as in the files before, got 5" in refusal(folder)
    columns = {"path": PATHS, "embedding": [[1.0, 2.0], [1.0], [3.0, 4.0]]}
    pq.write_table(pa.table(columns), tmp_path / "e.parquet")
    assert "row 2: wanted 2 features as in the rows before, got 1" in refusal(
        tmp_path / "e.parquet"
    )


def test_archives_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "e.npz"
    np.savez(path, names=np.array(PATHS), emb=vectors())
    assert "wanted the arrays paths and emb, got names, emb" in refusal(path)
    np.savez(path, paths=np.array(PATHS[:2]), emb=vectors())
    assert "wanted a text in paths for each of 3 embeddings" in refusal(path)
    np.savez(path, paths=np.array(PATHS), embeddings=vectors()[0])
    assert "wanted embeddings [images, features], got [4]" in refusal(path)
    np.savez(path, paths=np.array(PATHS, object), emb=vectors())
    assert "paths holds Python objects, which are not read" in refusal(path)
    np.savez(path, paths=np.array(PATHS), emb=np.ones((3, 4), np.int64))
    assert "wanted embeddings in float16, 32 or 64, got int64" in refusal(path)
    np.savez(path, paths=np.array(PATHS), embeddings=vectors())
    assert np.array_equal(read_embeddings(path, PATHS), vectors())


def huge_header() -> bytes:
    header = json.dumps({"descr": "<f4", "fortran_order": False, "shape": "S"})
    header = header.replace("false", "False").replace('"S"', "(3, 1099511627776)")
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header) + 1) + header.encode() + b"\n"


def test_files_that_claim_to_be_huge(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", paths=np.array(PATHS))
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
        archive.writestr("emb.npy", huge_header() + b"abc")
    assert "emb is damaged or cut off" in refusal(tmp_path / "a.npz")
    (tmp_path / "b.npy").write_bytes(huge_header() + b"abc")
    assert "damaged" in refusal(tmp_path / "b.npy")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.npy").write_bytes(huge_header())
    assert "a.npy: wanted one vector, got [3, 1099511627776]" in refusal(folder)


@pytest.mark.parametrize("name", ["e.npz", "e.npy", "e.parquet"])
def test_damaged_files(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, vectors(), PATHS)
    data = path.read_bytes()
    for end in range(0, len(data), max(1, len(data) // 40)):
        path.write_bytes(data[:end])
        refusal(path)
    path.write_bytes(b"\x80\x04cos\nsystem\n.")  # what numpy would take for a pickle
    refusal(path)


def test_what_holds_no_embeddings(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "gone.npz")
    (tmp_path / "e.txt").write_text("a 1\n")
    assert "wanted embeddings as .npz, .npy, .parquet or as a folder" in refusal(tmp_path / "e.txt")
    pq.write_table(pa.table({"path": PATHS, "score": [1.0, 2, 3]}), tmp_path / "s.parquet")
    assert "wanted the columns path and embedding, got path, score" in refusal(
        tmp_path / "s.parquet"
    )
    pq.write_table(pa.table({"path": PATHS, "embedding": ["a"] * 3}), tmp_path / "t.parquet")
    assert "wanted lists of floats as embedding, got string" in refusal(tmp_path / "t.parquet")
    folder = write(tmp_path / "e", vectors(), ["a", "b", "c"])
    np.save(folder / "b.npy", np.ones((2, 2)))
    assert "b.npy: wanted one vector, got [2, 2]" in refusal(folder)
    np.save(folder / "b.npy", np.array(["x"], object))
    assert "b.npy: wanted embeddings in float16, 32 or 64, got object" in refusal(folder)
    with pytest.raises(ValueError, match="missing must be"):
        read_embeddings(folder, PATHS, missing="worst")


def test_one_file_for_two_images(tmp_path: Path) -> None:
    folder = write(tmp_path / "e", vectors(), ["a", "b", "c"])
    assert "'a.npy' fits both 'x/a.jpg' and 'y/a.jpg'" in refusal(folder, ["x/a.jpg", "y/a.jpg"])
