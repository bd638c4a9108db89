# SPDX-License-Identifier: Apache-2.0
"""Evaluation sets in every layout, and what is wrong with them in one line."""

from __future__ import annotations

import os
import pickle
import struct
import time
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import face, jpeg

from fiqa_fast.errors import ImageError
from fiqa_fast.evaluate.readers.datasets import Dataset, open_dataset
from fiqa_fast.evaluate.readers.scores import read_scores
from fiqa_fast.gallery import InputError
from fiqa_fast.images import decode


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        open_dataset(path, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 600
    return text


def pixels(dataset: Dataset, i: int) -> np.ndarray:
    assert dataset.items is not None
    with dataset.items[i].open() as file:
        return decode(file)


def lines(path: Path, *rows: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(row + "\n" for row in rows))
    return path


# Folders with one subfolder per identity.


def test_a_folder_of_identities(tmp_path: Path) -> None:
    for name in ("lfw/b/1.png", "lfw/a/2.png", "lfw/a/3.png", "lfw/b/4.PNG"):
        face(tmp_path / name, 0)
    lines(tmp_path / "lfw" / "a" / "notes.txt", "no image")
    dataset = open_dataset(tmp_path)
    assert dataset.name == tmp_path.name
    assert dataset.paths == ["lfw/a/2.png", "lfw/a/3.png", "lfw/b/1.png", "lfw/b/4.PNG"]
    assert dataset.identity is not None
    assert dataset.identity.tolist() == [0, 0, 1, 1]
    assert dataset.pairs is None
    assert dataset.scores == {}
    assert dataset.items is not None
    assert [item.key for item in dataset.items] == dataset.paths
    assert pixels(dataset, 1).shape == (112, 112, 3)


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["a.png", "b.png"], "got 'a.png' in the folder itself"),
        (["x/a/1.png", "y/a/2.png", "y/b/3.png"], "both 'x/a' and 'y/a' hold images"),
        (["a/1.png", "a/b/2.png"], "got images in 'a' and below it in 'a/b'"),
        (["a/1.png", "a/2.png"], "two or more identities, got one"),
        (["a/1.png", "b/2.png"], "got one image of each"),
        (["a/notes.txt"], "no image with the suffix"),
    ],
)
def test_folders_that_tell_no_identity(tmp_path: Path, names: list[str], text: str) -> None:
    for name in names:
        lines(tmp_path / name, "x")
    assert text in refusal(tmp_path)


def test_options_that_belong_elsewhere(tmp_path: Path) -> None:
    lines(tmp_path / "a" / "1.png")
    assert "--root is where listed paths start" in refusal(tmp_path, root=tmp_path)
    assert "--columns names a table's scores" in refusal(tmp_path, columns=["q"])
    lines(tmp_path / "set.bin")
    assert "--root" in refusal(tmp_path / "set.bin", root=tmp_path)


def test_what_is_no_set(tmp_path: Path) -> None:
    assert "no such file or folder; wanted a folder with" in refusal(tmp_path / "gone")
    assert "with the columns path and identity" in refusal(lines(tmp_path / "set.zip"))
    os.mkfifo(tmp_path / "pipe.csv")
    assert "pipe" in refusal(tmp_path / "pipe.csv")


# The papers' layout.


def reference(folder: Path, images: list[str], pairs: list[str]) -> Path:
    lines(folder / "image_path_list.txt", *images)
    lines(folder / "pair_list.txt", *pairs)
    return folder


def test_the_papers_layout_with_images_beside(tmp_path: Path) -> None:
    folder = tmp_path / "quality_data" / "XQ"
    paths = [f"quality_data/XQ/images/{name}.png" for name in ("a b", "c", "d", "c")]
    for i, name in enumerate(("a b", "c", "d")):
        face(folder / "images" / f"{name}.png", i)
    reference(folder, paths, ["c d.png 1", "d.png c 0", "", "images/c\td 00001"])
    dataset = open_dataset(folder)
    assert dataset.name == "XQ"
    assert dataset.paths == paths[:3]  # the list says one twice
    assert dataset.identity is None
    assert dataset.pairs is not None
    a, b, genuine = dataset.pairs
    assert (a.dtype, b.dtype, genuine.dtype) == (np.int32, np.int32, np.bool_)
    assert (a.tolist(), b.tolist()) == ([1, 2, 1], [2, 1, 2])
    assert genuine.tolist() == [True, False, True]
    assert np.array_equal(pixels(dataset, 0), decode(folder / "images" / "a b.png"))
    given = open_dataset(folder, root=tmp_path)
    assert np.array_equal(pixels(given, 2), pixels(dataset, 2))


def test_the_papers_layout_without_images(tmp_path: Path) -> None:
    folder = reference(tmp_path, ["/nowhere/a.jpg", "/nowhere/b.jpg"], ["a b 0"])
    assert open_dataset(folder).items is None
    assert "--root: found no '/nowhere/a.jpg' below" in refusal(folder, root=tmp_path)
    assert "--root: wanted a folder" in refusal(folder, root=tmp_path / "gone")


@pytest.mark.parametrize(
    ("images", "pairs", "text"),
    [
        (["a.jpg", "b.jpg"], ["a b 1", "a c 0"], "pair_list.txt, line 2: 'c' is not in image_path"),
        (["a.jpg", "b.jpg"], ["a b"], "line 1: wanted '<name> <name> <0 or 1>', got 'a b'"),
        (["a.jpg", "b.jpg"], ["a b 2"], "line 1: wanted"),
        (["a.jpg", "b.jpg"], ["a b -1"], "line 1: wanted"),
        (["a.jpg", "b.jpg"], ["a b c 1"], "line 1: wanted"),
        (["a.jpg", "b.jpg"], ["a b 1" + 99 * "0"], "line 1: wanted"),
        (["a.jpg", "b.jpg"], [], "wanted pairs, got none"),
        ([], ["a b 1"], "wanted paths of images, got none"),
        (["x/a.jpg", "y/a.jpg", "z/b.jpg"], ["b a 1"], "both 'x/a.jpg' and 'y/a.jpg' fit 'a'"),
    ],
)
def test_lists_that_do_not_fit(
    tmp_path: Path, images: list[str], pairs: list[str], text: str
) -> None:
    assert text in refusal(reference(tmp_path, images, pairs))


def test_half_of_the_papers_layout(tmp_path: Path) -> None:
    lines(tmp_path / "pair_list.txt", "a b 1")
    assert "wanted image_path_list.txt beside pair_list.txt" in refusal(tmp_path)


# insightface's pickles.

JPEG = jpeg()
OTHER = JPEG[:-2] + b"\0\xff\xd9"  # differs in bytes


def bin_set(path: Path, content: Any, protocol: int = 4) -> Path:
    data = content if isinstance(content, bytes) else pickle.dumps(content, protocol)
    path.write_bytes(data)
    return path


def raw(dataset: Dataset) -> list[bytes]:
    assert dataset.items is not None
    contents = []
    for item in dataset.items:
        with item.open() as file:
            contents.append(file.read())
    return contents


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("flags", ["bool", "int", "numpy", "scalars", "wide"])
@pytest.mark.parametrize("images", ["bytes", "bytearray", "array", "column", "text"])
def test_pair_sets_of_every_kind(tmp_path: Path, images: str, flags: str, protocol: int) -> None:
    encoded = [JPEG, OTHER, bytes(range(256)), JPEG]
    made = {
        "bytes": lambda data: data,
        "bytearray": bytearray,
        "array": lambda data: np.frombuffer(data, np.uint8),
        "column": lambda data: np.frombuffer(data, np.uint8)[:, None].copy(),
        "text": lambda data: data.decode("latin-1"),
    }[images]
    same: Any = {
        "bool": [True, False],
        "int": [1, 0],
        "numpy": np.array([True, False]),
        "scalars": [np.True_, np.False_],
        "wide": np.array([1, 0], ">i8"),
    }[flags]
    path = bin_set(tmp_path / "lfw.bin", ([made(data) for data in encoded], same), protocol)
    dataset = open_dataset(path)
    assert dataset.name == "lfw"
    assert dataset.paths == ["00000", "00001", "00002", "00003"]
    assert dataset.identity is None
    assert dataset.pairs is not None
    a, b, genuine = dataset.pairs
    assert (a.tolist(), b.tolist(), genuine.tolist()) == ([0, 2], [1, 3], [True, False])
    assert raw(dataset) == encoded
    assert pixels(dataset, 3).shape == (112, 112, 3)


def python2_string(data: bytes) -> bytes:
    return b"T" + struct.pack("<i", len(data)) + data + b"q\x02"


def test_pair_sets_of_python_2(tmp_path: Path) -> None:
    # As cPickle writes them: strings without a type, memo numbers from 1.
    binary = b"\x80\x02]q\x01(" + python2_string(JPEG) + b"U\x02\xff\xd8q\x03e]q\x04\x88a\x86q\x05."
    dataset = open_dataset(bin_set(tmp_path / "a.bin", binary))
    assert raw(dataset) == [JPEG, b"\xff\xd8"]
    quoted = rb"'\xff\xd8\n\'x'"
    text = b"((lp1\nS" + quoted + b"\np2\nag2\na(lp3\nI01\natp4\n."
    dataset = open_dataset(bin_set(tmp_path / "b.bin", text))
    assert raw(dataset) == [b"\xff\xd8\n'x"] * 2
    assert dataset.pairs is not None
    assert dataset.pairs[2].tolist() == [True]


class Call:
    """Pickled as a call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def flagged(images: Any, flags: Any = (True,)) -> tuple[Any, list[Any]]:
    return images, list(flags)


CUT = "damaged or cut off, or no pickle at all"
HOSTILE: dict[str, tuple[Any, str]] = {
    "call": (flagged([Call(os.system, "touch ran"), b""]), "posix.system, which is not run"),
    "eval": (flagged([Call(eval, "open('ran', 'w')"), b""]), "builtins.eval"),
    "call of bytes": (flagged([Call(bytes, 2**40), b""]), CUT),
    "call of a type": (flagged([Call(np.dtype, "O"), b""]), "wanted arrays of bytes or flags"),
    "inst": (b"(S'touch ran'\nios\nsystem\n.", "an object of a class"),
    "class": (b"\x80\x02cos\nsystem\n)\x81.", "got os.system"),
    "extension": (b"\x80\x02\x82\x01.", "the instruction"),
    "persistent": (b"Pid\n.", "a reference to elsewhere"),
    "dictionary": ({"images": []}, "a dictionary"),
    "set": (({1}, [True]), "a set"),
    "objects": (flagged(np.array([b"a", b"b"], object)), "the type 'O8'"),
    "floats": (flagged([np.zeros(3, np.float32), b""]), "the type 'f4'"),
    "fraction": (flagged([b"", b""], [0.5]), "a fraction"),
    "pixels": (flagged([np.zeros((4, 4, 3), np.uint8)] * 2), "got pixels [4, 4, 3] as image 0"),
    "numbers": (flagged([1, 2]), "got something else as image 0"),
    "nested": (flagged([[b"", b""], b""]), "got something else as image 0"),
    "big flag": (flagged([b"", b""], [2]), "another as flag 0"),
    "none": (flagged([b"", b""], [None]), "another as flag 0"),
    "long": (flagged([b"", b""], [2**80]), "more than 64 bits"),
    "three lists": (([], [], []), "wanted a list of images and one of flags"),
    "bytes": (b"\x80\x04C\x01x.", "wanted a list of images and one of flags"),
    "no list": ((b"", [True]), "wanted a list of images"),
    "too few": (flagged([b"a", b"b", b"c"], [True, False]), "got 3 images and 2 flags"),
    "too many": (flagged([b"a"] * 4), "got 4 images and 1 flags"),
    "empty lists": (([], []), "got 0 images and 0 flags"),
    "empty": (b"", CUT),
    "text": (b"path,score\n", CUT),
    "jpeg": (JPEG, "wanted images and flags alone"),
    "huge bytes": (b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"x.", "the file ends before"),
    "huge string": (b"\x80\x04B\xff\xff\xff\xffx.", "the file ends before"),
    "negative string": (b"\x80\x02T\xff\xff\xff\xffx.", "the file ends before"),
    "huge frame": (b"\x80\x04\x95" + b"\xff" * 8 + b"N.", "wanted a list of images"),
    "huge memo": (b"\x80\x02Nr\xff\xff\xff\xff.", CUT),
    "huge text memo": (b"Np999999999999\n.", CUT),
    "memo of nothing": (b"\x80\x04\x94.", CUT),
    "memo never written": (b"\x80\x02h\x07.", CUT),
    "negative memo": (b"Np-1\n.", CUT),
    "stack underflow": (b"\x80\x02\x86.", CUT),
    "below a mark": (b"\x80\x02N(\x85.", CUT),
    "no mark": (b"\x80\x02t.", CUT),
    "append to a tuple": (b"\x80\x02)Na.", CUT),
    "long line": (b"c" + b"x" * 10_000 + b"\n", CUT),
    "itself": (b"\x80\x02]q\x00h\x00h\x00\x86a.", "wanted a list of images and one of flags"),
    "state of a list": (b"\x80\x02]Nb.", "the state of an object"),
    "deep list": (b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".", "wanted a list of images"),
    "deep tuple": (b"\x80\x02N" + b"\x85" * 200_000 + b".", "wanted a list of images"),
    "marks": (b"\x80\x02" + b"(" * 200_000 + b".", CUT),
    "doubling": (b"\x80\x02]q\x00" + b"h\x00h\x00\x86q\x00" * 1000 + b".", "as image 0"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pair_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    content, text = HOSTILE[name]
    monkeypatch.chdir(tmp_path)
    path = bin_set(tmp_path / "x.bin", content)
    size = path.stat().st_size
    tracemalloc.start()
    start = time.thread_time()
    try:
        assert text in refusal(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert not Path("ran").exists()
    assert time.thread_time() - start < 30  # what goes over all for each would take hours
    assert peak < 2**20 + 200 * size


def test_a_name_that_would_break_the_line(tmp_path: Path) -> None:
    data = b"\x80\x04\x8c\x04o\ns\x1b\x8c\x02\xc3\xa9\x93."
    assert r"got o s\x1b." in refusal(bin_set(tmp_path / "x.bin", data))


def test_cut_pair_sets(tmp_path: Path) -> None:
    images = [JPEG, np.frombuffer(OTHER, np.uint8)]
    for protocol in (0, 2, 4, 5):
        data = pickle.dumps((images, [np.True_]), protocol)
        for end in [*range(0, len(data), 97), len(data) - 1]:
            refusal(bin_set(tmp_path / "x.bin", data[:end]))


def test_damaged_pair_sets_never_crash(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    small = [np.frombuffer(b"abc", np.uint8), b"defg"]
    for protocol in (0, 2, 4):
        data = np.frombuffer(pickle.dumps((small, [np.True_]), protocol), np.uint8)
        for _ in range(300):
            changed = data.copy()
            changed[rng.integers(0, len(data), 2)] = rng.integers(0, 256, 2)
            path = bin_set(tmp_path / "x.bin", changed.tobytes())
            with suppress(InputError, ImageError):
                raw(open_dataset(path))


def test_instructions_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fiqa_fast.gallery.pickles._MAX_INSTRUCTIONS", 1000)
    path = bin_set(tmp_path / "x.bin", b"\x80\x02" + b"N" * 1000 + b".")
    assert "wanted at most 1000 instructions" in refusal(path)


def test_a_pair_set_that_shrinks_after_it_was_opened(tmp_path: Path) -> None:
    path = bin_set(tmp_path / "x.bin", ([JPEG, JPEG], [True]))
    dataset = open_dataset(path)
    os.truncate(path, 100)
    with pytest.raises(ValueError, match="the file ends before its images do"):
        raw(dataset)


# Tables.

ROWS = [
    ("p/a 1.png", "anna", 0.5, 1, 3, "x"),
    ("p/b,2.png", "bert", 2.0, 0, 1, ""),
    ("p/c.png", "anna", -1.25e-3, 1, 2, "z"),
]
NAMES = ("path", "identity", "quality", "flag", "level", "note")


def csv_table(path: Path, *more: str, start: str = "", end: str = "\n") -> Path:
    rows = [NAMES, *(tuple(f'"{cell}"' if "," in str(cell) else cell for cell in r) for r in ROWS)]
    text = start + "".join(",".join(map(str, row)) + end for row in [*rows]) + "".join(more)
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize(
    "kind", ["plain", "crlf", "bom", "blank", "parquet", "categories", "jsonl"]
)
def test_tables(tmp_path: Path, kind: str) -> None:
    columns = {name: [row[i] for row in ROWS] for i, name in enumerate(NAMES)}
    if kind == "parquet":
        path = tmp_path / "t.parquet"
        pq.write_table(pa.table({**columns, "vector": [[1.5], [2.5], [3.5]]}), path)
    elif kind == "categories":
        path = tmp_path / "t.parquet"
        data = pa.table(columns)
        who = data["identity"].dictionary_encode()
        pq.write_table(data.set_column(1, "identity", who), path)
    elif kind == "jsonl":
        import json

        rows = [{**dict(zip(NAMES, row, strict=True)), "vector": [1.5]} for row in ROWS]
        path = lines(tmp_path / "t.jsonl", *map(json.dumps, rows))
    else:
        start, end = {"crlf": ("", "\r\n"), "bom": ("\ufeff", "\n")}.get(kind, ("", "\n"))
        path = csv_table(tmp_path / "t.csv", "\n\n" * (kind == "blank"), start=start, end=end)
    for i, row in enumerate(ROWS):
        face(tmp_path / row[0], i)
    dataset = open_dataset(path)
    assert dataset.name == "t"
    assert dataset.paths == [row[0] for row in ROWS]
    assert dataset.identity is not None
    assert dataset.identity.tolist() == [0, 1, 0]
    assert dataset.pairs is None
    assert list(dataset.scores) == ["quality"]  # flags and counts are whole
    assert dataset.scores["quality"].dtype == np.float64
    assert dataset.scores["quality"].tolist() == [0.5, 2.0, -1.25e-3]
    assert pixels(dataset, 1).shape == (112, 112, 3)
    chosen = open_dataset(path, columns=["level", "quality"])
    assert list(chosen.scores) == ["level", "quality"]
    assert chosen.scores["level"].tolist() == [3, 1, 2]


def test_a_table_needs_no_scores_and_no_images(tmp_path: Path) -> None:
    path = lines(tmp_path / "t.csv", "path,identity", "a,1", "b,1", "c,2")
    dataset = open_dataset(path)
    assert dataset.scores == {}
    assert dataset.items is None


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        (["path,who", "a,1"], "wanted a column 'identity', got path, who"),
        (["identity,q", "a,1"], "wanted a column 'path', got identity, q"),
        (["path,identity", "a,1", "b,"], "line 3: wanted a text as identity, got nothing"),
        (["path,identity", "a,1", ",2"], "line 3: wanted a text as path, got nothing"),
        (["path,identity", "a,1", "b,2", "a,1"], "line 4: 'a' is named twice, first in line 2"),
        (
            ["path,identity,q", "a,1,0.5", "b,1,x", "c,2,1"],
            "line 3: wanted a finite number as q, got 'x'",
        ),
        (["path,identity,q", "a,1,0.5", "b,1,", "c,2,1"], "wanted a finite number as q, got noth"),
        (["path,identity,q", "a,1,0.5", "b,1,nan", "c,2,1"], "number as q, got 'nan'"),
        (["path,identity,q", "a,1,0.5", "b,1,inf", "c,2,1"], "number as q, got 'inf'"),
        (["path,identity,q", "a,1,0.5", "b,1,1_0", "c,2,1"], "number as q, got '1_0'"),
        (["path,identity,q", "a,1", "b,1,1"], "line 2: wanted 3 cells as in the header, got 2"),
        (["path,identity", "a,1,7"], "line 2: wanted 2 cells as in the header, got 3"),
        (["path,identity,path", "a,1,b"], "the column 'path' is there twice"),
        (["path;identity", "a;1"], "wanted cells separated by commas"),
        (["path,identity", 'a,"1'], "unexpected end of data"),
        (["path,identity"], "wanted a table with rows, got none"),
        ([], "wanted a table with rows, got none"),
        (["path,identity", "a,1", "b,1"], "two or more identities"),
    ],
)
def test_tables_with_bad_cells(tmp_path: Path, rows: list[str], text: str) -> None:
    assert text in refusal(lines(tmp_path / "t.csv", *rows))


def test_columns_that_are_named(tmp_path: Path) -> None:
    path = csv_table(tmp_path / "t.csv")
    assert "wanted a column 'gone', got path, identity, quality" in refusal(path, columns=["gone"])
    text = refusal(path, columns=["note"])
    assert "t.csv, line 2: wanted a finite number as note, got 'x'" in text


def test_gaps_in_a_tables_scores(tmp_path: Path) -> None:
    path = lines(tmp_path / "t.csv", "path,identity,q", "a,1,0.5", "b,1,", "c,2,nan")
    assert "t.csv, line 3: wanted a finite number as q" in refusal(path)
    scores = open_dataset(path, missing="worst").scores["q"]
    assert scores.tolist() == [0.5, -np.inf, -np.inf]
    with pytest.raises(InputError, match="wanted a finite number as q, got 'x'"):
        open_dataset(
            lines(tmp_path / "u.csv", "path,identity,q", "a,1,0.5", "b,1,x", "c,2,1.5"),
            missing="worst",
        )


def test_damaged_tables(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("path,identity\nä,1\n".encode("latin-1"))
    assert "wanted text in UTF-8" in refusal(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_bytes("path,identity\na,1\n".encode("utf-16"))
    assert "wanted text in UTF-8" in refusal(tmp_path / "b.csv")
    assert "no readable Parquet file" in refusal(lines(tmp_path / "c.parquet", "x" * 100))
    assert "line 1: wanted a JSON object" in refusal(lines(tmp_path / "d.jsonl", "[" * 100_000))
    assert "line 2: wanted a JSON object, got '7'" in refusal(
        lines(tmp_path / "e.jsonl", "{}", "7")
    )
    (tmp_path / "f.csv").mkdir()
    assert "no image" in refusal(tmp_path / "f.csv")


def test_names_that_are_nulls_or_fractions_in_parquet(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"path": ["a", None], "identity": [1, 2]}), path)
    assert "row 2: wanted a text as path, got nothing" in refusal(path)
    pq.write_table(pa.table({"path": ["a", "b"], "identity": [1.0, 2.0]}), path)
    assert "row 1: wanted a text as identity, got '1.0'" in refusal(path)
    pq.write_table(pa.table({"path": ["a", "b", "c"], "identity": [1, 2, 1]}), path)
    assert open_dataset(path).paths == ["a", "b", "c"]


def test_the_shared_set(needs_data: Path) -> None:
    faces = needs_data / "faces"
    if not (faces / "crossq_protocol.csv").exists():
        pytest.skip("FIQA_FAST_TEST_DATA holds no faces/crossq_protocol.csv")
    dataset = open_dataset(faces / "crossq_protocol.csv", root=faces / "aligned112")
    assert len(dataset) == 917
    assert list(dataset.scores) == ["lightqnet100"]
    assert dataset.identity is not None
    _, counts = np.unique(dataset.identity, return_counts=True)
    assert len(counts) == 160
    assert (counts * (counts - 1) // 2).sum() == 2185
    (scores,) = read_scores(faces / "reference_lightqnet100.csv", dataset.paths).values()
    assert np.array_equal(scores, dataset.scores["lightqnet100"])
    assert pixels(dataset, 0).shape == (112, 112, 3)
    folder = open_dataset(faces / "aligned112" / "lfw")
    assert folder.identity is not None
    assert np.array_equal(folder.identity, dataset.identity)
